"""The executor that runs everything in this process, one job at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from pipeline.base.errors import EpisodeError, JobError
from pipeline.base.progress import Metrics, Update
from pipeline.base.threads import num_threads
from pipeline.execution.actions import Request, Send
from pipeline.execution.failures import FailureKind, abandoned_error, cause_message, raised
from pipeline.execution.jobs import Ticket
from pipeline.execution.protocol import Pool, Resources, Worker
from pipeline.execution.scheduler import Scheduler
from pipeline.execution.worker_state import ScheduledWorker

logger = logging.getLogger(__name__)


Result = TypeVar("Result")

_NOW = 0.0  # nothing here depends on time


class InProcessExecutor:
    """Runs everything in this process, one job at a time. See ``pipeline.execution.protocol.Executor``.

    Tasks use the devices of this process, whatever resources they ask for.

    Args:
        max_attempts: Maximum number of attempts per job.
    """

    can_grow = False
    ready_workers = 0

    def __init__(self, max_attempts: int = 3) -> None:
        self._max_attempts = max_attempts

    @property
    def has_gpu(self) -> bool:
        """See ``Executor.has_gpu``."""
        import torch  # commands that train nothing do without it

        return torch.cuda.is_available()

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        """See ``Executor.run``. A task is restarted if an environment raises."""
        causes: set[str] = set()
        for tries in range(1, self._max_attempts + 1):
            try:
                return _run_task(task(*arguments), resources.threads, on_update)
            except EpisodeError as error:
                causes.add(repr(error))
                if tries == self._max_attempts:
                    raise abandoned_error(task.__name__, tries, cause_message(error), causes) from error
                logger.warning("%s, try %d of %d: %s", task.__name__, tries, self._max_attempts, cause_message(error))
        raise AssertionError("max_attempts is at least 1")

    @contextmanager
    def pool(
        self, factory: Callable[..., Worker], *arguments: Any, jobs_at_once: int = 1, jobs_per_worker: int = 1
    ) -> Iterator[Pool]:
        """See ``Executor.pool``."""
        with num_threads(1):
            self.ready_workers = 1
            try:
                yield _InProcessPool(partial(factory, *arguments), self._max_attempts, jobs_at_once)
            finally:
                self.ready_workers = 0

    def publish(self, stage: str, metrics: Metrics) -> None:
        """Do nothing: there is no cluster to watch."""

    def close(self) -> None:
        """Do nothing: nothing was started."""


def _run_task(updates: Generator[Update, None, Result], threads: int, on_update: Callable[[Update], None]) -> Result:
    with num_threads(threads):
        while True:
            try:
                on_update(next(updates))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


class _InProcessPool:
    """One worker, which takes jobs one by one. Time plays no part: nothing is slow or hangs."""

    def __init__(self, make_worker: Callable[[], Worker], max_attempts: int, jobs_at_once: int) -> None:
        self._make_worker = make_worker
        self._worker = make_worker()
        self._scheduler = Scheduler(max_attempts=max_attempts, jobs_at_once=jobs_at_once, max_workers=1)
        self._jobs_at_once = jobs_at_once
        self._waiting: deque[Ticket] = deque()
        self._taken: dict[Hashable, int] = {}  # job ID to the ID of its ticket
        self._shown: set[str] = set()

    @property
    def num_workers(self) -> int:
        return self._scheduler.num_workers

    @property
    def retries(self) -> int:
        return self._scheduler.retries

    @property
    def copies(self) -> int:
        return self._scheduler.copies

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        self._scheduler.begin(jobs, _NOW)
        self._shown.clear()
        try:
            while self._scheduler.jobs:
                self._act()
                yield from self._run(next(iter(self._scheduler.workers)))
        finally:
            self._forget_jobs()

    def _run(self, scheduled: ScheduledWorker) -> Iterator[tuple[Hashable, Any]]:
        """Run the jobs that the scheduler sent, until they have results or the worker fails."""
        results = self._worker.run(self._take())
        try:
            with num_threads(1):
                for job_id, result in results:
                    self._scheduler.results(scheduled, [(self._taken.pop(job_id), 0.0)], _NOW)
                    self._act()
                    yield job_id, result
        except Exception as error:
            self._fail(scheduled, error)
        else:
            if self._taken:
                raise JobError(f"a worker ended without results for {list(self._taken)}")

    def _take(self) -> Iterator[Any]:
        """Jobs in order, as the worker takes them."""
        while self._waiting:
            ticket = self._waiting.popleft()
            self._taken[ticket.job.id] = ticket.id
            yield ticket.job

    def _forget_jobs(self) -> None:
        """Remove all jobs from the worker when a map ends, is abandoned or fails."""
        self._waiting.clear()
        self._taken.clear()
        for scheduled in self._scheduler.workers:
            self._scheduler.released(scheduled, [*scheduled.jobs])

    def _act(self) -> None:
        """Carry out the scheduler's actions: with one worker, request it and send it jobs."""
        while actions := self._scheduler.decide(_NOW):
            for action in actions:
                if isinstance(action, Request):
                    scheduled = ScheduledWorker(self._jobs_at_once)
                    self._scheduler.requested(scheduled)
                    self._scheduler.up(scheduled, None, _NOW)
                    self._scheduler.built(scheduled, _NOW)
                elif isinstance(action, Send):
                    self._waiting.extend(action.tickets)

    def _fail(self, scheduled: ScheduledWorker, error: Exception) -> None:
        """Retry jobs after an error, with a new worker unless it was an ``EpisodeError``."""
        failure = raised(error)
        if failure.kind is FailureKind.FATAL:
            raise error
        if repr(error) not in self._shown:  # else its traceback was shown already
            self._shown.add(repr(error))
            logger.warning("a worker raised an error", exc_info=error)
        begun = [*self._taken.values()]
        self._waiting.clear()
        self._taken.clear()
        self._scheduler.failed(scheduled, failure, _NOW, begun)
        if not failure.by_environment:
            self._worker = self._make_worker()  # the state of the old one is unknown
