"""Identity of the process of an actor or a task, and whether its results may be mixed with the driver's."""

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
from pipeline.base.exactness import refuse_or_accept
from pipeline.base.machine import process_started
from pipeline.config.identity import code_version, cpu_kind, diff, library_versions

logger = logging.getLogger(__name__)

_NAMESPACE = "world-models"


@dataclass(frozen=True)
class WorkerIdentity:
    """Location of a worker process, and the properties on which the bits of its results depend.

    Attributes:
        node_id: Ray's node ID; None for a process that is not on Ray.
        host: Host name.
        pid: Process ID.
        started: Start of the process, see ``pipeline.base.machine.process_started``.
        niceness: Nice value of the process.
        logs: Folder of the node's logs, on ``host``; None for a process that is not on Ray.
        cpu_kind: Kind of CPU, see ``pipeline.config.identity.cpu_kind``.
        code_version: Version of the sources.
        versions: Version of each library.
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
        """Identity of the calling process."""
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
        """Refuse a worker with other sources, or in an exact run one with another kind of CPU or library version.

        Args:
            driver: Identity of the driver.
            exact: Whether the run must be bit-for-bit reproducible.
            on_gpu: Whether the worker computes on a GPU, so that the kind of CPU does not matter.

        Raises:
            ConfigError: The worker differs. The message names the difference and the remedy.
        """
        if self.code_version != driver.code_version:
            raise ConfigError(
                f"the worker on {self.host} runs code version {self.code_version}, the driver runs "
                f"{driver.code_version}: install the same sources on every node, or submit them with --working-dir"
            )
        differences = diff(driver._bits_depend_on(on_gpu), self._bits_depend_on(on_gpu))
        if differences:
            message = f"the worker on {self.host} differs from the driver:\n" + "\n".join(differences)
            refuse_or_accept(message, "Use nodes of one kind and one image", exact=exact)

    def warn_if_starved(self) -> None:
        """Warn if a cluster's worker has a low priority, so that busy programs starve it."""
        if self.niceness > 0:
            _warn_of_niceness(self.host, self.niceness)

    def _bits_depend_on(self, on_gpu: bool) -> Mapping[str, str]:
        return self.versions if on_gpu else {"CPU": self.cpu_kind, **self.versions}

    def announce(self, key: str) -> None:
        """Store this identity in Ray's control service, where it outlives the process.

        Messages that a task has not streamed to its driver yet are lost with the process.

        Args:
            key: Unique key that the driver chose.
        """
        internal_kv._internal_kv_put(key, pickle.dumps(self), namespace=_NAMESPACE)

    @classmethod
    def announced(cls, key: str) -> WorkerIdentity | None:
        """The identity that was announced under a key; None if there is none."""
        found = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        return None if found is None else pickle.loads(found)

    def log_location(self) -> str:
        """Location of the log of this process, as text."""
        logs = self.logs or session_logs()
        found = sorted(logs.glob(f"worker-*-{self.pid}.err")) if self.host == socket.gethostname() else []
        path = found[0] if found else logs / f"worker-*-{self.pid}.err"
        return f"the worker's log: {path} (and .out next to it) on {self.host}, pid {self.pid}"


@cache
def _warn_of_niceness(host: str, niceness: int) -> None:
    """Warn once for each node."""
    logger.warning(
        "the workers on %s run at nice %d. Next to any busy program they get a few hundredths of a core, and may "
        "count as hung (execution.timeout_s). Start the node with RAY_worker_niceness=0 in its environment, as "
        "cluster/*.yaml do; Ray's default is 15",
        host, niceness,
    )  # fmt: skip


def forget_announced(key: str) -> None:
    """Remove the identity that was announced under a key, if there is one."""
    internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def session_logs() -> Path:
    """The folder of this node's Ray logs."""
    context = ray.get_runtime_context()
    return Path(str(context.get_temp_dir()), str(context.get_session_name()), "logs")


def runs_uploaded_sources() -> bool:
    """Whether this process, a driver or a worker, runs the sources that were uploaded with a job."""
    return "working_dir" in ray.get_runtime_context().runtime_env
