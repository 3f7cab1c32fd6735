"""Where work runs, behind one protocol: in this process, or on Ray (``actors/executor.py``).

A stage asks for two things: one *task* with resources (a training), or a *pool* of workers that many *jobs* are mapped
over. Both run the same plain classes and functions wherever they run.
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
    """What a task needs of the machine it runs on."""

    threads: int = 1
    gpus: int = 0


class Job(Protocol):
    """One piece of work. Idempotent: it may be run again after it failed, with the same result."""

    @property
    def id(self) -> Hashable:
        """What tells this job from every other of the same call; also its name in errors."""


class Worker(Protocol):
    """A plain class that runs jobs; it may keep what is dear to build (environments, networks) between calls."""

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """Run jobs, yielding (job id, result) as each is done, in any order.

        Args:
            jobs: taken in order, each when the worker is ready to begin it: there may be more of them by then.
        """


class Pool(Protocol):
    """Workers that stay alive from call to call.

    Attributes:
        num_workers: so many have worked at a time, at most.
        retries: times that a job was tried again, in all calls so far.
    """

    num_workers: int
    retries: int

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """Run jobs on whichever worker is free, yielding (job id, result) as they complete, each id once.

        A job that raised, or whose worker died or hung, is tried again. Errors of ours but JobError (damaged data,
        storage) come back as they are, at once.

        Raises:
            JobError: a job has failed ``max_attempts`` times; names it, the cause and the worker's log.
        """


class Executor(Protocol):
    """Runs tasks and pools.

    Attributes:
        num_gpus: GPUs that a node has which is there.
        can_grow: whether nodes may come that are not there yet.
    """

    num_gpus: int
    can_grow: bool

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        """Run one task to its end. A task is a generator function: it yields updates and returns its result."""

    def pool(
        self, factory: Callable[..., Worker], *arguments: Any, jobs_at_once: int = 1, worthwhile: int = 1
    ) -> AbstractContextManager[Pool]:
        """Workers made by ``factory(*arguments)``, one CPU and one thread each.

        Args:
            factory: makes a worker; picklable, as are its arguments.
            jobs_at_once: how many jobs a worker has begun and not finished at a time, at most.
            worthwhile: for how many jobs a cluster that can grow should bring one more worker.
        """

    def publish(self, stage: str, metrics: Metrics) -> None:
        """Metrics of a stage, for whoever watches the cluster; cheap enough for every result."""

    def close(self) -> None:
        """End what this executor started."""
