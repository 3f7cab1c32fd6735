"""Who answers for an actor or a task, and whether its results may be mixed with the driver's."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ray
from ray.experimental import internal_kv

from pipeline.base.errors import ConfigError
from pipeline.base.machine import process_started
from pipeline.config.identity import code_version, cpu_kind, diff, library_versions

logger = logging.getLogger(__name__)

_NAMESPACE = "world-models"


@dataclass(frozen=True)
class WorkerIdentity:
    """Where a worker process runs, and what its bits depend on.

    Attributes:
        node_id: Ray's; None of a process that is not on Ray.
        started: when the process began, see ``pipeline.base.machine.process_started``.
        niceness: its nice value.
        logs: the folder of its node's logs, on ``host``; None of a process that is not on Ray.
    """

    node_id: str | None
    host: str
    pid: int
    started: float | None
    niceness: int
    logs: Path | None
    cpu_kind: str
    code_version: str
    versions: Mapping[str, str]

    @classmethod
    def of_this_process(cls) -> WorkerIdentity:
        on_ray = ray.is_initialized()
        return cls(
            node_id=ray.get_runtime_context().get_node_id() if on_ray else None,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=process_started(os.getpid()),
            niceness=os.getpriority(os.PRIO_PROCESS, 0),
            logs=session_logs() if on_ray else None,
            cpu_kind=cpu_kind(),
            code_version=code_version(),
            versions=library_versions(),
        )

    def check(self, driver: WorkerIdentity, *, exact: bool, on_gpu: bool = False) -> None:
        """Refuse a worker of other code, or, where a run must be exact, of another kind of CPU or library version.

        Args:
            driver: whom it would work for.
            exact: whether the run must be.
            on_gpu: whether it computes on a GPU: its CPU's kind is no matter then.

        Raises:
            ConfigError: says which differs and what to do.
        """
        if self.code_version != driver.code_version:
            raise ConfigError(
                f"the worker on {self.host} runs code version {self.code_version}, the driver runs "
                f"{driver.code_version}: install the same sources on every node, or submit them with --working-dir"
            )
        differences = diff(driver._bits_depend_on(on_gpu), self._bits_depend_on(on_gpu))
        if differences:
            message = f"the worker on {self.host} differs from the driver:\n" + "\n".join(differences)
            if exact:
                raise ConfigError(
                    f"{message}\nResults would not be the same to the bit. Use nodes of one kind and one image, or "
                    "accept it with -o execution.exact=false"
                )
            logger.warning("%s\naccepted, as execution.exact is false", message)

    def warn_if_starved(self, driver: WorkerIdentity) -> None:
        """Say of a worker of a cluster that it gets little of its node's CPU once another program is busy there."""
        if self.niceness > driver.niceness:
            _warn_of_niceness(self.host, self.niceness)

    def _bits_depend_on(self, on_gpu: bool) -> Mapping[str, str]:
        return self.versions if on_gpu else {"CPU": self.cpu_kind, **self.versions}

    def announce(self, key: str) -> None:
        """Leave word in Ray's control service, where it stays if this process dies in the next moment.

        What a task streams to its driver is lost with the process.

        Args:
            key: Unique key, which the driver has chosen.
        """
        internal_kv._internal_kv_put(key, pickle.dumps(self), namespace=_NAMESPACE)

    @classmethod
    def announced(cls, key: str) -> WorkerIdentity | None:
        """The identity that was announced under a key; None where none was."""
        found = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        return None if found is None else pickle.loads(found)

    def log_location(self) -> str:
        """Where the output of this process lies."""
        logs = self.logs or session_logs()
        found = sorted(logs.glob(f"worker-*-{self.pid}.err")) if self.host == socket.gethostname() else []
        path = found[0] if found else logs / f"worker-*-{self.pid}.err"
        return f"the worker's log: {path} (and .out beside it) on {self.host}, pid {self.pid}"


@cache
def _warn_of_niceness(host: str, niceness: int) -> None:
    """Once for each node."""
    logger.warning(
        "the workers on %s run at nice %d: beside any busy program they get a few hundredths of a core, and may be "
        "taken for hung (execution.timeout_s). Start the node with RAY_worker_niceness=0 in its environment, as "
        "cluster/*.yaml do; Ray's own default is 15",
        host, niceness,
    )  # fmt: skip


def forget_announced(key: str) -> None:
    """Remove the identity that was announced under a key, if one was."""
    internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def session_logs() -> Path:
    """The folder of this node's Ray logs."""
    context = ray.get_runtime_context()
    return Path(str(context.get_temp_dir()), str(context.get_session_name()), "logs")
