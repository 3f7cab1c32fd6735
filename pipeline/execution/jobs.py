"""Jobs of one map: the queue, the results that are missing, the failures, and the size of a worker's next batch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.execution.failures import abandoned_error

logger = logging.getLogger(__name__)

_SLOW_AT_LEAST_S = 1.0
_SLOW_AFTER = 2.0  # times the 0.9 quantile of job durations: a worker that is silent for longer is slow


class Ticket(NamedTuple):
    """A job of one map. Two maps may have equal job IDs, and a late result of one must not count for the other.

    Attributes:
        id: Number that no other ticket of the pool has.
        job: Job.
    """

    id: int
    job: Any


@dataclass(slots=True, eq=False)
class _Entry:
    """A job and its state.

    Attributes:
        ticket: Ticket of the job.
        position: Place in the queue; jobs with a lower one are taken first.
        queued: Whether the job waits for a worker.
        alone: Whether the job must be the only one of its worker, because it may kill its worker.
        holders: Number of workers that have the job.
        failures: Number of failed attempts.
        unresolved: Number of attempts on workers that are unreachable: failures, unless the workers lost their nodes.
        causes: Distinct errors of the failed attempts.
    """

    ticket: Ticket
    position: int
    queued: bool = True
    alone: bool = False
    holders: int = 0
    failures: int = 0
    unresolved: int = 0
    causes: set[str] = field(default_factory=set)


class MapJobs:
    """Jobs of one ``Pool.map``: queued jobs, jobs that workers have, and their failures.

    A job that has a result is forgotten. All operations take constant time for each job.

    Args:
        jobs: Jobs in the order of their dispatch.
        max_attempts: Maximum number of attempts per job.
        first: ID of the first job's ticket; the others follow.
        num_earlier: Number of jobs of earlier maps that workers still have.

    Attributes:
        first: ID of the first ticket of this map; earlier maps have lower ones.
        next: ID of the first ticket of the next map.
        num_earlier: Number of jobs of earlier maps that workers still have.
        has_failures: Whether an attempt has failed.
    """

    def __init__(self, jobs: Iterable[Any], max_attempts: int, first: int = 0, num_earlier: int = 0) -> None:
        tickets = (Ticket(first + position, job) for position, job in enumerate(jobs))
        self._entries = {ticket.id: _Entry(ticket, position) for position, ticket in enumerate(tickets)}
        self.first, self.next, self.num_earlier = first, first + len(self._entries), num_earlier
        self._max_attempts = max_attempts
        # A finished job stays in its queue until it is at the front; `queued` is False then.
        self._waiting = deque(self._entries.values())
        self._alone: deque[_Entry] = deque()
        self._num_waiting = len(self._waiting)
        self._front = -1
        self._seconds: list[float] = []  # durations of the finished jobs in their workers
        self.has_failures = False

    def __len__(self) -> int:
        """Number of jobs without a result."""
        return len(self._entries)

    @property
    def num_waiting(self) -> int:
        """Number of jobs that wait for a worker."""
        return self._num_waiting

    def __contains__(self, ticket_id: int) -> bool:
        """Whether a ticket is of this map, and its job has no result yet."""
        return ticket_id in self._entries

    @property
    def has_shareable(self) -> bool:
        """Whether a queued job may run next to others on one worker, as far as is known."""
        return _first(self._waiting) is not None

    def take(self, count: int, *, has_others: bool = False) -> list[Ticket]:
        """Take the next jobs from the queue.

        A job on its last attempt is taken alone, so that the final error names the failed job. A job that was requeued
        with ``alone`` is also taken alone.

        Args:
            count: Maximum number of jobs, at least 1.
            has_others: Whether the worker has other jobs. Jobs that go alone are then left in the queue.
        """
        taken: list[_Entry] = []
        while len(taken) < count:
            entry, alone = _first(self._waiting), _first(self._alone)
            if entry is not None and self._goes_alone(entry):  # since it was queued
                self._alone.append(self._waiting.popleft())
                continue
            if alone is not None and not (taken or has_others) and (entry is None or alone.position < entry.position):
                taken.append(self._alone.popleft())
                break
            if entry is None:
                break
            taken.append(self._waiting.popleft())
        for entry in taken:
            entry.queued = False
        self._num_waiting -= len(taken)
        return [entry.ticket for entry in taken]

    def note_held(self, tickets: Iterable[Ticket]) -> None:
        """Note that one more worker has these jobs."""
        for ticket in tickets:
            self._entries[ticket.id].holders += 1

    def note_dropped(self, ticket: Ticket) -> None:
        """Note that one worker less has a job, of this map or an earlier one."""
        if ticket.id < self.first:
            self.num_earlier -= 1
        elif ticket.id in self._entries:
            self._entries[ticket.id].holders -= 1

    def with_holders(self, count: int, tickets: Iterable[Ticket]) -> list[Ticket]:
        """Select the jobs that have no result, are not queued, and that this number of workers has."""
        entries = self._without_result(ticket.id for ticket in tickets)
        return [entry.ticket for entry in entries if entry.holders == count and not entry.queued]

    def failed(self, begun: Sequence[int], what: str, cause: BaseException | None, *, raised: bool = True) -> None:
        """Count a failed attempt of each job that may have caused a failure.

        Args:
            begun: IDs of the tickets of the jobs that may have caused the failure. None of them has a result.
            what: Description of the failure.
            cause: Error, if there is one.
            raised: Whether the job raised the error; otherwise its worker died or hung.

        Raises:
            JobError: It was the last attempt of one of the jobs.
        """
        if not begun:
            return
        self.has_failures = True
        entries = [self._entries[ticket_id] for ticket_id in begun]
        name = _name([entry.ticket.job.id for entry in entries])
        for entry in entries:
            entry.failures += 1
            entry.causes.add(repr(cause) if raised else what)
        tries = max(entry.failures for entry in entries)
        if tries >= self._max_attempts:
            causes = set[str]().union(*(entry.causes for entry in entries))
            raise abandoned_error(name, tries, what, causes) from cause
        logger.warning("%s, try %d of %d: %s", name, tries, self._max_attempts, what)

    def requeue(self, tickets: Iterable[Ticket], *, alone: bool = False) -> list[Ticket]:
        """Put jobs at the front of the queue.

        Args:
            tickets: Tickets of jobs in the order of their dispatch. Jobs that have a result, are queued already, or
                are of an earlier map, are left out; and jobs whose last attempt may have failed: see ``resolve``.
            alone: Whether each job goes alone from now on, because it may kill its worker.

        Returns:
            Tickets of the requeued jobs.
        """
        found = dict.fromkeys(self._without_result(ticket.id for ticket in tickets))
        entries = [each for each in found if not each.queued and _failures_at_most(each) < self._max_attempts]
        for entry in reversed(entries):
            entry.queued, entry.position = True, self._front
            entry.alone = entry.alone or alone
            self._front -= 1
            (self._alone if self._goes_alone(entry) else self._waiting).appendleft(entry)
        self._num_waiting += len(entries)
        return [entry.ticket for entry in entries]

    def finish(self, ticket_id: int, seconds: float) -> Any:
        """Note that a job has a result, and remove it from the queue if it was requeued.

        Args:
            ticket_id: ID of the ticket.
            seconds: Duration of the job in its worker, in seconds.

        Returns:
            Job; None if it has a result already or is of another map.
        """
        entry = self._entries.pop(ticket_id, None)
        if entry is None:
            return None
        if entry.queued:
            entry.queued = False
            self._num_waiting -= 1
        self._seconds.append(seconds)
        return entry.ticket.job

    def slow_after_s(self) -> float:
        """Seconds of silence after which a worker is slow; infinite while no job has a result."""
        if not self._seconds:
            return math.inf
        return max(_SLOW_AT_LEAST_S, _SLOW_AFTER * float(np.quantile(self._seconds, 0.9)))

    def is_on_last_try(self, ticket_id: int) -> bool:
        """Whether the next attempt of a job without a result is its last one, or may be."""
        return _failures_at_most(self._entries[ticket_id]) >= self._max_attempts - 1

    def note_unresolved(self, ids: Iterable[int]) -> None:
        """Note one more attempt of each job whose fate is unknown; see ``resolve``."""
        for entry in self._without_result(ids):
            entry.unresolved += 1

    def resolve(self, ids: Iterable[int]) -> list[Ticket]:
        """Note that the fate of one attempt of each job is known, or that nobody waits for it any longer.

        Args:
            ids: IDs of the tickets. Those of jobs that have a result, or are of an earlier map, are left out.

        Returns:
            Tickets of the jobs that no worker has and that are not queued.
        """
        entries = self._without_result(ids)
        for entry in entries:
            entry.unresolved -= 1
        return self.with_holders(0, [entry.ticket for entry in entries])

    def _without_result(self, ids: Iterable[int]) -> list[_Entry]:
        return [self._entries[ticket_id] for ticket_id in ids if ticket_id in self._entries]

    def goes_alone(self, ticket: Ticket) -> bool:
        """Whether a job must be the only one of its worker."""
        entry = self._entries.get(ticket.id)
        return entry is not None and self._goes_alone(entry)

    def _goes_alone(self, entry: _Entry) -> bool:
        return entry.alone or (_failures_at_most(entry) > 0 and self.is_on_last_try(entry.ticket.id))


def _failures_at_most(entry: _Entry) -> int:
    return entry.failures + entry.unresolved


def _first(queue: deque[_Entry]) -> _Entry | None:
    """The first entry that is still queued; the ones before it are removed."""
    while queue and not queue[0].queued:
        queue.popleft()
    return queue[0] if queue else None


# Maximum number of jobs of a worker per job that it runs at once; more would leave too few for workers that join later.
# A worker without jobs gets only this many ahead: others may be waiting for their first ones.
_MOST_AHEAD = 8


def batch_for_worker(*, waiting: int, missing: int, workers: int, has: int, jobs_at_once: int) -> int:
    """Number of jobs to dispatch to a worker next.

    The worker gets enough jobs to run ``jobs_at_once``, or its fair share of them. While many jobs are queued, it also
    gets at least one job ahead, or half of its fair share of all missing jobs. Batches get smaller towards the end, so
    that workers finish together (guided self-scheduling: Polychronopoulos & Kuck 1987). They depend on the missing jobs
    rather than the queued ones, so that the first batches are equal, which takes a third fewer messages.

    Args:
        waiting: Number of queued jobs.
        missing: Number of jobs without a result, including the jobs that workers have, of this map or an earlier one.
        workers: Number of workers that take jobs.
        has: Number of jobs that this worker has.
        jobs_at_once: Maximum number of jobs that the worker has begun and not finished.

    Returns:
        Number of jobs; 0 if the worker has enough.
    """
    if has > jobs_at_once:
        return 0
    count = min(jobs_at_once, -(-missing // workers)) - has
    if missing > workers * jobs_at_once and 2 * waiting > workers:
        count = max(count + 1, missing // (2 * workers) - has)
    most = _MOST_AHEAD * jobs_at_once if has else jobs_at_once + _MOST_AHEAD
    return max(0, min(waiting, count, most))


def _name(ids: Sequence[Hashable]) -> str:
    if len(ids) == 1:
        return f"job {ids[0]}"
    more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
    return f"one of the jobs {', '.join(map(str, ids[:4]))}{more}"
