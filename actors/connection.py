"""Connection of a driver to Ray: joining a named cluster, or starting a local Ray for one run."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.job_config import JobConfig

import actors
from actors.nodes import preserved_sigterm_handler
from pipeline.base.errors import ClusterError, ConfigError
from pipeline.base.ray_environment import cluster_address
from pipeline.config.schema import ExecutionConfig

logger = logging.getLogger(__name__)

_ANSWER_S = 10.0  # for a named head, which may need a moment after its start
_TRY_S = 3.0
_SLOW_S = 15.0  # after which the start of a local Ray counts as slow

# Start of an HTTP/2 connection to Ray's control service: the preface, and an empty settings frame.
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4

_LOCAL = "unset RAY_ADDRESS and leave execution.ray_address null for a local Ray"
_PRIVATE = b"world-models/private-to-process"


class _DriverPathsFirst(JobConfig):  # type: ignore[misc]
    """Makes Ray's workers import the same packages as this driver.

    Ray puts the current folder of the command first on the path of its workers, so that they would import any package
    of that folder with the name `pipeline`. Of the folders that Ray adds, the last comes first.
    """

    def _get_proto_job_config(self) -> Any:
        ours = str(Path(actors.__file__).parent.parent)
        if not self._runtime_env_has_working_dir() and self._py_driver_sys_path[-1:] != [ours]:
            self._py_driver_sys_path.append(ours)
            self._cached_pb = None
        return super()._get_proto_job_config()


def connect(execution: ExecutionConfig, num_cpus: int) -> bool:
    """Join the cluster that the config or the environment names, or start a local Ray.

    Args:
        execution: Settings, which may name a cluster.
        num_cpus: Number of CPUs of a local Ray.

    Returns:
        Whether Ray is local.

    Raises:
        ConfigError: The cluster at the address cannot be joined.
        ClusterError: No local Ray starts.
    """
    address = cluster_address(execution.ray_address)
    with preserved_sigterm_handler():
        if address is not None:
            _join(address)
            return False
        _start(num_cpus)
        return True


def _join(address: str) -> None:
    if "://" in address:
        raise ConfigError(
            f"{address} is the address of a job server or of Ray's client. A driver joins a cluster by HOST:PORT (the "
            "address of `ray start --head`, default port 6379). To run as a job: world-models submit --address"
        )
    try:
        place = services.canonicalize_bootstrap_address_or_die(address)
        host, _, port = place.rpartition(":")
        why = _refusal_reason(host.strip("[]"), int(port))
        if why is None:
            # With "auto", Ray looks for a token by itself.
            ray.init(
                address="auto" if address == "auto" else place,
                logging_level=logging.WARNING,
                job_config=_DriverPathsFirst(),
            )
    except (ConnectionError, ValueError, OSError) as error:
        why = str(error).rstrip(".")
    except (RuntimeError, RayError) as error:  # another version of Ray or Python, or a token that the cluster refuses
        ray.shutdown()
        raise ConfigError(f"the Ray cluster at {address} cannot be joined: {error}") from error
    if why is not None:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {why}. Start one with `ray start --head`, set RAY_AUTH_MODE=token "
            f"if it asks for a token, or {_LOCAL}"
        )
    owner = internal_kv._internal_kv_get(_PRIVATE)
    if owner is not None:
        ray.shutdown()
        raise ConfigError(
            f"the Ray at {address} is the private one of another run (process {owner.decode()}) and ends with it. "
            f"Name a cluster, or {_LOCAL}"
        )


def _refusal_reason(host: str, port: int) -> str | None:
    """Reason why an address cannot be joined; None if Ray's control service may listen there.

    Ray itself waits for 15 minutes if nothing listens there.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return None  # it would not answer this unencrypted request
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=_TRY_S) as connection:
                connection.sendall(_HTTP2)
                answer = connection.recv(9)
            if len(answer) >= 4 and answer[3] == _SETTINGS:
                return None
            why = "another server listens there, perhaps the dashboard"
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() >= deadline:
            return why
        time.sleep(0.5)


def _start(num_cpus: int) -> None:
    """Start a Ray for this run only: without dashboard, on loopback (prepared by the CLI before it imports Ray)."""
    logger.info("starting a local Ray")
    for last in (False, True):
        try:
            _init(num_cpus)
            break
        except Exception as error:  # Ray raises errors of many classes
            ray.shutdown()
            if last:
                raise ClusterError(
                    f"no local Ray starts on this machine, in two attempts: {_first_line(error)}. Its logs are in "
                    "/tmp/ray/session_latest/logs. Ray needs some memory, and disk space in /tmp. To run without "
                    "Ray: -o execution.executor=in-process"
                ) from error
            logger.warning("the local Ray did not start (%s): trying once more", _first_line(error))
    internal_kv._internal_kv_put(_PRIVATE, str(os.getpid()).encode())


def _init(num_cpus: int) -> None:
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # Ray's default, 30, is too short on a busy machine
    slow = threading.Timer(_SLOW_S, logger.warning, ["the local Ray starts slowly: is this machine busy?"])
    slow.daemon = True
    slow.start()
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            job_config=_DriverPathsFirst(),
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )
    finally:
        slow.cancel()


def is_private() -> bool:
    """Whether the Ray that this process has joined is one that ``connect`` started."""
    return internal_kv._internal_kv_get(_PRIVATE) is not None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0].rstrip(".")
