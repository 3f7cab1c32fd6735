"""Jobs of one map: the queue, the results that are missing, the failures, and the size of a worker's next batch."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

from pipeline.base.errors import JobError, WorldModelsError
from pipeline.execution.protocol import Job

logger = logging.getLogger(__name__)


class MapJobs:
    """Jobs of one ``Pool.map``: the ones that wait for a worker, the ones without a result, and their failures.

    Args:
        jobs: Jobs in the order of their dispatch.
        max_attempts: Maximum number of attempts per job.
    """

    def __init__(self, jobs: Iterable[Any], max_attempts: int) -> None:
        self._waiting = deque(jobs)
        self._unfinished = {job.id for job in self._waiting}
        self._max_attempts = max_attempts
        self._failures: Counter[Hashable] = Counter()
        self._causes: defaultdict[Hashable, set[str]] = defaultdict(set)
        self._requeued: set[Hashable] = set()
        self._exclusive: set[Hashable] = set()

    def __len__(self) -> int:
        """Number of jobs without a result."""
        return len(self._unfinished)

    @property
    def num_waiting(self) -> int:
        """Number of jobs that wait for a worker."""
        return len(self._waiting)

    def __contains__(self, job_id: Hashable) -> bool:
        """Whether a job of this map has no result yet."""
        return job_id in self._unfinished

    def unfinished(self, jobs: Iterable[Any]) -> list[Any]:
        """The given jobs that have no result yet."""
        return [job for job in jobs if job.id in self._unfinished]

    def take(self, count: int, *, has_others: bool = False) -> list[Any]:
        """Take the next jobs from the queue.

        A job on its last attempt is taken alone, so that the job that the final error names is the one that failed. A
        job that was requeued with ``alone`` is also taken alone.

        Args:
            count: Maximum number of jobs, at least 1.
            has_others: Whether the worker has other jobs. Jobs that go alone are then left in the queue.
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
        """Count a failed attempt of each job that may have caused a failure.

        Args:
            begun: IDs of the jobs that may have caused the failure.
            what: Description of the failure.
            cause: Error, if there is one.
            raised: Whether the job raised the error; otherwise its worker died or hung.

        Raises:
            JobError: It was the last attempt of one of the jobs.
        """
        self._failures.update(begun)
        for job_id in begun:
            self._causes[job_id].add(repr(cause) if raised else what)
        tries = max((self._failures[job_id] for job_id in begun), default=0)
        if tries >= self._max_attempts:
            causes = set[str]().union(*(self._causes[job_id] for job_id in begun))
            raise abandoned_error(_name(begun), tries, what, causes) from cause
        if begun:
            logger.warning("%s, try %d of %d: %s", _name(begun), tries, self._max_attempts, what)

    def requeue(self, jobs: Iterable[Any], *, alone: bool = False) -> list[Any]:
        """Put jobs at the front of the queue.

        Args:
            jobs: Jobs in the order of their dispatch. The ones that have a result, or are of an earlier map, are left
                out.
            alone: Whether each job goes alone from now on, because any of them may kill its worker.

        Returns:
            Requeued jobs.
        """
        jobs = self.unfinished(jobs)
        self._waiting.extendleft(reversed(jobs))
        self._requeued.update(job.id for job in jobs)
        if alone:
            self._exclusive.update(job.id for job in jobs)
        return jobs

    def waiting_ids(self) -> set[Hashable]:
        """IDs of the jobs that wait for a worker."""
        return {job.id for job in self._waiting}

    def finish(self, job_id: Hashable) -> bool:
        """Note that a job has a result, and remove it from the queue if it was requeued.

        Returns:
            Whether the result is the first one of the job, and the job is of this map.
        """
        if job_id not in self._unfinished:
            return False
        self._unfinished.remove(job_id)
        if job_id in self._requeued:
            self._requeued.remove(job_id)
            self._waiting = deque(job for job in self._waiting if job.id != job_id)
        return True

    @property
    def has_failures(self) -> bool:
        """Whether a job has failed."""
        return bool(self._failures)

    def is_on_last_try(self, job_id: Hashable) -> bool:
        """Whether the next attempt of a job is its last one."""
        return self._failures[job_id] == self._max_attempts - 1

    def goes_alone(self, job: Job) -> bool:
        """Whether a job must be the only one of its worker."""
        return job.id in self._exclusive or (self._failures[job.id] > 0 and self.is_on_last_try(job.id))


# Maximum number of jobs of a worker per job that it runs at once; more would leave too few for workers that join later.
_MOST_AHEAD = 8


def batch_for_worker(*, waiting: int, missing: int, workers: int, has: int, jobs_at_once: int) -> int:
    """Number of jobs to dispatch to a worker next.

    The worker gets enough jobs to run ``jobs_at_once``, or its fair share of them. While many jobs are queued, it also
    gets at least one job ahead, or half of its fair share of all missing jobs. Batches get smaller towards the end, so
    that workers finish together (guided self-scheduling: Polychronopoulos & Kuck 1987). They depend on the missing jobs
    rather than the queued ones, so that the first batches are equal, which takes a third fewer messages.

    Args:
        waiting: Number of queued jobs.
        missing: Number of jobs without a result, including the jobs that workers have.
        workers: Number of workers.
        has: Number of jobs that this worker has.
        jobs_at_once: Maximum number of jobs that the worker has begun and not finished.

    Returns:
        Number of jobs; 0 if the worker has enough.
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


def abandoned_error(name: str, tries: int, what: str, causes: Collection[str]) -> JobError:
    """Error about a job or a task that is abandoned.

    Args:
        name: Name of the job or the task.
        tries: Number of attempts.
        what: Description of the last failure.
        causes: Distinct errors of the attempts. If there is only one, another attempt would fail in the same way.
    """
    message = f"{name} was tried {tries} time{'s' if tries > 1 else ''}; the last time {what}"
    if tries > 1 and len(causes) == 1:
        message += ". It failed in the same way each time and would fail again"
        return JobError(message, resume_after="fix the cause")
    return JobError(message, resume_after="")


def cause_message(error: BaseException) -> str:
    """Description of a job's error. Errors of this project are shown as they are, others with their class."""
    return f"it failed: {error if isinstance(error, WorldModelsError) else repr(error)}"
