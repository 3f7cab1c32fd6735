"""The executor that runs everything in this process, one job at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from pipeline.base.errors import EpisodeError, JobError, WorldModelsError
from pipeline.base.progress import Metrics, Update
from pipeline.base.threads import num_threads
from pipeline.execution.jobs import MapJobs, abandoned_error, cause_message
from pipeline.execution.protocol import Pool, Resources, Worker

logger = logging.getLogger(__name__)


Result = TypeVar("Result")


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
                yield _InProcessPool(partial(factory, *arguments), self._max_attempts)
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
    num_workers = 1

    def __init__(self, make_worker: Callable[[], Worker], max_attempts: int) -> None:
        self.retries = 0
        self._make_worker = make_worker
        self._worker = make_worker()
        self._max_attempts = max_attempts

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        map_jobs = MapJobs(jobs, self._max_attempts)
        shown: set[str] = set()
        while map_jobs:
            left = {job.id: job for job in map_jobs.take(map_jobs.num_waiting)}
            waiting = iter([*left.values()])
            try:
                with num_threads(1):
                    for job_id, result in self._worker.run(waiting):
                        del left[job_id]
                        map_jobs.finish(job_id)
                        yield job_id, result
            except Exception as error:
                if isinstance(error, WorldModelsError) and not isinstance(error, JobError | EpisodeError):
                    raise
                if repr(error) not in shown:  # else its traceback was shown already
                    shown.add(repr(error))
                    logger.warning("a worker raised an error", exc_info=error)
                not_begun = {job.id for job in waiting}
                begun = [job_id for job_id in left if job_id not in not_begun]
                if isinstance(error, EpisodeError):
                    begun = [error.job_id]
                else:
                    self._worker = self._make_worker()  # the state of the old one is unknown
                map_jobs.failed(begun, cause_message(error), error)
                self.retries += len(begun)
                map_jobs.requeue(left.values())
            else:
                if left:
                    raise JobError(f"a worker ended without results for {list(left)}")
