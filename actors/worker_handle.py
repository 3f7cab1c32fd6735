"""Driver-side handle of a pool's worker: its actor and the messages to it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import ray

from actors.placement import Place
from actors.worker import WorkerActor
from actors.worker_identity import WorkerIdentity, session_logs
from pipeline.execution.jobs import Ticket
from pipeline.execution.protocol import Worker
from pipeline.execution.worker_state import ScheduledWorker


class WorkerHandle(ScheduledWorker):
    """Driver-side handle of one worker.

    Its messages are pickled here, because Ray's handling of arguments takes half of the time of a call, and that time
    limits how many workers a driver can keep busy.

    Args:
        label: Name of the actor and its calls in Ray's dashboard and logs.
        place: Place where Ray may put the actor.
        jobs_at_once: Maximum number of jobs that the worker has begun and not finished.

    Attributes:
        actor: Ray's actor handle.
        identity: Identity of the worker's process; None until the process is up.
        waiting_for: Reference of the next answer; None if nothing was requested.
        recall_answer: Reference of the answer to the last recall; None if none is awaited.
        on_head: Whether the worker is on the head because there is no other node.
    """

    def __init__(self, label: str, place: Place, jobs_at_once: int) -> None:
        super().__init__(jobs_at_once)
        name = f"{label}-{uuid4().hex[:8]}"
        self.actor: Any = WorkerActor.options(name=name, **place.options).remote(label)  # type: ignore[attr-defined]
        # Ray names tasks after the actor's label only once the worker reports it.
        self._exchange = self.actor.exchange.options(name=f"{label}.run")
        self.identity: WorkerIdentity | None = None
        self.waiting_for: Any = self.actor.identity.remote()
        self.recall_answer: Any = None
        self.on_head = place.on_head
        self._failures = 0

    def build(self, factory: Callable[..., Worker], arguments: Any) -> None:
        """Have the actor build its worker."""
        self.waiting_for = self.actor.build.remote(factory, arguments)

    def kill(self) -> None:
        """Kill the actor."""
        ray.kill(self.actor)

    def ping(self) -> None:
        """Request an answer of an unreachable worker.

        Ray will know in a moment whether the process has ended, and in some seconds whether its node was lost. It
        reports that as the answer to any call.
        """
        self.waiting_for = self.actor.identity.remote()

    def send(self, tickets: Sequence[Ticket], batching_delay_s: float | None) -> None:
        """Send jobs to the worker, and request results unless ``batching_delay_s`` is None."""
        if batching_delay_s is None:
            self.actor.add.remote(pickle.dumps((tickets, self._failures)))
        else:
            self.waiting_for = self._exchange.remote(pickle.dumps((tickets, self._failures, batching_delay_s)))

    def recall(self, ids: Sequence[int]) -> None:
        """Recall jobs. The answer has the IDs of the tickets that the worker released."""
        self.recall_answer = self.actor.recall.remote(ids)

    def take_results(self, answer: bytes) -> list[tuple[int, Any, float]]:
        """Unpack an answer into its results: (ID of the ticket, result, seconds) each."""
        results: list[tuple[int, Any, float]] = pickle.loads(answer)
        return results

    def note_raised(self) -> None:
        """Note that the worker raised: it dropped its jobs, and drops messages sent before it knows of the failure."""
        self._failures += 1

    def where(self) -> str:
        """See ``ScheduledWorker.where``."""
        if self.identity is None:
            return f"the worker's log is under {session_logs()}"
        return self.identity.log_location()
