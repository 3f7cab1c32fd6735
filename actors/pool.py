"""A pool of worker actors: jobs to whoever is free, results as they come, dead and hung workers replaced."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
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
from actors.worker import WorkerActor, not_to_be_retried
from pipeline.errors import EpisodeError, JobError
from pipeline.executor import JobQueue, Worker, cause_of

logger = logging.getLogger(__name__)

# How the loss of a worker shows; out of memory is its own class, also for actors.
LOST = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)

_LISTEN_S = 1.0


class _Failed(Exception):
    """A call to a member came to nothing.

    Attributes:
        member: whose.
        cause: the error; None where it hung.
    """

    def __init__(self, member: _Member, what: str, cause: BaseException | None) -> None:
        super().__init__(what)
        self.member = member
        self.cause = cause


class _Member:
    """An actor, and what it is busy with.

    Attributes:
        identity: where it is; None until its process is up.
        ready: whether its worker is built.
        waiting_for: the reference or generator that the next answer comes from; None while idle.
        jobs: the jobs of the call in flight that have no result yet, by id.
        silent_s: how long an answer has been listened for, without one.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.identity: WorkerIdentity | None = None
        self.ready = False
        self.waiting_for: Any = actor.identity.remote()
        self.jobs: dict[Hashable, Any] = {}
        self.silent_s = 0.0

    @property
    def idle(self) -> bool:
        return self.waiting_for is None


class RayPool:
    """Workers that stay alive from call to call. Use as ``pipeline.executor.Pool``.

    Args:
        factory, arguments: make a worker; shipped once to each node through the object store.
        num_workers: actors at most; fewer are started where there are fewer jobs.
        jobs_per_call: jobs handed to a worker at a time, at most.
        max_attempts: times that a job is handed out: it may raise, workers may die or hang under it.
        timeout_s: a worker whose process is up and that gives no answer for so long is killed.
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
        timeout_s: float,
        exact: bool,
    ) -> None:
        self.num_workers = num_workers
        self.retries = 0
        self._name = factory.__name__
        self._factory, self._arguments = factory, ray.put(arguments)
        self._jobs_per_call = jobs_per_call
        self._max_attempts = max_attempts
        self._timeout_s = timeout_s
        self._exact = exact
        self._failed_starts = 0
        self._members: list[_Member] = []

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """See ``pipeline.executor.Pool.map``."""
        queue = JobQueue(jobs, self._max_attempts)
        while queue or any(member.jobs for member in self._members):
            self._start(len(queue))
            for member in self._members:
                if member.idle and queue:
                    self._hand_out(member, queue.take(self._share(len(queue))))
            try:
                yield from self._take(self._next_answer())
            except _Failed as failed:
                left = self._end_call(failed)
                if left:
                    culprit = failed.cause.job_id if isinstance(failed.cause, EpisodeError) else None
                    self.retries += queue.put_back(left, str(failed), failed.cause, culprit)
                else:
                    logger.warning("a worker is replaced: %s", failed)

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
            actor = cast(Any, WorkerActor).options(name=name).remote()
            self._members.append(_Member(actor))

    def _hand_out(self, member: _Member, jobs: list[Any]) -> None:
        member.jobs, member.silent_s = {job.id: job for job in jobs}, 0.0
        member.waiting_for = member.actor.run.options(num_returns="streaming").remote(jobs)

    def _next_answer(self) -> _Member:
        """The next member with something to say.

        Raises:
            _Failed: one that is up has been silent for too long.
        """
        expected = {member.waiting_for: member for member in self._members if not member.idle}
        while True:
            ready, listened_s = listen(list(expected))
            answering = expected.get(ready)
            for member in expected.values():
                # One that is not up yet may be waiting for a node that the autoscaler is to bring.
                if member.identity is not None and member is not answering:
                    member.silent_s += listened_s
                    if member.silent_s >= self._timeout_s and not _has_answer(member):
                        raise _Failed(member, f"{silence(self._timeout_s)}; {self._where(member)}", None)
            if answering is not None:
                answering.silent_s = 0.0
                return answering

    def _take(self, member: _Member) -> Iterator[tuple[Hashable, Any]]:
        """Take a member's answer: that its process is up, that its worker is built, or a result."""
        try:
            if member.identity is None:
                identity = ray.get(member.waiting_for)
                identity.check(exact=self._exact)
                member.identity = identity
                member.waiting_for = member.actor.build.remote(self._factory, self._arguments)
                return
            if not member.ready:
                ray.get(member.waiting_for)
                member.ready, member.waiting_for = True, None
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
            ours = not_to_be_retried(error)
            if ours is not None:
                raise ours from error
            raise _Failed(member, f"{cause_of(error.cause)}; {self._where(member)}", error.cause) from error
        except LOST as error:
            raise _Failed(member, f"its worker died: {_first_line(error)}; {self._where(member)}", error) from error
        except RayError as error:
            raise _Failed(member, f"it failed on Ray: {error!r}; {self._where(member)}", error) from error
        del member.jobs[job_id]
        yield job_id, result

    def _end_call(self, failed: _Failed) -> dict[Hashable, Any]:
        """Do away with the member, unless it says itself that it is fit to go on; returns the jobs that it had left."""
        member = failed.member
        left, member.jobs, member.waiting_for = member.jobs, {}, None
        if isinstance(failed.cause, EpisodeError):
            return left
        self._members.remove(member)
        ray.kill(member.actor)
        if not member.ready:
            self._failed_starts += 1
            if self._failed_starts >= self._max_attempts:
                raise JobError(
                    f"{self._failed_starts} workers failed before they were ready, the last: {failed}"
                ) from failed.cause
        return left

    def _where(self, member: _Member) -> str:
        if member.identity is None:
            return f"the worker's log is under {session_logs()}"
        return member.identity.log_location()


def listen(waitables: Sequence[Any]) -> tuple[Any, float]:
    """Wait a moment for one of them to have something to say: that one or None, and how long was waited.

    A driver that was itself stopped meanwhile (Ctrl-Z) has listened no longer than it meant to.
    """
    began = time.monotonic()
    ready, _ = ray.wait(list(waitables), num_returns=1, timeout=_LISTEN_S, fetch_local=False)
    return next(iter(ready), None), min(time.monotonic() - began, _LISTEN_S)


def silence(timeout_s: float) -> str:
    """What is said of a worker that hangs."""
    return (
        f"its worker hung: it gave no sign of life for {timeout_s:g} s and was killed "
        "(execution.timeout_s: raise it if a job takes longer)"
    )


def _has_answer(member: _Member) -> bool:
    return bool(ray.wait([member.waiting_for], timeout=0, fetch_local=False)[0])


def _first_line(error: RayError) -> str:
    return str(error).strip().splitlines()[0]
