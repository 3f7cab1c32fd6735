"""Protocol of executors, which run work in this process or on Ray (``actors/executor.py``).

A stage runs either one *task* with resources (a training), or a *pool* of workers that run many *jobs*. Every executor
runs the same plain classes and functions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.base.progress import Metrics, Update

Result = TypeVar("Result")


@dataclass(frozen=True)
class Resources:
    """Resources that a task needs.

    Attributes:
        threads: Number of threads, one CPU each.
        gpus: Number of GPUs.
    """

    threads: int = 1
    gpus: int = 0


class Job(Protocol):
    """One piece of work. Idempotent: it may run again after a failure, with the same result."""

    @property
    def id(self) -> Hashable:
        """Unique ID among the jobs of one call; also the job's name in errors."""


class Worker(Protocol):
    """A plain class that runs jobs. Caches expensive state (environments, networks) between calls."""

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """Run jobs, yielding (job ID, result) as each job ends, in any order.

        Args:
            jobs: Jobs, taken in order, each when the worker is ready to begin it; more jobs may arrive meanwhile.
        """


class Pool(Protocol):
    """Workers that stay alive between calls."""

    @property
    def num_workers(self) -> int:
        """Maximum number of workers that were ready at the same time."""

    @property
    def retries(self) -> int:
        """Number of times that a job was tried again, in all calls so far."""

    @property
    def copies(self) -> int:
        """Number of jobs of slow workers that were also sent to another worker, in all calls so far."""

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """Run jobs on free workers, yielding (job ID, result) as jobs end, each ID once.

        A job is tried again if it raises, or if its worker dies or hangs. Errors of this project other than JobError
        (damaged data, storage) are raised unchanged and at once.

        Raises:
            JobError: A job has failed ``max_attempts`` times. The message names it, the cause and the worker's log.
        """


class Executor(Protocol):
    """Runs tasks and pools.

    Attributes:
        can_grow: Whether nodes may join later.
    """

    can_grow: bool

    @property
    def ready_workers(self) -> int:
        """Number of workers of the open pool that are ready now; 0 without a pool."""

    @property
    def has_gpu(self) -> bool:
        """Whether a training can have a GPU now."""

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        """Run one task to its end.

        Args:
            task: Generator function that yields updates and returns its result.
            *arguments: Arguments of the task.
            resources: Resources that the task needs.
            on_update: Function that is called with each update.

        Returns:
            Result of the task.
        """

    def pool(
        self, factory: Callable[..., Worker], *arguments: Any, jobs_at_once: int = 1, jobs_per_worker: int = 1
    ) -> AbstractContextManager[Pool]:
        """Open a pool of workers made by ``factory(*arguments)``, one CPU and one thread each.

        Args:
            factory: Picklable function that makes a worker.
            *arguments: Picklable arguments of ``factory``.
            jobs_at_once: Maximum number of jobs that a worker has begun and not finished.
            jobs_per_worker: Jobs that justify one more worker on an autoscaling cluster.
        """

    def publish(self, stage: str, metrics: Metrics) -> None:
        """Export metrics of a stage to the cluster's monitoring. Cheap enough for every result."""

    def close(self) -> None:
        """End everything that this executor started."""
