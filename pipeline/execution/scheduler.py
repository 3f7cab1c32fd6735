"""The scheduler of a pool: which worker gets which jobs, and how the jobs of a lost worker are rescued.

It knows no Ray and no clock: events come in, actions go out, and time is a value of an event.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from pipeline.base.errors import EpisodeError, JobError
from pipeline.execution import node_watch
from pipeline.execution.actions import Action, Build, End, Recall, ReportHung, Request, Send
from pipeline.execution.failures import Failure, FailureKind
from pipeline.execution.idle_workers import IdleAndFull
from pipeline.execution.jobs import MapJobs, Ticket, batch_for_worker
from pipeline.execution.node_watch import Nodes, NodeWatch
from pipeline.execution.worker_state import ScheduledWorker, WorkerState

logger = logging.getLogger(__name__)

_UNREACHABLE_S = 2.0  # after which an unreachable worker's jobs are requeued
_RECALL_S = 0.5  # after which a recall without an answer counts as one that was refused
_BATCHING_DELAY_S = 2.0  # how long a worker with jobs ahead keeps results: one message then brings several


class Scheduler:
    """Decides about the workers of a pool. The same events give the same actions.

    After events, ``decide`` returns the actions. About once a second ``tick`` handles timeouts. Events of a
    removed worker are ignored. The life of a worker (``pipeline.execution.worker_state.WorkerState``):

    1. Requested: there are jobs for one more worker. It may wait for a node.
    2. Building: its process is up, on a node that it need not leave.
    3. Ready: it receives jobs and returns results.
    4. Slow: it is silent for long while others are idle. Its jobs also run elsewhere, until it answers.
    5. Draining: its node is going away or is not for workers. Jobs that it has not begun are recalled.
    6. Unreachable: its connection failed. Its jobs are requeued until a lost process or node is reported.
    7. Removed: it drained, died or hung, and is ended. While jobs are left, others are requested.

    ::

        REQUESTED --up--> BUILDING --built--> READY --silent--> SLOW
                                                ^                |
                                                `----results-----'

        any of these --node to be left----> DRAINING
        any of these, or DRAINING --connection failed--> UNREACHABLE
        any state ----died, raised, hung, drained, answered after its connection failed, node lost----> REMOVED

    Args:
        max_attempts: Maximum number of attempts per job, and of failed starts in a row.
        timeout_s: Seconds of silence after which a worker counts as hung.
        jobs_at_once: Maximum number of jobs that a worker has begun and not finished.
        jobs_per_worker: Jobs that justify one more worker; not used with ``max_workers``.
        max_workers: Maximum number of workers; None: one for every ``jobs_per_worker`` jobs.

    Attributes:
        workers: Workers that are not removed, in the order of their requests.
        jobs: Jobs of the present map.
        num_built: Number of workers that are built.
        num_workers: Maximum number of workers that were built at the same time.
        retries: Number of times that a job was tried again.
        copies: Number of jobs of slow workers that were also sent to another worker.
        lost_workers: Number of workers that were lost with their node.
        skipped_nodes: IDs of the nodes on which workers were placed although they are not for workers.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        timeout_s: float = math.inf,
        jobs_at_once: int = 1,
        jobs_per_worker: int = 1,
        max_workers: int | None = None,
    ) -> None:
        self.workers: dict[ScheduledWorker, None] = {}
        self.jobs = MapJobs([], max_attempts)
        self.num_built = self.num_workers = self.retries = self.copies = self.lost_workers = 0
        self.skipped_nodes: set[str] = set()
        self._max_attempts, self._timeout_s, self._jobs_at_once = max_attempts, timeout_s, jobs_at_once
        self._jobs_per_worker, self._max_workers = jobs_per_worker, max_workers
        self._actions: list[Action] = []
        self._changed: dict[ScheduledWorker, None] = {}
        self._ready: set[ScheduledWorker] = set()
        self._idle_and_full = IdleAndFull()
        self._failed_starts = 0
        self._needs_workers = False
        self._nodes = NodeWatch()

    # ---- events

    def begin(self, jobs: Iterable[Any], now: float) -> None:
        """A map begins. Workers that have begun jobs of the last one finish them, and their results do not count."""
        num_earlier = sum(len(worker.jobs) for worker in self.workers)
        self.jobs = MapJobs(jobs, self._max_attempts, self.jobs.next, num_earlier)
        self._changed.update(self.workers)
        for worker in self.workers:
            self._recall(worker, worker.surplus, now)
        self._needs_workers = True

    def requested(self, worker: ScheduledWorker) -> None:
        """A worker was requested."""
        self.workers[worker] = None

    def up(self, worker: ScheduledWorker, node_id: str | None, now: float) -> None:
        """A worker's process is up."""
        if worker.state is WorkerState.REMOVED:
            return
        worker.node_id, worker.heard_at = node_id, now
        if node_id in self._nodes.nodes.leave:
            self._drain(worker)
        elif worker.state is WorkerState.REQUESTED:
            worker.mark_building()
            self._actions.append(Build(worker))

    def built(self, worker: ScheduledWorker, now: float) -> None:
        """A worker is built."""
        if worker.state is WorkerState.REMOVED:
            return
        worker.heard_at = now
        worker.mark_built()
        self._failed_starts = 0
        self.num_built += 1
        self.num_workers = max(self.num_workers, self.num_built)
        self._note_change(worker)

    def results(self, worker: ScheduledWorker, results: Sequence[tuple[int, float]], now: float) -> list[Any]:
        """A worker answered with results, or with none if it has no jobs.

        Args:
            worker: Worker.
            results: Pairs (ID of the ticket, seconds).
            now: Time in seconds.

        Returns:
            For each result its job, if the result counts because it is the first one of a job of this map; else None.
        """
        worker.asked = False
        if worker.state is WorkerState.REMOVED:
            return [None] * len(results)
        if results:
            worker.heard_at = now
            worker.mark_answered()
        elif worker.jobs:
            # Messages may overtake each other: the recall of a job may have removed a later dispatch of it, too.
            self._send(worker, [*worker.jobs.values()])
        jobs = [self._finish(worker, ticket_id, seconds) for ticket_id, seconds in results]
        self._note_change(worker)
        return jobs

    def released(self, worker: ScheduledWorker, ids: Sequence[int]) -> None:
        """A worker answered a recall with the IDs of the tickets that it released."""
        worker.recalled = None
        self.jobs.requeue(self._remove_jobs(worker, ids))
        self._note_change(worker)

    def unreachable(self, worker: ScheduledWorker, failure: Failure, now: float) -> None:
        """The connection to a worker failed."""
        if worker.state is WorkerState.REMOVED or worker.unreachable:
            return
        worker.mark_unreachable(failure)
        worker.heard_at = now
        self._note_change(worker)

    def failed(self, worker: ScheduledWorker, failure: Failure, now: float, begun: Sequence[int] | None = None) -> None:
        """A worker died, hung, raised, or answered after its connection had failed.

        A worker whose job raised an ``EpisodeError`` stays, and has dropped its jobs. Any other is removed.

        Args:
            worker: Worker.
            failure: Failure, with the location of the worker's log.
            now: Time in seconds.
            begun: IDs of the tickets that the worker had begun; None if only the scheduler can tell.

        Raises:
            JobError: A job has failed for the last time, or too many workers failed to start.
        """
        if worker.state is WorkerState.REMOVED:
            return
        stays = failure.by_environment
        preempted = self._nodes.was_lost_with(worker, failure, now)
        if begun is None:
            begun = worker.begun_when_lost or worker.begun()
        if isinstance(failure.cause, EpisodeError):
            begun = worker.tickets_of(failure.cause.job_id)
        begun = [ticket_id for ticket_id in begun if ticket_id in self.jobs]
        left = [*self._remove_jobs(worker, [*worker.jobs]), *self.jobs.resolve(worker.resolve())]
        worker.recalled, worker.asked = None, False
        worker.mark_answered()
        if not stays:
            self._end(worker, preempted=preempted)
        if preempted:
            self.lost_workers += 1
            logger.warning(
                "worker lost with its node; its jobs are requeued (not counted as attempts): %s", failure.what
            )
        elif worker.built:
            self.jobs.failed(begun, failure.what, failure.cause, raised=failure.kind is FailureKind.RAISED)
        elif failure.kind is not FailureKind.UNREACHABLE:
            self._failed_starts += 1
            if self._failed_starts >= self._max_attempts:
                message = f"{self._failed_starts} workers failed to start; the last one: {failure.what}"
                raise JobError(message) from failure.cause
        self._retry(left, begun)
        if not begun and not (stays or preempted):
            logger.warning("a worker is replaced: %s", failure.what)
        self._note_change(worker)
        # A replacement may be sent to the node that is going away: it is requested at the next tick.
        if worker.built or not preempted:
            self._needs_workers = True

    def see_nodes(self, nodes: Nodes, now: float) -> None:
        """The nodes of the cluster are these."""
        self._nodes.see(nodes, now)
        for worker in self.workers:
            if worker.node_id in nodes.leave and worker.staying:
                self._drain(worker)

    def tick(self, now: float) -> None:
        """Time has passed: about a second since the last tick.

        Raises:
            JobError: See ``failed``.
        """
        for worker in [worker for worker in self.workers if worker.unreachable]:
            self._check_unreachable(worker, now)
        for worker in [worker for worker in self.workers if worker.state is WorkerState.DRAINING]:
            self._check_draining(worker, now)
        self._actions += [ReportHung(worker) for worker in self.workers if worker.silent_s(now) >= self._timeout_s]
        self._needs_workers = True
        for worker in self.workers:
            if worker.recalled is not None and now - worker.recalled_at >= _RECALL_S:
                self.jobs.requeue(self._remove_jobs(worker, worker.recalled))
                worker.recalled = None
                self._note_change(worker)
        if not self.jobs.num_waiting:
            self._copy_slow_jobs(now)

    # ---- decisions

    def decide(self, now: float) -> list[Action]:
        """Actions that follow from the events since the last call, in their order."""
        if self._needs_workers:
            self._request()
        if self.jobs.num_waiting:
            if self.jobs.has_shareable:
                self._changed.update(self._idle_and_full.idle)
            else:  # each of these jobs needs a worker without jobs: look at no more workers than jobs
                for worker in self._changed:
                    self._idle_and_full.update(worker)
                self._changed.update(dict.fromkeys(islice(self._idle_and_full.empty, self.jobs.num_waiting)))
        changed, self._changed = self._changed, {}
        earlier = 0  # jobs of earlier maps on workers that take jobs: they take lanes
        if self.jobs.num_earlier:
            earlier = sum(worker.num_before(self.jobs.first) for worker in self._ready)
        for worker in sorted(changed, key=lambda worker: len(worker.jobs)):
            tickets = self._batch(worker, earlier) if worker.takes_jobs else []
            if tickets:
                worker.exclusive = self.jobs.goes_alone(tickets[0])
                if not worker.jobs:
                    worker.heard_at = now
                worker.jobs.update((ticket.id, ticket) for ticket in tickets)
                self.jobs.note_held(tickets)
            if tickets or (worker.jobs and worker.built and not (worker.asked or worker.unreachable)):
                self._send(worker, tickets)
            self._note_ready(worker)
            self._idle_and_full.update(worker)
        if not self.jobs.has_shareable:
            for worker, count in self._idle_and_full.surplus_for_idle():
                self._recall(worker, count, now)
        actions, self._actions = self._actions, []
        return actions

    def _batch(self, worker: ScheduledWorker, earlier: int) -> list[Ticket]:
        count = batch_for_worker(
            waiting=self.jobs.num_waiting, missing=len(self.jobs) + earlier, workers=len(self._ready),
            has=len(worker.jobs), jobs_at_once=self._jobs_at_once,
        )  # fmt: skip
        return self.jobs.take(count, has_others=bool(worker.jobs)) if count else []

    def _send(self, worker: ScheduledWorker, tickets: Sequence[Ticket]) -> None:
        # Once a job has failed, no results are kept back: that shows which job a worker was running when it died.
        at_once = self.jobs.has_failures or self._max_attempts == 1
        delay_s = 0.0 if at_once else min(_BATCHING_DELAY_S, self._timeout_s / 4)
        self._actions.append(Send(worker, tickets, not worker.asked, delay_s))
        worker.asked = True

    def _recall(self, worker: ScheduledWorker, count: int, now: float) -> None:
        ids = worker.not_begun(count)
        if ids and worker.recalled is None:
            worker.recalled, worker.recalled_at = ids, now
            self._actions.append(Recall(worker, ids))
            self._idle_and_full.update(worker)

    def _request(self) -> None:
        """Request workers up to one for every ``jobs_per_worker`` jobs, or up to ``max_workers``."""
        jobs = len(self.jobs)
        wanted = -(-jobs // self._jobs_per_worker) if self._max_workers is None else min(self._max_workers, jobs)
        self._needs_workers = False
        missing = wanted - sum(1 for worker in self.workers if worker.staying)
        if missing > 0:
            self._actions.append(Request(missing))

    def _end(self, worker: ScheduledWorker, *, preempted: bool | None) -> None:
        del self.workers[worker]
        worker.mark_removed()
        self._actions.append(End(worker, preempted))
        self.num_built -= worker.built
        self._note_change(worker)

    def _copy_slow_jobs(self, now: float) -> None:
        """Run slow workers' jobs on idle workers as well. The first result counts (the same bits on equal CPUs)."""
        if not self._idle_and_full.empty:
            return
        limit = self.jobs.slow_after_s()
        for worker in self.workers:
            if not worker.jobs or worker.copied or worker.unreachable:
                continue
            silent_s = worker.silent_s(now)
            if silent_s - (_BATCHING_DELAY_S if worker.surplus else 0.0) <= limit:
                continue
            worker.mark_slow()
            self._note_change(worker)
            self._recall(worker, worker.surplus, now)
            # A job that runs elsewhere already is left there: copies of copies would occupy one worker after another.
            begun = self.jobs.with_holders(1, [worker.jobs[ticket_id] for ticket_id in worker.begun()])
            copied = self.jobs.requeue(begun, alone=True)
            if copied:
                self.copies += len(copied)
                message = "%d jobs are also run elsewhere: no answer for %.1f s; %s"
                logger.info(message, len(copied), silent_s, worker.where())

    # ---- lost and leaving workers

    def _check_unreachable(self, worker: ScheduledWorker, now: float) -> None:
        """Discard an unreachable worker with its node, or requeue its jobs after a while, last tries later."""
        assert worker.failure is not None
        if self._nodes.was_lost_with(worker, worker.failure, now):
            self.failed(worker, worker.failure, now)
            return
        silent_s = now - worker.heard_at
        if silent_s <= _UNREACHABLE_S:
            return
        # A job on its last try starts elsewhere only once its worker's fate is known.
        begun = [ticket_id for ticket_id in worker.begun_when_lost if ticket_id in self.jobs]
        is_late = silent_s > node_watch.REPORT_S
        kept = {ticket_id for ticket_id in begun if not is_late and self.jobs.is_on_last_try(ticket_id)}
        self.jobs.note_unresolved(worker.leave_unresolved(kept))
        lost = self._remove_jobs(worker, [ticket_id for ticket_id in worker.jobs if ticket_id not in kept])
        self._retry([*lost, *self.jobs.resolve(worker.resolve() if is_late else [])], begun)

    def _drain(self, worker: ScheduledWorker) -> None:
        worker.mark_draining()
        self._note_change(worker)
        logger.info("draining worker: its node is going away or is not for workers; %s", worker.where())

    def _check_draining(self, worker: ScheduledWorker, now: float) -> None:
        """Recall the jobs that a draining worker has not begun, and end it once it has none."""
        self._recall(worker, worker.surplus, now)
        if worker.node_id in self._nodes.nodes.unwanted and worker.node_id not in self.skipped_nodes:
            self.skipped_nodes.add(worker.node_id)
            # Workers that wait for a node may be sent there as well: new ones will avoid it.
            for waiting in [waiting for waiting in self.workers if waiting.node_id is None]:
                self._end(waiting, preempted=None)
        if not worker.jobs:
            self._end(worker, preempted=True if worker.node_id in self._nodes.nodes.gone else None)

    # ---- bookkeeping

    def _finish(self, worker: ScheduledWorker, ticket_id: int, seconds: float) -> Any:
        """Take a job with a result from its worker; returns the job if the result counts, else None."""
        self._remove_jobs(worker, [ticket_id])
        return self.jobs.finish(ticket_id, seconds)

    def _remove_jobs(self, worker: ScheduledWorker, ids: Iterable[int]) -> list[Ticket]:
        """Remove tickets from a worker; returns the ones to requeue: without a result and another worker."""
        tickets = worker.remove_jobs(ids)
        for ticket in tickets:
            self.jobs.note_dropped(ticket)
        return self.jobs.with_holders(0, tickets)

    def _retry(self, tickets: Iterable[Ticket], begun: Sequence[int]) -> None:
        """Requeue jobs; started jobs count as retries."""
        self.retries += sum(1 for ticket in self.jobs.requeue(tickets) if ticket.id in begun)

    def _note_change(self, worker: ScheduledWorker) -> None:
        self._changed[worker] = None
        self._note_ready(worker)

    def _note_ready(self, worker: ScheduledWorker) -> None:
        if worker.takes_jobs:
            self._ready.add(worker)
        else:
            self._ready.discard(worker)
