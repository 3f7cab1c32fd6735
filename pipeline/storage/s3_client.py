"""The boto3 client that all S3 stores of a process share. Imported on the first request, because boto3 is slow."""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import threading
from typing import Any
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from pipeline.base.errors import ConfigError
from pipeline.storage.s3_errors import NO_CREDENTIALS, no_credentials, public

logger = logging.getLogger(__name__)

# Several threads read and write at once; each request beyond the size of the pool opens a new connection.
_CONNECTIONS = 16

_lock = threading.Lock()
_clients: dict[tuple[Any, ...], Any] = {}


def _new_lock() -> None:
    """Replace the lock in a forked child, which lacks the thread that may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def shared_client(connect_timeout: float, read_timeout: float) -> Any:
    """Client of this process for these timeouts and the current AWS environment.

    Args:
        connect_timeout: Seconds without a connection after which an attempt fails.
        read_timeout: Seconds without a byte after which an attempt fails.

    Raises:
        ConfigError: The AWS settings are invalid.
        StorageError: There are no credentials.
    """
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    # A forked child keeps its parent's clients under the other process ID: closing them might wait for a lock.
    key = (os.getpid(), connect_timeout, read_timeout, environment)
    with _lock:
        if key not in _clients:
            _clients[key] = _made_client(connect_timeout, read_timeout)
        return _clients[key]


def _made_client(connect_timeout: float, read_timeout: float) -> Any:
    # Readers verify the SHA-256 of every object, and not every server supports the newer checksums of S3.
    checksums = {
        name: "when_required"
        for name in ("request_checksum_calculation", "response_checksum_validation")
        if f"AWS_{name.upper()}" not in os.environ
    }
    try:
        config = Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": 1},  # S3Store retries by itself
            **checksums,
        )
        client = boto3.session.Session().client("s3", config=config)
    except NO_CREDENTIALS as error:
        raise no_credentials("use S3", error) from error
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"the AWS settings of this environment are invalid: {public(str(error))}") from error
    _warn_of_plain_http(public(client.meta.endpoint_url))
    return client


@functools.cache
def _warn_of_plain_http(endpoint: str) -> None:
    address = urlsplit(endpoint)
    if address.scheme == "http" and not _is_loopback(address.hostname or ""):
        logger.warning(
            "%s IS NOT ENCRYPTED: anyone on the network can read and change a run's data, and checkpoints contain "
            "pickles. Use an https endpoint unless the network is trusted.",
            endpoint,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
