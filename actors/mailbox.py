"""What lies between a worker's thread, which works, and the calls that bring jobs and fetch results."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from pipeline.executor import Inbox


class Mailbox(Inbox):
    """Jobs on their way in, results on their way out.

    Attributes:
        failures: how often the worker has raised. A message whose sender did not know of the last time yet brings
            nothing: all jobs are handed to others then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self._changed = threading.Condition()
        self._taken: dict[Hashable, float] = {}
        self._results: list[tuple[Hashable, Any, float]] = []
        self._failure: BaseException | None = None
        self._fetched = time.monotonic()

    def __next__(self) -> Any:
        with self._changed:
            job = super().__next__()
            self._taken[job.id] = time.monotonic()
            self._changed.notify_all()
            return job

    def post(self, jobs: Sequence[Any], failures: int) -> None:
        """Put jobs behind those that lie there.

        Args:
            jobs: in order.
            failures: that their sender knows of.
        """
        with self._changed:
            if failures == self.failures:
                self.add(jobs)
                self._changed.notify_all()

    def take_back(self, ids: Iterable[Hashable]) -> None:
        with self._changed:
            super().take_back(frozenset(ids))
            self._changed.notify_all()

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
            self.clear()
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
