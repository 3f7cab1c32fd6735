"""Where work runs, behind one protocol: in this process, or on Ray (``actors/executor.py``).

A stage asks for two things: one *task* with resources (a training), or a *pool* of workers that many *jobs* are mapped
over. Both run the same plain classes and functions wherever they run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.errors import JobError, WorldModelsError
from pipeline.progress import Update
from pipeline.threads import num_threads

Result = TypeVar("Result")


@dataclass(frozen=True)
class Resources:
    """What a task needs of the machine it runs on."""

    threads: int = 1
    gpus: int = 0


class Job(Protocol):
    """One piece of work. Idempotent: it may be run again after its worker died, with the same result."""

    @property
    def id(self) -> Hashable:
        """What tells this job from every other of the same call; also its name in errors."""


class Worker(Protocol):
    """A plain class that runs jobs; it may keep what is dear to build (environments, networks) between calls."""

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[Hashable, Any]]:
        """Run jobs, yielding (job id, result) as each is done, in any order."""


class Pool(Protocol):
    """Workers that stay alive from call to call."""

    num_workers: int

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """Run jobs on whichever worker is free, yielding (job id, result) as they complete, each id once.

        Raises:
            JobError: a job raised, or its workers died ``max_attempts`` times; names the job and the worker's log.
        """


class Executor(Protocol):
    """Runs tasks and pools.

    Attributes:
        num_gpus: GPUs that tasks can ask for.
        max_workers: workers that a pool may have.
    """

    num_gpus: int
    max_workers: int

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        """Run one task to its end. A task is a generator function: it yields updates and returns its result."""

    def pool(self, factory: Callable[..., Worker], *arguments: Any, jobs_per_call: int) -> AbstractContextManager[Pool]:
        """Workers made by ``factory(*arguments)``, one CPU and one thread each.

        Args:
            factory: makes a worker; picklable, as are its arguments.
            jobs_per_call: how many jobs a worker is handed at a time.
        """

    def close(self) -> None:
        """End what this executor started."""


class InProcessExecutor:
    """Everything in this process, one thing at a time.

    Tasks see this process's own devices, whatever they are: ``num_gpus`` only matters where work is placed.
    """

    num_gpus = 0
    max_workers = 1

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        with num_threads(resources.threads):
            updates = task(*arguments)
            while True:
                try:
                    on_update(next(updates))
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]

    @contextmanager
    def pool(self, factory: Callable[..., Worker], *arguments: Any, jobs_per_call: int) -> Iterator[Pool]:
        with num_threads(1):
            yield _InProcessPool(factory(*arguments), jobs_per_call)

    def close(self) -> None:
        """Nothing was started."""


class _InProcessPool:
    num_workers = 1

    def __init__(self, worker: Worker, jobs_per_call: int) -> None:
        self._worker = worker
        self._jobs_per_call = jobs_per_call

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        waiting = list(jobs)
        while waiting:
            call, waiting = waiting[: self._jobs_per_call], waiting[self._jobs_per_call :]
            try:
                with num_threads(1):
                    yield from self._worker.run(call)
            except WorldModelsError:
                raise
            except Exception as error:
                raise JobError(f"one of the jobs {[job.id for job in call]} failed: {error!r}") from error
