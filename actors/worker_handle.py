"""Driver-side handle of a pool's worker: its actor, its state and the jobs dispatched to it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from itertools import islice
from typing import Any
from uuid import uuid4

import ray

from actors.failures import Failure
from actors.identity import WorkerIdentity, session_logs
from actors.placement import Place
from actors.worker import WorkerActor
from pipeline.execution.protocol import Worker


class WorkerState(Enum):
    """State of a worker, as its driver sees it."""

    REQUESTED = "its actor is created, and may wait for a node"
    BUILDING = "its process is up and builds the worker"
    READY = "it receives jobs and returns results"
    SLOW = "it was silent for long: its jobs also run elsewhere, until it answers"
    DRAINING = "its node is going away or is not for workers: it gets no new jobs"
    UNREACHABLE = "its connection failed: did the worker die, or its node?"
    REMOVED = "its actor is killed"


class WorkerHandle:
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
        state: State of the worker.
        built: Whether the worker was built, in whatever state it is now.
        waiting_for: Reference of the next answer; None if nothing was requested.
        jobs: Jobs that were dispatched to the worker and have no result from it, by ID, in the order of their start.
        heard_at: Pool clock at the last answer, or when the worker last had nothing to answer.
        copied: Whether the worker's jobs were also dispatched to others, because it has been silent for long.
        on_head: Whether the worker is on the head because there is no other node.
        exclusive: Whether the worker has a job that must be its only one.
        connection_failure: Failure of the connection; None in other states than ``UNREACHABLE``.
        begun_when_lost: IDs of the jobs that the worker had begun when its connection failed.
    """

    def __init__(self, label: str, place: Place, jobs_at_once: int) -> None:
        name = f"{label}-{uuid4().hex[:8]}"
        self.actor: Any = WorkerActor.options(name=name, **place.options).remote(label)  # type: ignore[attr-defined]
        # Ray names tasks after the actor's label only once the worker reports it.
        self._exchange = self.actor.exchange.options(name=f"{label}.run")
        self.identity: WorkerIdentity | None = None
        self.state = WorkerState.REQUESTED
        self.built = self.copied = self.exclusive = False
        self.waiting_for: Any = self.actor.identity.remote()
        self.jobs: dict[Hashable, Any] = {}
        self.heard_at = 0.0
        self.on_head = place.on_head
        self.connection_failure: Failure | None = None
        self.begun_when_lost: list[Hashable] = []
        self._jobs_at_once = jobs_at_once
        self._failures = 0
        self._reported_empty = False

    @property
    def node_id(self) -> str | None:
        """ID of the worker's node; None until its process is up."""
        return None if self.identity is None else self.identity.node_id

    @property
    def takes_jobs(self) -> bool:
        """Whether jobs can be dispatched to the worker."""
        return self.state is WorkerState.READY and not self.exclusive

    @property
    def unreachable(self) -> bool:
        """Whether the connection to the worker failed."""
        return self.state is WorkerState.UNREACHABLE

    @property
    def staying(self) -> bool:
        """Whether the worker is, or may become, one that receives jobs."""
        return self.state not in (WorkerState.DRAINING, WorkerState.UNREACHABLE, WorkerState.REMOVED)

    def build(self, factory: Callable[..., Worker], arguments: Any) -> None:
        """Have the actor build its worker: REQUESTED to BUILDING."""
        self.state = WorkerState.BUILDING
        self.waiting_for = self.actor.build.remote(factory, arguments)

    def mark_built(self) -> None:
        """Note that the worker is built: BUILDING to READY; a draining worker stays DRAINING."""
        self.built = True
        if self.state is WorkerState.BUILDING:
            self.state = WorkerState.READY

    def mark_slow(self) -> None:
        """Note that the worker's jobs are also dispatched to others: READY to SLOW; others keep their state."""
        self.copied = True
        if self.state is WorkerState.READY:
            self.state = WorkerState.SLOW

    def mark_answered(self) -> None:
        """Note results: SLOW to READY; others keep their state."""
        self.copied = False
        if self.state is WorkerState.SLOW:
            self.state = WorkerState.READY

    def drain(self) -> None:
        """Give the worker no more jobs: any state of ``staying`` to DRAINING."""
        self.state = WorkerState.DRAINING

    def kill(self) -> None:
        """Kill the actor: any state to REMOVED."""
        self.state = WorkerState.REMOVED
        ray.kill(self.actor)

    def mark_unreachable(self, failure: Failure) -> None:
        """Note a failed connection, and ping the worker: any state to UNREACHABLE.

        Ray will know in a moment whether the process has ended, and in some seconds whether its node was lost. It
        reports that as the answer to any call.
        """
        self.state = WorkerState.UNREACHABLE
        self.connection_failure, self.begun_when_lost = failure, self.begun()
        self.ping()

    def ping(self) -> None:
        """Request an answer of an unreachable worker."""
        self.waiting_for = self.actor.identity.remote()

    def dispatch(self, jobs: Sequence[Any], batching_delay_s: float) -> None:
        """Send jobs to the worker, and request results."""
        self.jobs.update((job.id, job) for job in jobs)
        if self.waiting_for is None:
            self.waiting_for = self._exchange.remote(pickle.dumps((jobs, self._failures, batching_delay_s)))
        else:
            self.actor.add.remote(pickle.dumps((jobs, self._failures)))

    def request_results(self, batching_delay_s: float) -> None:
        """Request more results, if the worker has jobs."""
        if self.jobs and self.waiting_for is None and not self.unreachable:
            self.dispatch([*self.jobs.values()] if self._reported_empty else [], batching_delay_s)

    def take_results(self, answer: bytes) -> list[tuple[Hashable, Any, float]]:
        """Unpack an answer into its results: (job ID, result, seconds) each."""
        results: list[tuple[Hashable, Any, float]] = pickle.loads(answer)
        self.waiting_for = None
        # Messages may overtake each other: the recall of a job may have removed a later dispatch of it, too.
        self._reported_empty = not results
        for job_id, _, _ in results:
            self.jobs.pop(job_id, None)
        self.exclusive = self.exclusive and bool(self.jobs)
        return results

    def clear_jobs(self) -> None:
        """Forget all jobs and messages of a worker that raised: it has dropped them."""
        self.jobs, self.waiting_for, self.exclusive = {}, None, False
        self.mark_answered()
        self._failures += 1

    def begun(self) -> list[Hashable]:
        """IDs of the jobs that the worker may have begun: it begins them in order."""
        return list(islice(self.jobs, self._jobs_at_once))

    def request_recall(self, count: int | None = None) -> tuple[list[Hashable], Any]:
        """Recall jobs that the worker has not begun.

        Args:
            count: Maximum number of jobs, the last ones; None: all.

        Returns:
            IDs of the recalled jobs, and the reference of the answer, which has the IDs of the jobs that the worker
            released. No IDs and None if the worker can have no such job.
        """
        first = self._jobs_at_once if count is None else max(self._jobs_at_once, len(self.jobs) - count)
        ids = list(islice(self.jobs, first, None))
        return ids, self.actor.recall.remote(ids) if ids else None

    def remove_jobs(self, ids: Sequence[Hashable]) -> list[Any]:
        """Remove the jobs with these IDs from the worker's; returns the jobs."""
        return [self.jobs.pop(job_id) for job_id in ids if job_id in self.jobs]

    def where(self) -> str:
        """Location of the worker's log, as text."""
        if self.identity is None:
            return f"the worker's log is under {session_logs()}"
        return self.identity.log_location()


class WorkerFailed(Exception):
    """A call to a worker of a pool failed.

    Attributes:
        worker: Worker that was called.
        failure: Failure.
    """

    def __init__(self, worker: WorkerHandle, failure: Failure) -> None:
        super().__init__(f"{failure.what}; {worker.where()}")
        self.worker = worker
        self.failure = failure
