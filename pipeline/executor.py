"""Where work runs, behind one protocol: in this process, or on Ray (``actors/executor.py``).

A stage asks for two things: one *task* with resources (a training), or a *pool* of workers that many *jobs* are mapped
over. Both run the same plain classes and functions wherever they run.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from pipeline.config import ExecutionConfig
from pipeline.errors import EpisodeError, JobError, WorldModelsError
from pipeline.progress import Figures, Update
from pipeline.threads import num_threads

logger = logging.getLogger(__name__)
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

    def publish(self, stage: str, figures: Figures) -> None:
        """Figures of a stage, for whoever watches the cluster; cheap enough for every result."""

    def close(self) -> None:
        """End what this executor started."""


class JobQueue:
    """The jobs of one ``Pool.map`` that wait for a worker, and how often each has failed.

    Args:
        jobs: in the order that they are handed out in.
        max_attempts: times that a job is tried.
    """

    def __init__(self, jobs: Iterable[Any], max_attempts: int) -> None:
        self._waiting = deque(jobs)
        self._max_attempts = max_attempts
        self._failures: Counter[Hashable] = Counter()
        self._causes: defaultdict[Hashable, set[str]] = defaultdict(set)
        self._again: set[Hashable] = set()
        self._alone: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, count: int, *, has_others: bool = False) -> list[Any]:
        """The next jobs, ``count`` at most.

        One that has a single try left goes alone, so that the job which is named in the end is the one that fails; so
        does one that was put back to.

        Args:
            count: at least 1.
            has_others: whether who takes them has jobs already: those that go alone are left for somebody else.
        """
        jobs: list[Any] = []
        left: list[Any] = []
        while self._waiting and len(jobs) < count:
            job = self._waiting.popleft()
            if not self.goes_alone(job):
                jobs.append(job)
            elif jobs or has_others:
                left.append(job)
            else:
                jobs.append(job)
                break
        self._waiting.extendleft(reversed(left))
        return jobs

    def failed(self, begun: Sequence[Hashable], what: str, cause: BaseException | None, *, raised: bool = True) -> None:
        """Count a try of each job that may have been the cause of a failure.

        Args:
            begun: the ids of the jobs that it may have been.
            what: what happened.
            cause: the error, where there is one.
            raised: whether the job itself raised it, rather than its worker dying or hanging.

        Raises:
            JobError: it was the last try of one.
        """
        self._failures.update(begun)
        for job_id in begun:
            self._causes[job_id].add(repr(cause) if raised else what)
        tries = max((self._failures[job_id] for job_id in begun), default=0)
        if tries >= self._max_attempts:
            causes = set[str]().union(*(self._causes[job_id] for job_id in begun))
            raise JobError(f"{_name(begun)} {gave_up(tries, what, causes)}") from cause
        if begun:
            logger.warning("%s, try %d of %d: %s", _name(begun), tries, self._max_attempts, what)

    def put_back(self, jobs: Sequence[Any], *, alone: bool = False) -> None:
        """Jobs without a result are the next to be handed out, those that go alone to whoever has no others.

        Args:
            jobs: in order.
            alone: whether each must go alone from now on, because any of them may be the end of its worker.
        """
        self._waiting.extendleft(reversed(jobs))
        self._again.update(job.id for job in jobs)
        if alone:
            self._alone.update(job.id for job in jobs)

    def ids(self) -> set[Hashable]:
        """Of the jobs that wait."""
        return {job.id for job in self._waiting}

    def done(self, job_id: Hashable) -> None:
        """A job has a result: if it was put back, whoever had it before was first, and it waits no longer."""
        if job_id in self._again:
            self._again.remove(job_id)
            self._waiting = deque(job for job in self._waiting if job.id != job_id)

    @property
    def has_failures(self) -> bool:
        """Whether a job has failed."""
        return bool(self._failures)

    def is_on_last_try(self, job_id: Hashable) -> bool:
        """Whether a job may fail no more."""
        return self._failures[job_id] == self._max_attempts - 1

    def goes_alone(self, job: Job) -> bool:
        """Whether a job must have no other beside it."""
        return job.id in self._alone or (self._failures[job.id] > 0 and self.is_on_last_try(job.id))


# Jobs that lie before a worker, at most, for each that it can have begun: more would be lost on workers yet to come.
_MOST_AHEAD = 8


def share(*, waiting: int, missing: int, workers: int, has: int, jobs_at_once: int) -> int:
    """How many jobs a worker is given next.

    So many that it works at full width, or at as much of it as is fair. While there are plenty, one at least lies ready
    besides when it ends what it has begun, or it has half of a fair share of all that is missing. Shares get smaller
    towards the end, so that workers finish together (guided self-scheduling: Polychronopoulos & Kuck 1987; of what is
    missing rather than of what waits, so that the first shares are alike, which takes a third fewer messages).

    Args:
        waiting: jobs that no worker has.
        missing: jobs without a result, those that workers have among them.
        workers: that there are.
        has: jobs that this one has.
        jobs_at_once: that it has begun and not finished at a time, at most.
    """
    if has > jobs_at_once:
        return 0
    count = min(jobs_at_once, -(-missing // workers)) - has
    if missing > workers * jobs_at_once and 2 * waiting > workers:
        count = max(count + 1, missing // (2 * workers) - has)
    return max(0, min(waiting, count, _MOST_AHEAD * jobs_at_once))


def _name(ids: Sequence[Hashable]) -> str:
    if len(ids) == 1:
        return f"job {ids[0]}"
    more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
    return f"one of the jobs {', '.join(map(str, ids[:4]))}{more}"


def gave_up(tries: int, what: str, causes: Collection[str]) -> str:
    """The end of a message about a job or a task that is not tried again.

    Args:
        tries: Times that it was tried.
        what: What happened the last time.
        causes: The errors that it failed with, each once. One error for all tries would come again.
    """
    if tries > 1 and len(causes) == 1:
        kept = (
            "It failed in the same way each time and would again: put that right first. What is committed is kept, "
            "and the same command then goes on."
        )
    else:
        kept = "What is committed is kept: run the same command again to go on."
    return f"was tried {tries} time{'s' if tries > 1 else ''}; the last time {what}. {kept}"


def cause_of(error: BaseException) -> str:
    """What an error says of a job: ours are meant to be read as they are."""
    return f"it failed: {error if isinstance(error, WorldModelsError) else repr(error)}"


def cluster_address(execution: ExecutionConfig) -> str | None:
    """The address of the cluster that a run on Ray is to join; None where it is to have a local Ray."""
    address = execution.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


class InProcessExecutor:
    """Everything in this process, one thing at a time.

    Tasks see this process's own devices, whatever they are: ``num_gpus`` only matters where work is placed.

    Args:
        max_attempts: times that a job is tried.
    """

    num_gpus = 0
    can_grow = False

    def __init__(self, max_attempts: int = 3) -> None:
        self._max_attempts = max_attempts

    def run(
        self,
        task: Callable[..., Generator[Update, None, Result]],
        *arguments: Any,
        resources: Resources,
        on_update: Callable[[Update], None],
    ) -> Result:
        """See ``Executor.run``; a task in which an environment raised is begun again."""
        causes: set[str] = set()
        for tries in range(1, self._max_attempts + 1):
            try:
                return _run_task(task(*arguments), resources.threads, on_update)
            except EpisodeError as error:
                causes.add(repr(error))
                if tries == self._max_attempts:
                    raise JobError(f"{task.__name__} {gave_up(tries, cause_of(error), causes)}") from error
                logger.warning("%s, try %d of %d: %s", task.__name__, tries, self._max_attempts, cause_of(error))
        raise AssertionError("max_attempts is at least 1")

    @contextmanager
    def pool(
        self, factory: Callable[..., Worker], *arguments: Any, jobs_at_once: int = 1, worthwhile: int = 1
    ) -> Iterator[Pool]:
        with num_threads(1):
            yield _InProcessPool(partial(factory, *arguments), self._max_attempts)

    def publish(self, stage: str, figures: Figures) -> None:
        """There is no cluster to watch."""

    def close(self) -> None:
        """Nothing was started."""


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
        queue = JobQueue(jobs, self._max_attempts)
        shown: set[str] = set()
        while queue:
            left = {job.id: job for job in queue.take(len(queue))}
            waiting = iter([*left.values()])
            try:
                with num_threads(1):
                    for job_id, result in self._worker.run(waiting):
                        del left[job_id]
                        yield job_id, result
            except Exception as error:
                if isinstance(error, WorldModelsError) and not isinstance(error, JobError | EpisodeError):
                    raise
                if repr(error) not in shown:  # else its traceback is on the screen already
                    shown.add(repr(error))
                    logger.warning("a worker raised", exc_info=error)
                not_begun = {job.id for job in waiting}
                begun = [job_id for job_id in left if job_id not in not_begun]
                if isinstance(error, EpisodeError):
                    begun = [error.job_id]
                else:
                    self._worker = self._make_worker()  # nobody knows what state the old one is in
                queue.failed(begun, cause_of(error), error)
                self.retries += len(begun)
                queue.put_back([*left.values()])
            else:
                if left:
                    raise JobError(f"a worker ended without results for {list(left)}")
