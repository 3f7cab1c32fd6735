"""The jobs of one map: which wait, how often each has failed, and how many a worker is given at a time."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

from pipeline.base.errors import JobError, WorldModelsError
from pipeline.execution.protocol import Job

logger = logging.getLogger(__name__)


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
