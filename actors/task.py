"""One attempt of a task on Ray: its messages, its process, and its verified end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.listening import LISTEN_S, WARN_EVERY_S, listen
from actors.nodes import nodes, staying_nodes, was_lost
from actors.worker import end_process, run_task
from actors.worker_identity import WorkerIdentity, forget_announced, session_logs
from pipeline.execution.protocol import Resources

logger = logging.getLogger(__name__)

# A killed process ends in a moment, unless its disk hangs. Ray needs longer to notice that a machine is gone.
_END_S = 60.0


class TaskSilent(Exception):
    """A task that has begun gave no sign of life for too long."""


class TaskTry:
    """One attempt of a task. The constructor submits it to Ray.

    Args:
        task: Generator function, see ``pipeline.execution.protocol.Executor.run``.
        arguments: Arguments of the task.
        resources: CPUs and GPUs that a node must have free.
        check: Check that raises on an unsuitable worker; called in the worker before the task begins.
        timeout_s: Seconds of silence after which a task that has begun counts as hung.

    Attributes:
        name: Name of the task in messages and in Ray's dashboard.
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
            num_cpus=resources.threads, num_gpus=resources.gpus, num_returns="streaming", name=self.name,
            scheduling_strategy="DEFAULT",  # not within the resources of a trial of Ray Tune, see ``Place``
        )  # fmt: skip
        self._updates = run.remote(task, arguments, resources.threads, check, self._key)

    @property
    def worker(self) -> WorkerIdentity | None:
        """Process of the task, also after its end; None if it has not begun, or if the cluster does not answer."""
        if self._worker is None:
            try:
                self._worker = WorkerIdentity.announced(self._key)
            except RayError as error:
                logger.warning("the cluster does not report the process of %s: %s", self.name, error)
        return self._worker

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Iterate over the task's messages, see ``actors.worker.run_task``.

        The wait for the first message has no limit, because the task may wait for a node.

        Raises:
            TaskSilent: The task has begun and hangs.
            RayError: The task raised, or its worker died.
        """
        silent_s = said_s = 0.0
        begun = False
        while True:
            ready, listened_s = listen([self._updates])
            if ready is None:
                silent_s += listened_s
                if begun and silent_s >= self._timeout_s:
                    raise TaskSilent
                if not begun and silent_s - said_s >= WARN_EVERY_S:
                    said_s = silent_s
                    logger.warning("%s", self._waiting_message())
                continue
            reference = next(self._updates, None)
            if reference is None:
                return
            yield ray.get(reference)
            silent_s, begun = 0.0, True

    def lost_its_node(self) -> bool:
        """Whether the task died with its node.

        If the task had not begun, its node is not known; then, whether any node was lost since the task was submitted.
        """
        worker = self.worker
        if worker is None:
            return was_lost(lambda: self._staying_before - staying_nodes())
        if worker.node_id == ray.get_runtime_context().get_node_id():  # the driver's own node: no need to wait
            return worker.node_id not in staying_nodes()
        return was_lost(lambda: worker.node_id not in staying_nodes())

    def cancel(self) -> None:
        """Have Ray kill the task, without waiting for its end."""
        ray.cancel(self._updates, force=True)

    def end(self) -> bool:
        """Kill the task and wait for the end of its process, so that it does not write next to the next attempt.

        Returns:
            Whether the process has certainly ended.
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
        except RayError as error:  # a draining node takes no more tasks, and the process ends with it
            logger.warning("%s cannot be ended on its node; waiting for the end of the node: %s", self.name, error)
            return was_lost(lambda: worker.node_id not in {node.id for node in nodes() if node.alive}, _END_S)

    def forget(self) -> None:
        """Remove the task's identity from Ray's control service."""
        with suppress(RayError):  # it ends with the cluster
            forget_announced(self._key)

    def where(self) -> str:
        """Location of the log of its process, as text."""
        worker = self.worker
        return worker.log_location() if worker is not None else f"logs of this node's workers: {session_logs()}"

    def _waiting_message(self) -> str:
        largest = max((node for node in nodes() if node.alive), key=lambda node: (node.num_gpus, node.num_cpus))
        gpus = " and a GPU" if self._resources.gpus else ""
        return (
            f"{self.name} waits for a node with {self._resources.threads} free CPUs{gpus}; the largest that is up has "
            f"{largest.num_cpus:g} CPUs and {largest.num_gpus:g} GPUs. If no autoscaler adds one (`ray status`), add "
            "such a node; or stop and lower vae.threads and mdnrnn.threads, or set device to 'cpu' (in a new "
            "--run-dir, because these keys change the bits of the result)"
        )
