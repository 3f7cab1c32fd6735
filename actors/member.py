"""A worker of a pool as its driver sees it: an actor, and the jobs that lie before it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import Any
from uuid import uuid4

from actors.identity import WorkerIdentity, session_logs
from actors.placement import Place
from actors.worker import WorkerActor
from pipeline.execution.protocol import Worker


class Member:
    """An actor, and what it is busy with.

    Its messages are pickled here: half of what a call costs, which limits how many workers a driver can keep busy, is
    what Ray does for its arguments.

    Args:
        label: what Ray calls the actor, and its calls, for people.
        place: where Ray may put it.
        jobs_at_once: how many jobs it has begun and not finished at a time, at most.

    Attributes:
        actor: its handle.
        identity: where it is; None until its process is up.
        ready: whether its worker is built.
        waiting_for: the reference that the next answer comes by; None while nothing is asked.
        jobs: those that were handed to it and have no result from it yet, by id, in the order that it takes them in.
        heard: when it last gave an answer, or had nothing to answer, by the pool's clock.
        leaving: whether it gets no new jobs, because its node is to be left.
        suspect: whether it has been silent for so long that its jobs were given to others as well.
        on_head: whether it is where it is for want of another node.
        alone: whether its job must have no other beside it.
        doubt: the error after which it is not known whether it died alone or with its node; None mostly.
        suspects: the jobs that it had begun then.
    """

    def __init__(self, label: str, place: Place, jobs_at_once: int) -> None:
        name = f"{label}-{uuid4().hex[:8]}"
        self.actor: Any = WorkerActor.options(name=name, **place.options).remote(label)  # type: ignore[attr-defined]
        # Ray takes a task's name from the actor's label only once the worker tells it.
        self._exchange = self.actor.exchange.options(name=f"{label}.run")
        self.identity: WorkerIdentity | None = None
        self.ready = False
        self.waiting_for: Any = self.actor.identity.remote()
        self.jobs: dict[Hashable, Any] = {}
        self.heard = 0.0
        self.leaving = self.suspect = self.alone = False
        self.on_head = place.on_head
        self.doubt: BaseException | None = None
        self.suspects: list[Hashable] = []
        self._jobs_at_once = jobs_at_once
        self._failures = 0
        self._knows_of_none = False

    @property
    def node_id(self) -> str | None:
        """Where it is; None until its process is up."""
        return None if self.identity is None else self.identity.node_id

    @property
    def takes_jobs(self) -> bool:
        """Whether it can be handed jobs."""
        return self.ready and not (self.leaving or self.suspect or self.alone)

    def build(self, factory: Callable[..., Worker], arguments: Any) -> None:
        self.waiting_for = self.actor.build.remote(factory, arguments)

    def begin_doubt(self, error: BaseException) -> None:
        """Nobody answers at the other end. Ray will know in a moment whether the process has ended, and in some seconds
        whether its node has; it says so to whoever calls."""
        self.doubt, self.suspects, self.leaving = error, self.begun(), True
        self.ask_again()

    def ask_again(self) -> None:
        self.waiting_for = self.actor.identity.remote()

    def hand(self, jobs: Sequence[Any], linger_s: float) -> None:
        """Put jobs before it, and ask for results."""
        self.jobs.update((job.id, job) for job in jobs)
        if self.waiting_for is None:
            self.waiting_for = self._exchange.remote(pickle.dumps((jobs, self._failures, linger_s)))
        else:
            self.actor.add.remote(pickle.dumps((jobs, self._failures)))

    def ask(self, linger_s: float) -> None:
        """Ask for more results, where there are some to come."""
        if self.jobs and self.waiting_for is None and self.doubt is None:
            self.hand([*self.jobs.values()] if self._knows_of_none else [], linger_s)

    def take_results(self, answer: bytes) -> list[tuple[Hashable, Any, float]]:
        """The results that it has answered with: (job id, result, seconds) each."""
        results: list[tuple[Hashable, Any, float]] = pickle.loads(answer)
        self.waiting_for = None
        # Messages may overtake each other: what was taken back and handed out again may have come in the other order.
        self._knows_of_none = not results
        for job_id, _, _ in results:
            self.jobs.pop(job_id, None)
        self.alone = self.alone and bool(self.jobs)
        return results

    def lose_jobs(self) -> None:
        """It raised: what lay before it is gone, and so is what is on its way."""
        self.jobs, self.waiting_for, self.alone = {}, None, False
        self._failures += 1

    def begun(self) -> list[Hashable]:
        """The ids of the jobs that it may be at: it takes them in order."""
        return list(islice(self.jobs, self._jobs_at_once))

    def ask_back(self, count: int | None = None) -> tuple[list[Hashable], Any]:
        """Ask for those jobs back that it has not begun.

        Args:
            count: so many of them at most, the last ones; None: all.

        Returns:
            The ids of what it was asked for, and the reference by which it says which of them it has left out; no ids
            and None where it can have no such job.
        """
        first = self._jobs_at_once if count is None else max(self._jobs_at_once, len(self.jobs) - count)
        ids = list(islice(self.jobs, first, None))
        return ids, self.actor.take_back.remote(ids) if ids else None

    def drop(self, ids: Sequence[Hashable]) -> list[Any]:
        """The jobs of these ids, which are no longer its own."""
        return [self.jobs.pop(job_id) for job_id in ids if job_id in self.jobs]

    def where(self) -> str:
        """Where its log lies."""
        if self.identity is None:
            return f"the worker's log is under {session_logs()}"
        return self.identity.log_location()
