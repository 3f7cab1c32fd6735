"""A pool of worker actors: jobs to whoever is free, results as they come, dead workers replaced."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, cast
from uuid import uuid4

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.identity import WorkerIdentity, session_logs
from actors.worker import WorkerActor, as_ours
from pipeline.errors import JobError
from pipeline.executor import Worker

logger = logging.getLogger(__name__)

# How the loss of a worker shows; out of memory is its own class, also for actors.
_LOST = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)


class _Member:
    """An actor, and what it is busy with.

    Attributes:
        waiting_for: the reference or generator that the next answer comes from; None while idle.
        jobs: the jobs of the call in flight that have no result yet, by id.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.identity: WorkerIdentity | None = None
        self.waiting_for: Any = actor.identity.remote()
        self.jobs: dict[Hashable, Any] = {}

    @property
    def idle(self) -> bool:
        return self.waiting_for is None


class RayPool:
    """Workers that stay alive from call to call. Use as ``pipeline.executor.Pool``.

    Args:
        factory, arguments: make a worker; shipped once to each node through the object store.
        num_workers: actors at most; fewer are started where there are fewer jobs.
        jobs_per_call: jobs handed to a worker at a time, at most.
        max_attempts: times that a job is handed out when workers die under it.
        exact: refuse a worker on another kind of CPU than the driver's.
    """

    def __init__(
        self,
        factory: Callable[..., Worker],
        arguments: tuple[Any, ...],
        *,
        num_workers: int,
        jobs_per_call: int,
        max_attempts: int,
        exact: bool,
    ) -> None:
        self.num_workers = num_workers
        self.retries = 0
        self._name = factory.__name__
        self._factory, self._arguments = factory, ray.put(arguments)
        self._jobs_per_call = jobs_per_call
        self._max_attempts = max_attempts
        self._exact = exact
        self._failed_starts = 0
        self._members: list[_Member] = []

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """See ``pipeline.executor.Pool.map``."""
        waiting = deque(jobs)
        attempts: Counter[Hashable] = Counter(job.id for job in waiting)
        while waiting or any(member.jobs for member in self._members):
            self._start(len(waiting))
            for member in self._members:
                if member.idle and waiting:
                    # A job on its last try goes alone, so that the one named for killing workers is the one that does.
                    last_try = attempts[waiting[0].id] == self._max_attempts
                    count = 1 if last_try else self._share(len(waiting))
                    self._hand_out(member, [waiting.popleft() for _ in range(count)])
            member = self._next_answer()
            try:
                yield from self._take(member)
            except _LOST as error:
                lost = self._bury(member, error)
                attempts.update(list(lost))
                self.retries += len(lost)
                for job in reversed(lost.values()):
                    if attempts[job.id] > self._max_attempts:
                        raise JobError(
                            f"job {job.id} was tried {self._max_attempts} times, and each time its worker died: "
                            f"{_first_line(error)}; {self._where(member)}"
                        ) from error
                    waiting.appendleft(job)

    def _share(self, waiting: int) -> int:
        """Jobs of the next call: at most half of a fair share of what waits, so that calls get smaller towards the end
        and the workers finish together."""
        return min(self._jobs_per_call, max(1, waiting // (2 * self.num_workers)))

    def close(self) -> None:
        """End the actors."""
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()

    def _start(self, wanted: int) -> None:
        """Start actors until there is one for each job that waits, or as many as allowed."""
        busy = sum(1 for member in self._members if member.jobs)
        while len(self._members) < min(self.num_workers, busy + wanted):
            name = f"{self._name}-{uuid4().hex[:8]}"
            actor = cast(Any, WorkerActor).options(name=name).remote(self._factory, self._arguments)
            self._members.append(_Member(actor))

    def _hand_out(self, member: _Member, jobs: list[Any]) -> None:
        member.jobs = {job.id: job for job in jobs}
        member.waiting_for = member.actor.run.options(num_returns="streaming").remote(jobs)

    def _next_answer(self) -> _Member:
        """The next member with something to say."""
        expected = {member.waiting_for: member for member in self._members if not member.idle}
        ready, _ = ray.wait(list(expected), num_returns=1, fetch_local=False)
        return expected[ready[0]]

    def _take(self, member: _Member) -> Iterator[tuple[Hashable, Any]]:
        """Take a member's answer: that it has started, or a result."""
        try:
            if member.identity is None:
                identity = ray.get(member.waiting_for)
                identity.check(exact=self._exact)
                member.identity, member.waiting_for = identity, None
                self._failed_starts = 0
                return
            try:
                reference = next(member.waiting_for)
            except StopIteration:
                member.waiting_for = None
                if member.jobs:
                    raise JobError(f"a worker ended without results for {list(member.jobs)}") from None
                return
            job_id, result = ray.get(reference)
        except RayTaskError as error:
            raise as_ours(error, f"one of the jobs {list(member.jobs)}", self._where(member)) from error
        except _LOST:
            raise
        except RayError as error:
            raise JobError(f"{self._name} failed on Ray: {error!r}; {self._where(member)}") from error
        del member.jobs[job_id]
        yield job_id, result

    def _bury(self, member: _Member, error: RayError) -> dict[Hashable, Any]:
        """Forget a dead actor; returns the jobs that it took with it."""
        self._members.remove(member)
        if member.identity is None:
            self._failed_starts += 1
            if self._failed_starts >= self._max_attempts:
                raise JobError(
                    f"{self._failed_starts} workers died before they were ready: {error}; {self._where(member)}"
                ) from error
        else:
            ray.kill(member.actor)
        lost = member.jobs
        logger.warning(
            "a worker died, %d jobs are tried again: %s; %s", len(lost), _first_line(error), self._where(member)
        )
        return lost

    def _where(self, member: _Member) -> str:
        if member.identity is None:
            return f"the worker's log is under {session_logs()}"
        return member.identity.log_location()


def _first_line(error: RayError) -> str:
    return str(error).strip().splitlines()[0]
