"""Mailbox between a worker's thread and the calls that bring jobs and fetch results."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from pipeline.execution.jobs import Ticket


class Mailbox:
    """Incoming jobs, over which a worker iterates, and outgoing results.

    May be iterated again after ``StopIteration`` once new jobs arrive, or once running jobs have ended: two jobs with
    the same ID, of two maps, do not run at the same time.

    Attributes:
        failures: Number of times that the worker has raised. Jobs whose sender did not know of the last failure are
            discarded: the sender dispatches them to other workers.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()
        self._taken: dict[Hashable, tuple[int, float]] = {}  # job ID to the ID of its ticket and the time of its start
        self._results: list[tuple[int, Any, float]] = []
        self._failure: BaseException | None = None
        self._fetched = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._changed:
            ticket = self._next()
            if ticket is None:
                raise StopIteration
            self._tickets.remove(ticket)
            self._taken[ticket.job.id] = ticket.id, time.monotonic()
            self._changed.notify_all()
            return ticket.job

    def post(self, tickets: Sequence[Ticket], failures: int) -> None:
        """Append jobs. A ticket that is here already, queued, running or finished, is not added twice.

        Args:
            tickets: Tickets of jobs in the order of their start.
            failures: Number of failures that the sender knows of.
        """
        with self._changed:
            if failures == self.failures:
                here = {ticket.id for ticket in self._tickets} | {ticket_id for ticket_id, _, _ in self._results}
                here |= {ticket_id for ticket_id, _ in self._taken.values()}
                self._tickets.extend(ticket for ticket in tickets if ticket.id not in here)
                self._changed.notify_all()

    def recall(self, ids: Iterable[int]) -> list[int]:
        """Remove the tickets with these IDs whose jobs were not begun; returns the IDs of the removed ones."""
        with self._changed:
            ids = frozenset(ids)
            removed = [ticket.id for ticket in self._tickets if ticket.id in ids]
            self._tickets = deque(ticket for ticket in self._tickets if ticket.id not in ids)
            self._changed.notify_all()
            return removed

    def wait_for_jobs(self) -> None:
        """Wait until there is a job."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets)

    def put_result(self, job_id: Hashable, result: Any) -> None:
        """Add a result, with the seconds since its job began."""
        with self._changed:
            ticket_id, began = self._taken.pop(job_id)
            self._results.append((ticket_id, result, time.monotonic() - began))
            self._changed.notify_all()

    def unfinished(self) -> list[Hashable]:
        """IDs of the jobs that were begun and have no result."""
        return [*self._taken]

    def fail(self, error: BaseException) -> None:
        """Note that the worker raised. ``fetch`` raises the error once the earlier results are fetched."""
        with self._changed:
            self.failures += 1
            self._failure = error
            self._tickets.clear()
            self._taken.clear()
            self._changed.notify_all()

    def fetch(self, batching_delay_s: float) -> list[tuple[int, Any, float]]:
        """Wait for results and take them.

        If no queued job can begin, the first result ends the wait. Otherwise results wait for more of them until the
        batching delay since the last fetch is over.

        Args:
            batching_delay_s: Maximum number of seconds that results wait for more results.

        Returns:
            Triples (ID of the ticket, result, seconds). Empty only if the worker has no jobs.

        Raises:
            BaseException: The worker raised this error.
        """
        with self._changed:
            while not self._is_time(batching_delay_s):
                left = self._fetched + batching_delay_s - time.monotonic()
                self._changed.wait(left if self._results else None)
            if not self._results and self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            results, self._results = self._results, []
            self._fetched = time.monotonic()
            return results

    def _next(self) -> Ticket | None:
        return next((ticket for ticket in self._tickets if ticket.job.id not in self._taken), None)

    def _is_time(self, batching_delay_s: float) -> bool:
        if self._failure is not None or not (self._taken or self._tickets):
            return True
        return bool(self._results) and (self._next() is None or time.monotonic() - self._fetched >= batching_delay_s)
