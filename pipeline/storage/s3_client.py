"""The boto3 client that a process's S3 stores share. Imported when the first request is made: boto3 takes its time."""

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

# Several threads read and write at once; a connection more than the pool holds is made anew for each request.
_CONNECTIONS = 16

_lock = threading.Lock()
_clients: dict[tuple[Any, ...], Any] = {}


def _new_lock() -> None:
    """In a child: whoever held the lock at the fork is not there to release it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def shared_client(connect_timeout: float, read_timeout: float) -> Any:
    """The client of this process; another one where the timeouts or the AWS environment are others.

    Raises:
        ConfigError: the AWS settings cannot be used.
        StorageError: there are no credentials.
    """
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    # A child finds its parent's clients under another pid, and leaves them alone: to close them might wait for a lock.
    key = (os.getpid(), connect_timeout, read_timeout, environment)
    with _lock:
        if key not in _clients:
            _clients[key] = _made_client(connect_timeout, read_timeout)
        return _clients[key]


def _made_client(connect_timeout: float, read_timeout: float) -> Any:
    # Bytes are verified by their SHA-256 one layer up, and not every server knows S3's newer checksums.
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
            retries={"mode": "standard", "total_max_attempts": 1},  # S3Store tries again itself
            **checksums,
        )
        client = boto3.session.Session().client("s3", config=config)
    except NO_CREDENTIALS as error:
        raise no_credentials("use S3", error) from error
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"the AWS settings of this environment cannot be used: {public(str(error))}") from error
    _warn_of_plain_http(public(client.meta.endpoint_url))
    return client


@functools.cache
def _warn_of_plain_http(endpoint: str) -> None:
    address = urlsplit(endpoint)
    if address.scheme == "http" and not _is_loopback(address.hostname or ""):
        logger.warning(
            "%s IS NOT ENCRYPTED: whoever is on the way can read and change a run's data, and its checkpoints hold "
            "pickles. Give an https endpoint unless the network is trusted.",
            endpoint,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
