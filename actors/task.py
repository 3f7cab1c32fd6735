"""One try of a task on Ray: what it sends, which process it is in, and its certain end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.identity import WorkerIdentity, forget_announced, session_logs
from actors.listening import LISTEN_S, SAY_EVERY_S, listen
from actors.nodes import nodes, staying_nodes, was_lost
from actors.worker import end_process, run_task
from pipeline.execution.protocol import Resources

logger = logging.getLogger(__name__)

# A killed process is gone in a moment, unless its disk hangs. Ray needs longer to see that a machine is gone.
_END_S = 60.0


class Silent(Exception):
    """A task that had begun gave no sign of life for too long."""


class TaskTry:
    """One try of a task. It is handed to Ray at once.

    Args:
        task: Generator function, see ``pipeline.execution.protocol.Executor.run``.
        arguments: Its arguments.
        resources: CPUs and GPUs that a node must have free.
        check: Raises on a worker that is not fit for it; called there, before anything begins.
        timeout_s: Seconds of silence after which a task that has begun hangs.
    """

    def __init__(
        self,
        task: Callable[..., Any],
        arguments: tuple[Any, ...],
        *,
        resources: Resources,
        check: Callable[[WorkerIdentity], None],
        timeout_s: float,
    ) -> None:
        self.name = task.__module__.rpartition(".")[2]
        self._resources = resources
        self._timeout_s = timeout_s
        self._key = uuid4().hex
        self._worker: WorkerIdentity | None = None
        self._staying_before = staying_nodes()
        run = run_task.options(
            num_cpus=resources.threads, num_gpus=resources.gpus, num_returns="streaming", name=self.name
        )
        self._updates = run.remote(task, arguments, resources.threads, check, self._key)

    @property
    def worker(self) -> WorkerIdentity | None:
        """The process that it is in, or was; None where it did not come to begin anything, or cannot be told."""
        if self._worker is None:
            try:
                self._worker = WorkerIdentity.announced(self._key)
            except RayError as error:
                logger.warning("the cluster does not tell which process %s is in: %s", self.name, error)
        return self._worker

    def messages(self) -> Iterator[tuple[str, Any]]:
        """What it sends, see ``actors.worker.run_task``. The first message is waited for as long as it takes: the task
        may be pending.

        Raises:
            Silent: It had begun, and hangs.
            RayError: It raised, or its worker died.
        """
        silent_s = said_s = 0.0
        begun = False
        while True:
            ready, listened_s = listen([self._updates])
            if ready is None:
                silent_s += listened_s
                if begun and silent_s >= self._timeout_s:
                    raise Silent
                if not begun and silent_s - said_s >= SAY_EVERY_S:
                    said_s = silent_s
                    logger.warning("%s", self._still_waiting())
                continue
            reference = next(self._updates, None)
            if reference is None:
                return
            yield ray.get(reference)
            silent_s, begun = 0.0, True

    def lost_its_node(self) -> bool:
        """Whether it died because its machine was taken away.

        Where it had not begun, its machine is not known: whether any machine was lost since it was handed in.
        """
        worker = self.worker
        if worker is None:
            return was_lost(lambda: self._staying_before - staying_nodes())
        if worker.node_id == ray.get_runtime_context().get_node_id():  # the driver's own: nothing to wait for
            return worker.node_id not in staying_nodes()
        return was_lost(lambda: worker.node_id not in staying_nodes())

    def cancel(self) -> None:
        """Tell Ray to kill it; it may live for a moment longer."""
        ray.cancel(self._updates, force=True)

    def end(self) -> bool:
        """Kill it and wait until its process is gone, so that it writes nothing beside the next try.

        Returns:
            Whether it is gone for certain.
        """
        self.cancel()
        worker = self.worker
        if worker is None or worker.node_id is None or worker.started is None:
            return False
        there = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
        gone = end_process.options(scheduling_strategy=there).remote(worker.pid, worker.started, _END_S)
        try:
            return bool(ray.get(gone, timeout=_END_S + LISTEN_S))
        except GetTimeoutError:
            ray.cancel(gone, force=True)
            return False
        except RayError as error:  # a machine that is about to go takes no task more, and its process goes with it
            logger.warning("%s cannot be ended on its node, whose end is waited for: %s", self.name, error)
            return was_lost(lambda: worker.node_id not in {node.id for node in nodes() if node.alive}, _END_S)

    def forget(self) -> None:
        """Remove what Ray's control service keeps of it."""
        with suppress(RayError):  # it goes with the cluster
            forget_announced(self._key)

    def where(self) -> str:
        """Where the output of its process lies."""
        worker = self.worker
        return worker.log_location() if worker is not None else f"logs of this node's workers: {session_logs()}"

    def _still_waiting(self) -> str:
        largest = max((node for node in nodes() if node.alive), key=lambda node: (node.num_gpus, node.num_cpus))
        gpus = " and a GPU" if self._resources.gpus else ""
        return (
            f"{self.name} waits for a node with {self._resources.threads} free CPUs{gpus}; the largest that is up has "
            f"{largest.num_cpus:g} CPUs and {largest.num_gpus:g} GPUs. Unless an autoscaler brings one (`ray status`), "
            "add one; or stop and lower vae.threads and mdnrnn.threads, or set device to 'cpu' (in a new --run-dir: "
            "they change bits)"
        )
