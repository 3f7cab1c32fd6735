"""Simulated workers: lanes that run jobs, and the mailbox of ``actors/mailbox.py`` in virtual time."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pipeline.execution.jobs import Ticket
from pipeline.execution.worker_state import ScheduledWorker


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A job.

    Attributes:
        id: ID of the job.
        size: Length of the job: seconds in a lane of its own, or steps of lanes in lockstep.
        value: Result of the job, wherever and whenever it runs.
    """

    id: Hashable
    size: float
    value: Any = None


Result: TypeAlias = tuple[int, Any, float]  # ID of the ticket, value of the job, and the seconds that it took


class SimulatedLanes(Protocol):
    """Lanes of a worker, which run jobs side by side.

    Attributes:
        busy_s: Seconds in lanes or of the worker so far, as the implementation counts them.
    """

    busy_s: float

    @property
    def running(self) -> int:
        """Number of jobs that were begun and have not ended."""

    def begin(self, job: SimulatedJob, now: float) -> None:
        """Begin a job in a free lane."""

    def next_end(self) -> float:
        """Time at which the next job ends, in seconds; infinite if none runs."""

    def end(self, now: float) -> SimulatedJob:
        """End the job that ends now."""


class FreeLanes:
    """Lanes that do not slow each other down; ``busy_s`` is summed over lanes. See ``SimulatedLanes``.

    Args:
        slowness: Factor of all durations.
    """

    def __init__(self, slowness: float = 1.0) -> None:
        self.busy_s = 0.0
        self._slowness = slowness
        self._ends: list[tuple[float, int, SimulatedJob]] = []
        self._begun = 0

    @property
    def running(self) -> int:
        """See ``SimulatedLanes.running``."""
        return len(self._ends)

    def begin(self, job: SimulatedJob, now: float) -> None:
        """See ``SimulatedLanes.begin``."""
        self._begun += 1
        seconds = job.size * self._slowness
        self.busy_s += seconds
        heapq.heappush(self._ends, (now + seconds, self._begun, job))

    def next_end(self) -> float:
        """See ``SimulatedLanes.next_end``."""
        return self._ends[0][0] if self._ends else math.inf

    def end(self, now: float) -> SimulatedJob:
        """See ``SimulatedLanes.end``."""
        return heapq.heappop(self._ends)[2]


class SimulatedWorker(ScheduledWorker):
    """A worker in virtual time.

    Args:
        name: Name of the worker, in messages.
        num_lanes: Number of lanes.
        lanes: Lanes.

    Attributes:
        lanes: Lanes.
        end_at: Time at which the next job ends, in seconds; infinite if none runs or the worker has stopped.
        alive: Whether the worker's process runs and answers.
        failures: Number of times that the worker has raised.
        noted_failures: Number of them that the driver knows of.
        answers_up_to: Times until which messages to the driver are under way, by channel. Those of one channel keep
            their order.
        arrives_up_to: The same for messages to the worker.
        kept_since: Time at which the oldest result was ready that the driver has not fetched, in seconds; infinite if
            there is none.
    """

    def __init__(self, name: str, num_lanes: int, lanes: SimulatedLanes) -> None:
        super().__init__(num_lanes)
        self.lanes = lanes
        self.end_at = math.inf
        self.alive = True
        self.failures = self.noted_failures = 0
        self.answers_up_to, self.arrives_up_to = [0.0, 0.0], [0.0, 0.0]
        self.kept_since = math.inf
        self.error: BaseException | None = None
        self._name, self._num_lanes = name, num_lanes
        self._inbox: deque[Ticket] = deque()
        self._taken: dict[Hashable, tuple[int, float]] = {}  # job ID to the ID of its ticket and the time of its start
        self._results: list[Result] = []
        self._here: set[int] = set()
        self._batching_delay_s: float | None = None
        self._fetched = 0.0

    def where(self) -> str:
        """See ``ScheduledWorker.where``."""
        return self._name

    @property
    def running(self) -> list[int]:
        """IDs of the tickets whose jobs were begun and have not ended."""
        return [ticket_id for ticket_id, _ in self._taken.values()]

    @property
    def inbox(self) -> Sequence[Ticket]:
        """Tickets of the jobs that have arrived and were not begun; only tests look at them."""
        return self._inbox

    @property
    def is_blocked(self) -> bool:
        """Whether a job waits for one with the same ID, of an earlier map, that runs; only tests ask."""
        return any(ticket.job.id in self._taken for ticket in self._inbox)

    @property
    def kept(self) -> Sequence[Result]:
        """Results that the driver has not fetched."""
        return self._results

    def post(self, tickets: Iterable[Ticket], failures: int) -> None:
        """See ``Mailbox.post``."""
        if failures == self.failures:
            new = [ticket for ticket in tickets if ticket.id not in self._here]
            self._inbox.extend(new)
            self._here.update(ticket.id for ticket in new)

    def recall(self, ids: Sequence[int]) -> list[int]:
        """See ``Mailbox.recall``."""
        wanted = set(ids)
        removed = [ticket.id for ticket in self._inbox if ticket.id in wanted]
        self._inbox = deque(ticket for ticket in self._inbox if ticket.id not in wanted)
        self._here.difference_update(removed)
        return removed

    def ask(self, batching_delay_s: float) -> None:
        """The driver asks for results: see ``Mailbox.fetch``."""
        self._batching_delay_s = batching_delay_s

    def begin(self, now: float) -> list[Ticket]:
        """Begin jobs on free lanes; returns their tickets."""
        begun = []
        while self._inbox and self.lanes.running < self._num_lanes:
            ticket = self._next()
            if ticket is None:
                break
            self._inbox.remove(ticket)
            self._taken[ticket.job.id] = ticket.id, now
            self.lanes.begin(ticket.job, now)
            begun.append(ticket)
        return begun

    def _next(self) -> Ticket | None:
        """The next job. Two jobs with the same ID, of two maps, do not run at the same time."""
        return next((ticket for ticket in self._inbox if ticket.job.id not in self._taken), None)

    def end(self, now: float) -> None:
        """End the job that ends now."""
        job = self.lanes.end(now)
        ticket_id, began = self._taken.pop(job.id)
        self._results.append((ticket_id, job.value, now - began))
        self.kept_since = min(self.kept_since, now)

    def fail(self, error: BaseException, lanes: SimulatedLanes) -> None:
        """Raise an error: see ``Mailbox.fail``."""
        self.failures += 1
        self.error, self.lanes, self.end_at = error, lanes, math.inf
        self._inbox.clear()
        self._taken.clear()
        self._here = {ticket_id for ticket_id, _, _ in self._results}

    def answer(self, now: float) -> tuple[float, list[Result] | BaseException | None]:
        """The answer to the driver's question, if it is time for it: see ``Mailbox.fetch``.

        Returns:
            Time until which results are kept, infinite if there is nothing to wait for; and the results, or the error;
            None if it is not time.
        """
        if self._batching_delay_s is None:
            return math.inf, None
        due = math.inf
        if self.error is None and (self._taken or self._inbox):
            if not self._results:
                return due, None
            due = self._fetched + self._batching_delay_s
            if self._next() is not None and now < due:
                return due, None
        self._batching_delay_s = None
        if not self._results and self.error is not None:
            error, self.error = self.error, None
            return math.inf, error
        results, self._results = self._results, []
        self._here.difference_update([ticket_id for ticket_id, _, _ in results])
        self._fetched, self.kept_since = now, math.inf
        return math.inf, results
