"""A pool of worker actors: jobs to whoever is free, results as they come, workers that come, go, die and hang."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, repeat
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from actors.identity import WorkerIdentity
from actors.listening import LISTEN_S, LOST, SAY_EVERY_S, first_line, has_answer, linger_s, listen_to_all, silence
from actors.member import Member
from actors.nodes import Node, nodes
from actors.placement import Place, Placement, left_alone
from actors.round import Failed, Round
from actors.telemetry import Telemetry
from actors.worker import not_to_be_retried
from pipeline.base.errors import EpisodeError, JobError
from pipeline.config.schema import ExecutionConfig
from pipeline.execution.jobs import JobQueue, cause_of, share
from pipeline.execution.protocol import Worker

logger = logging.getLogger(__name__)

_TEND_EVERY_S = 1.0
# A worker is suspect once it has been silent for so many times as long as nine of ten jobs take.
_SUSPECT_AFTER = 2.0
_DOUBT_S = 2.0
_NEWS_S = 30.0
_TAKE_BACK_S = 0.5
_PROMPT = 4  # so many workers keep no results back: there is soon something to see


class RayPool:
    """Workers that stay alive from call to call. Use as ``pipeline.execution.protocol.Pool``.

    An actor is asked for wherever one more worker would help: those that Ray cannot place yet are what makes an
    autoscaler add nodes, and they end with the pool.

    Args:
        factory, arguments: make a worker; shipped once to each node through the object store.
        execution: how often jobs are tried, how long silence may be, which nodes are for workers.
        telemetry: counts workers, retries and losses.
        placement: chooses nodes; None leaves it to Ray, where there is only one.
        max_workers: actors at most; None: as many as are worthwhile.
        jobs_at_once, worthwhile: see ``pipeline.execution.protocol.Executor.pool``.

    Attributes:
        num_workers: so many have been ready at a time, at most.
        retries: times that a job was tried again.
        copies: jobs that were given to a second worker because the first was silent.
        lost_workers: that were lost with their node.
    """

    def __init__(
        self,
        factory: Callable[..., Worker],
        arguments: tuple[Any, ...],
        *,
        execution: ExecutionConfig,
        telemetry: Telemetry,
        placement: Placement | None,
        max_workers: int | None,
        jobs_at_once: int,
        worthwhile: int,
    ) -> None:
        self.num_workers = self.retries = self.copies = self.lost_workers = 0
        self._label = factory.__name__
        self._factory, self._arguments = factory, ray.put(arguments)
        self._execution = execution
        self._driver = WorkerIdentity.of_this_process()
        self._telemetry = telemetry
        self._placement = placement
        self._max_workers = max_workers
        self._jobs_at_once = jobs_at_once
        self._worthwhile = worthwhile
        self._failed_starts = self._ready = 0
        self._members: list[Member] = []
        # Seconds that this process was awake for: one that was stopped (Ctrl-Z) has listened to nobody meanwhile.
        self._clock = self._said = 0.0
        self._looked = time.monotonic()
        self._gone = {node.id for node in nodes() if not node.alive}
        self._node_lost = -math.inf
        self._avoided: set[str] = set()

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        """See ``pipeline.execution.protocol.Pool.map``."""
        jobs = list(jobs)
        this = Round(JobQueue(jobs, self._execution.max_attempts), {job.id: job for job in jobs}, [])
        tend_at = self._clock
        while this.missing:
            if self._clock >= tend_at:
                self._tend(this)
                tend_at = self._clock + _TEND_EVERY_S
            # While jobs lie before every worker, nobody waits to be heard.
            answers = self._listen(patient=bool(this.seconds) and len(this.queue) > self._ready)
            hungry: Iterable[Member] = answers
            for member, answer in answers.items():
                try:
                    yield from self._take(member, answer, this)
                except Failed as failed:
                    self._take_over(failed, this)
                    hungry = self._members  # for the jobs that it had
            self._hand_out(this, hungry)

    def close(self) -> None:
        """End the actors, also those that still wait for a node."""
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()
        self._telemetry.workers(0)

    def _ask_for_workers(self, jobs: int) -> None:
        """Have an actor for each worthwhile number of jobs, or as many as allowed."""
        wanted = -(-jobs // self._worthwhile) if self._max_workers is None else min(self._max_workers, jobs)
        missing = wanted - sum(1 for member in self._members if not member.leaving)
        if missing <= 0:
            return
        places: Iterator[Place] = repeat(Place())
        if self._placement is not None:
            places = self._placement.places(nodes(), sum(1 for member in self._members if member.on_head))
        self._members += [Member(self._label, place, self._jobs_at_once) for place in islice(places, missing)]

    def _hand_out(self, this: Round, members: Iterable[Member]) -> None:
        """Give jobs to those of some members that are about to run out of them, first those with the fewest."""
        # Once a job has failed, results come one by one: then it is known which job a worker was at when it died.
        linger = 0.0 if this.queue.has_failures else linger_s(self._ready, self._execution.timeout_s)
        lingers = dict.fromkeys(self._members[:_PROMPT], 0.0)
        for member in sorted((member for member in members if member.takes_jobs), key=lambda member: len(member.jobs)):
            count = share(
                waiting=len(this.queue), missing=len(this.missing), workers=self._ready, has=len(member.jobs),
                jobs_at_once=self._jobs_at_once,
            )  # fmt: skip
            jobs = this.queue.take(count, has_others=bool(member.jobs)) if count else []
            if not jobs:
                continue
            if not member.jobs:
                member.heard = self._clock
            member.alone = this.queue.goes_alone(jobs[0])
            member.hand(jobs, lingers.get(member, linger))
        for member in members:
            member.ask(lingers.get(member, linger))

    def _listen(self, *, patient: bool) -> dict[Member, Any]:
        """Wait a moment for members to have something to say; returns what, of those that do."""
        speaking = {member.waiting_for: member for member in self._members if member.waiting_for is not None}
        answers = listen_to_all([*speaking], self._ready, patient=patient)
        now = time.monotonic()
        self._clock += min(now - self._looked, 2 * LISTEN_S)
        self._looked = now
        return {speaking[reference]: answer for reference, answer in answers.items()}

    def _take(self, member: Member, answer: Any, this: Round) -> Iterator[tuple[Hashable, Any]]:
        """Take a member's answer: that its process is up, that its worker is built, results, or an error."""
        try:
            if isinstance(answer, RayError):
                raise answer
            if member.doubt is not None:
                raise Failed(member, f"the connection to its worker was lost; {member.where()}", member.doubt)
            if member.identity is None:
                member.identity, member.heard = answer, self._clock
                member.waiting_for = None
                if self._placement is None or member.node_id not in self._placement.to_leave(nodes()):
                    member.identity.check(self._driver, exact=self._execution.exact)
                    if self._placement is not None:
                        member.identity.warn_if_starved(self._driver)
                    member.build(self._factory, self._arguments)
                return
            if not member.ready:
                member.ready, member.waiting_for, member.heard = True, None, self._clock
                self._failed_starts = 0
                self._count_workers()
                return
        except RayTaskError as error:
            ours = not_to_be_retried(error)
            if ours is not None:
                raise ours from error
            raise Failed(member, f"{cause_of(error.cause)}; {member.where()}", error.cause) from error
        except ActorUnavailableError as error:
            if member.doubt is None:
                member.begin_doubt(error)
                member.heard = self._clock
            else:
                member.waiting_for = None  # to be asked again
            return
        except LOST as error:
            raise Failed(member, f"its worker died: {first_line(error)}; {member.where()}", error) from error
        except RayError as error:
            raise Failed(member, f"it failed on Ray: {error!r}; {member.where()}", error) from error
        results = member.take_results(answer)
        if results:
            member.suspect, member.heard = False, self._clock
        for job_id, result, seconds in results:
            if this.missing.pop(job_id, None) is not None:  # or another worker was first, or it is of an earlier round
                this.queue.done(job_id)
                this.seconds.append(seconds)
                yield job_id, result

    def _take_over(self, failed: Failed, this: Round) -> None:
        """Hand the jobs of a member that failed to others, and do away with it unless it says itself that it is fit."""
        member, begun = failed.member, failed.member.suspects or failed.member.begun()
        left = self._only_its(member, this)
        member.lose_jobs()
        fit, preempted = isinstance(failed.cause, EpisodeError), self._lost_its_node(member, failed.cause)
        if isinstance(failed.cause, EpisodeError):
            begun = [failed.cause.job_id]
        begun = [job_id for job_id in begun if job_id in this.missing]
        if not fit:
            self._remove(member)
            self._telemetry.lost_worker(preempted=preempted)
        if preempted:
            self.lost_workers += 1
            logger.warning("a worker is lost with its node, which costs no job a try: %s", failed)
        elif member.ready:
            this.queue.failed(begun, str(failed), failed.cause, raised=failed.raised)
        else:
            self._failed_starts += 1
            if self._failed_starts >= self._execution.max_attempts:
                raise JobError(
                    f"{self._failed_starts} workers failed before they were ready, the last: {failed}"
                ) from failed.cause
        self._try_again(left, begun, this)
        if not begun and not (fit or preempted):
            logger.warning("a worker is replaced: %s", failed)
        if member.ready or not preempted:  # Ray may send others after it: they are asked for once a second
            self._ask_for_workers(len(this.missing))

    def _try_again(self, jobs: Sequence[Any], begun: Collection[Hashable], this: Round) -> None:
        """Put back jobs, some of which had begun."""
        this.queue.put_back(jobs)
        retries = sum(1 for job in jobs if job.id in begun)
        self.retries += retries
        self._telemetry.retried(retries)

    def _lost_its_node(self, member: Member, cause: BaseException | None) -> bool:
        """Whether a member died because its machine was taken away: no job's fault."""
        if not isinstance(cause, LOST):
            return False
        known = {node.id: node for node in nodes()}
        gone = {node.id for node in known.values() if not node.alive or node.draining}
        if gone - self._gone:
            self._gone, self._node_lost = gone, self._clock
        if member.identity is None:  # it may have been on its way to a node that was lost just now
            return self._clock - self._node_lost < _NEWS_S
        return member.identity.node_id in gone or member.identity.node_id not in known

    def _count_workers(self) -> None:
        self._ready = sum(1 for member in self._members if member.ready)
        self.num_workers = max(self.num_workers, self._ready)
        self._telemetry.workers(self._ready)

    def _remove(self, member: Member) -> None:
        self._members.remove(member)
        member.leaving = True
        ray.kill(member.actor)
        self._count_workers()

    def _tend(self, this: Round) -> None:
        """What need not be done more often than once a second."""
        self._look_into_doubts(this)
        self._leave_nodes(this)
        self._give_up_the_silent(this)
        self._ask_for_workers(len(this.missing))
        self._say_what_is_waited_for()
        if not this.queue:
            idle = sum(1 for member in self._members if member.takes_jobs and not member.jobs)
            self._level(this, idle)
            self._copy_from_silent(this, idle)
        self._hand_out(this, self._members)

    def _silent_s(self, member: Member) -> float:
        """How long a member has been listened to, without an answer; 0 while its process is not up: it may wait for a
        node that the autoscaler is to bring."""
        return 0.0 if member.identity is None or member.waiting_for is None else self._clock - member.heard

    def _give_up_the_silent(self, this: Round) -> None:
        limit = self._execution.timeout_s
        for member in [member for member in self._members if self._silent_s(member) >= limit]:
            if not has_answer(member.waiting_for):
                self._take_over(Failed(member, f"{silence(limit)}; {member.where()}", None), this)

    def _look_into_doubts(self, this: Round) -> None:
        """Of workers that cannot be reached: see whether their node is gone. Jobs wait a little, last tries longer."""
        for member in [member for member in self._members if member.doubt is not None]:
            if self._lost_its_node(member, member.doubt):
                self._take_over(Failed(member, str(member.doubt), member.doubt), this)
                continue
            if member.waiting_for is None:
                member.ask_again()
            silent_s = self._clock - member.heard
            if silent_s > _DOUBT_S:
                jobs = {job.id: job for job in self._only_its(member, this)}
                # Whether a job has had its last try must be known before it is begun elsewhere.
                kept = [] if silent_s > _NEWS_S else [i for i in member.suspects if this.queue.is_on_last_try(i)]
                member.jobs = {job_id: jobs.pop(job_id) for job_id in kept if job_id in jobs}
                self._try_again([*jobs.values()], member.suspects, this)

    def _only_its(self, member: Member, this: Round) -> list[Any]:
        """Of a member's jobs, those without a result that nobody else has, nor waits."""
        elsewhere = this.queue.ids().union(*(other.jobs for other in self._members if other is not member))
        return [job for job in this.without_result(member.jobs.values()) if job.id not in elsewhere]

    def _leave_nodes(self, this: Round) -> None:
        """Give no more jobs to workers on nodes that are to be left; take back what they have not begun, and end those
        that have nothing left."""
        if self._placement is None:
            return
        known = {node.id: node for node in nodes()}
        to_leave = self._placement.to_leave([*known.values()])
        for member in self._members:
            if member.node_id in to_leave and not member.leaving and member.doubt is None:
                member.leaving = True
                logger.info("no more jobs: its node is to be left; %s", member.where())
        leaving = [member for member in self._members if member.leaving and member.doubt is None]
        self._take_back(dict.fromkeys(leaving), this)
        for member in leaving:
            node = known.get(member.node_id or "")
            if node is not None and not (node.draining or node.is_head):
                self._avoid(node)
            if not member.jobs:
                self._remove(member)
                if node is not None and node.draining:
                    self._telemetry.lost_worker(preempted=True)

    def _avoid(self, node: Node) -> None:
        """Say of a node that came after actors were asked for why it is left, and end those that still wait: they would
        go there. Others are asked for in their place, which know of it."""
        if node.id not in self._avoided:
            self._avoided.add(node.id)
            logger.warning("%s", left_alone(node))
            for member in [member for member in self._members if member.identity is None]:
                self._remove(member)

    def _take_back(self, counts: Mapping[Member, int | None], this: Round) -> None:
        """Put back into the queue what members have not begun: so many of their jobs at most, or all.

        They say themselves which these are. Where one gives no answer, all that it may not have begun are handed out
        again, and some are run twice.
        """
        asked = {member: member.ask_back(count) for member, count in counts.items()}
        references = [reference for _, reference in asked.values() if reference is not None]
        if references:
            ray.wait(references, num_returns=len(references), timeout=_TAKE_BACK_S, fetch_local=False)
        for member, (ids, reference) in asked.items():
            if reference is not None and has_answer(reference):
                with suppress(RayError):  # whatever it is, who asks for its results is told as well
                    ids = ray.get(reference)
            elif reference is not None:
                ids = [*member.jobs][self._jobs_at_once :]
            this.queue.put_back(this.without_result(member.drop(ids)))

    def _level(self, this: Round, idle: int) -> None:
        """Take jobs that were not begun back from the workers that have the most, for those that have none."""
        surplus = {member: len(member.jobs) - self._jobs_at_once for member in self._members}
        largest = sorted(surplus, key=lambda member: -surplus[member])[:idle]
        self._take_back({member: -(-surplus[member] // 2) for member in largest if surplus[member] > 0}, this)

    def _copy_from_silent(self, this: Round, idle: int) -> None:
        """Where nothing is left to begin, and workers are idle: do again what silent workers are at. The first answer
        counts; on one kind of CPU they are the same."""
        if not idle or not this.seconds:
            return
        limit = max(_TEND_EVERY_S, _SUSPECT_AFTER * float(np.quantile(this.seconds, 0.9)))
        linger = linger_s(self._ready, self._execution.timeout_s)
        silent = {
            member: self._silent_s(member) - (linger if len(member.jobs) > self._jobs_at_once else 0.0)
            for member in self._members if member.jobs and not (member.suspect or member.doubt)
        }  # fmt: skip
        suspects = [member for member, silent_s in silent.items() if silent_s > limit]
        for member in suspects:
            member.suspect = True
        self._take_back(dict.fromkeys(suspects), this)
        for member in suspects:
            copied = this.without_result(member.jobs.values())
            if copied:
                self.copies += len(copied)
                logger.info(
                    "%d jobs are done again elsewhere: no answer for %.1f s; %s",
                    len(copied), silent[member], member.where(),
                )  # fmt: skip
                this.queue.put_back(copied, alone=True)

    def _say_what_is_waited_for(self) -> None:
        """Where there is not one worker: that a node is waited for, and what kind."""
        if any(member.identity is not None and not member.leaving for member in self._members):
            self._said = self._clock
        elif self._clock - self._said >= SAY_EVERY_S:
            self._said = self._clock
            logger.warning(
                "%d workers of one CPU each wait for a node. GPU nodes are left alone, and so is the head where there "
                "are others, unless execution.workers_on names them; `ray status` shows what the autoscaler does",
                len(self._members),
            )
