"""What lies between a worker's thread, which works, and the calls that bring jobs and fetch results."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any


class Mailbox:
    """Jobs on their way in, which a worker iterates over, and results on their way out.

    It has more to give after it was exhausted, if jobs came since.

    Attributes:
        failures: how often the worker has raised. A message whose sender did not know of the last time yet brings
            nothing: all jobs are handed to others then.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._changed = threading.Condition()
        self._jobs: deque[Any] = deque()
        self._taken: dict[Hashable, float] = {}
        self._results: list[tuple[Hashable, Any, float]] = []
        self._failure: BaseException | None = None
        self._fetched = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._changed:
            if not self._jobs:
                raise StopIteration
            job = self._jobs.popleft()
            self._taken[job.id] = time.monotonic()
            self._changed.notify_all()
            return job

    def post(self, jobs: Sequence[Any], failures: int) -> None:
        """Put jobs behind those that lie there. One that is here already, at whatever stage, is not put there twice.

        Args:
            jobs: in order.
            failures: that their sender knows of.
        """
        with self._changed:
            if failures == self.failures:
                here = {job.id for job in self._jobs} | {*self._taken} | {job_id for job_id, _, _ in self._results}
                self._jobs.extend(job for job in jobs if job.id not in here)
                self._changed.notify_all()

    def take_back(self, ids: Iterable[Hashable]) -> list[Hashable]:
        """Remove those jobs of these ids that lie here and were not taken yet; returns their ids."""
        with self._changed:
            ids = frozenset(ids)
            removed = [job.id for job in self._jobs if job.id in ids]
            self._jobs = deque(job for job in self._jobs if job.id not in ids)
            self._changed.notify_all()
            return removed

    def wait_for_jobs(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)

    def put_out(self, job_id: Hashable, result: Any) -> None:
        """Lay a result ready, with the seconds since its job was taken."""
        with self._changed:
            self._results.append((job_id, result, time.monotonic() - self._taken.pop(job_id)))
            self._changed.notify_all()

    def unfinished(self) -> list[Hashable]:
        """The jobs that were taken and have no result."""
        return [*self._taken]

    def fail(self, error: BaseException) -> None:
        """The worker raised; whoever fetches is told once the results are fetched that there were."""
        with self._changed:
            self.failures += 1
            self._failure = error
            self._jobs.clear()
            self._taken.clear()
            self._changed.notify_all()

    def fetch(self, linger_s: float) -> list[tuple[Hashable, Any, float]]:
        """Wait for results and take them: (job id, result, seconds) each.

        As soon as there is one and no jobs lie ready behind those in work; else so long after the last ones were taken.

        Args:
            linger_s: seconds that results may wait for more of them.

        Returns:
            None of them only where there is nothing to work at.

        Raises:
            BaseException: what the worker raised.
        """
        with self._changed:
            while not self._is_time(linger_s):
                left = self._fetched + linger_s - time.monotonic()
                self._changed.wait(left if self._results else None)
            if not self._results and self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            results, self._results = self._results, []
            self._fetched = time.monotonic()
            return results

    def _is_time(self, linger_s: float) -> bool:
        if self._failure is not None or not (self._taken or self._jobs):
            return True
        return bool(self._results) and (not self._jobs or time.monotonic() - self._fetched >= linger_s)
