"""A worker as the scheduler sees it: its state, the jobs that it has, and the transitions."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from enum import Enum
from itertools import islice, takewhile

from pipeline.execution.failures import Failure
from pipeline.execution.jobs import Ticket


class WorkerState(Enum):
    """State of a worker, as its driver sees it."""

    REQUESTED = "it was requested, and may wait for a node"
    BUILDING = "its process is up and builds the worker"
    READY = "it receives jobs and returns results"
    SLOW = "it was silent for long: its jobs also run elsewhere, until it answers"
    DRAINING = "its node is going away or is not for workers: it gets no new jobs"
    UNREACHABLE = "its connection failed: did the worker die, or its node?"
    REMOVED = "it is ended"


class ScheduledWorker:
    """A worker in the scheduler. An executor derives its own handle of a worker from this class.

    Args:
        lanes: Maximum number of jobs that the worker has begun and not finished.

    Attributes:
        state: State of the worker.
        built: Whether the worker was built, regardless of its present state.
        node_id: ID of the worker's node; None until its process is up.
        jobs: Tickets of the jobs that were sent to the worker and have no result from it, by ID, in the order of
            their start.
        recalled: IDs of the tickets that the worker was asked to release; None while no answer is awaited.
        recalled_at: Time of the recall, in seconds.
        heard_at: Time of the last answer, or when the worker last had nothing to answer, in seconds.
        asked: Whether the worker was asked for its next results.
        copied: Whether the worker's jobs were also sent to others, because it has been silent for long.
        exclusive: Whether the worker has a job that must be its only one.
        failure: Failure of the connection; None if it has not failed.
        begun_when_lost: IDs of the tickets of the jobs that the worker may have begun when its connection failed.
    """

    def __init__(self, lanes: int) -> None:
        self.state = WorkerState.REQUESTED
        self.built = self.asked = self.copied = self.exclusive = False
        self.node_id: str | None = None
        self.jobs: dict[int, Ticket] = {}
        self.recalled: list[int] | None = None
        self.recalled_at = self.heard_at = 0.0
        self.failure: Failure | None = None
        self.begun_when_lost: list[int] = []
        self._unresolved: list[int] = []
        self._lanes = lanes

    @property
    def takes_jobs(self) -> bool:
        """Whether jobs can be sent to the worker."""
        return self.state is WorkerState.READY and not self.exclusive

    @property
    def unreachable(self) -> bool:
        """Whether the connection to the worker failed."""
        return self.state is WorkerState.UNREACHABLE

    @property
    def staying(self) -> bool:
        """Whether the worker is, or may become, one that receives jobs."""
        return self.state not in (WorkerState.DRAINING, WorkerState.UNREACHABLE, WorkerState.REMOVED)

    @property
    def free_lanes(self) -> int:
        """Number of jobs that the worker could begin at once; 0 if it takes none."""
        return max(0, self._lanes - len(self.jobs)) if self.takes_jobs else 0

    @property
    def surplus(self) -> int:
        """Number of jobs that the worker surely has not begun."""
        return max(0, len(self.jobs) - self._lanes)

    def silent_s(self, now: float) -> float:
        """Seconds of silence of a worker that owes an answer; 0 while it may still wait for a node."""
        owes = self.jobs or self.unreachable or self.state is WorkerState.BUILDING
        return now - self.heard_at if owes and self.node_id is not None else 0.0

    def where(self) -> str:
        """Location of the worker's log, as text."""
        return "the worker is in this process"

    def mark_building(self) -> None:
        """Note that the worker is being built: REQUESTED to BUILDING."""
        self.state = WorkerState.BUILDING

    def mark_built(self) -> None:
        """Note that the worker is built: BUILDING to READY; others keep their state."""
        self.built = True
        if self.state is WorkerState.BUILDING:
            self.state = WorkerState.READY

    def mark_slow(self) -> None:
        """Note that the worker's jobs are also sent to others: READY to SLOW; others keep their state."""
        self.copied = True
        if self.state is WorkerState.READY:
            self.state = WorkerState.SLOW

    def mark_answered(self) -> None:
        """Note results: SLOW to READY; others keep their state."""
        self.copied = False
        if self.state is WorkerState.SLOW:
            self.state = WorkerState.READY

    def mark_unreachable(self, failure: Failure) -> None:
        """Note a failed connection: any state to UNREACHABLE."""
        self.state = WorkerState.UNREACHABLE
        self.failure, self.begun_when_lost = failure, self.begun()

    def mark_draining(self) -> None:
        """Give the worker no more jobs: any state of ``staying`` to DRAINING."""
        self.state = WorkerState.DRAINING

    def mark_removed(self) -> None:
        """Note that the worker is ended: any state to REMOVED."""
        self.state = WorkerState.REMOVED

    def begun(self) -> list[int]:
        """IDs of the tickets of the jobs that the worker may have begun: it begins them in order."""
        return list(islice(self.jobs, self._lanes))

    def num_before(self, ticket_id: int) -> int:
        """Number of tickets with lower IDs: they were sent before."""
        return sum(1 for _ in takewhile(ticket_id.__gt__, self.jobs))

    def tickets_of(self, job_id: Hashable) -> list[int]:
        """IDs of the tickets of a job that the worker may have begun; it has one, or also one of an earlier map."""
        return [ticket_id for ticket_id in self.begun() if self.jobs[ticket_id].job.id == job_id]

    def not_begun(self, count: int) -> list[int]:
        """IDs of the last tickets, at most ``count``, whose jobs the worker has certainly not begun."""
        return list(islice(self.jobs, max(self._lanes, len(self.jobs) - count), None))

    def leave_unresolved(self, kept: Collection[int]) -> list[int]:
        """Note that the begun jobs of the unreachable worker, but those to keep, also run elsewhere.

        Args:
            kept: IDs of the tickets to keep.

        Returns:
            IDs of the tickets that were not noted before.
        """
        added = [ticket_id for ticket_id in self.begun_when_lost if ticket_id in self.jobs and ticket_id not in kept]
        self._unresolved += added
        return added

    def resolve(self) -> list[int]:
        """Forget the jobs of ``leave_unresolved``; returns the IDs of their tickets."""
        resolved, self._unresolved = self._unresolved, []
        return resolved

    def remove_jobs(self, ids: Iterable[int]) -> list[Ticket]:
        """Remove the tickets with these IDs from the worker's; returns the tickets."""
        removed = [self.jobs.pop(ticket_id) for ticket_id in ids if ticket_id in self.jobs]
        self.exclusive = self.exclusive and bool(self.jobs)
        return removed
