"""Schedulers that are wrong: the simulation must notice each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from pipeline.execution import scheduler as module
from pipeline.execution.actions import Action, Send
from pipeline.execution.failures import Failure
from pipeline.execution.idle_workers import IdleAndFull
from pipeline.execution.jobs import MapJobs, Ticket, batch_for_worker
from pipeline.execution.node_watch import NodeWatch
from pipeline.execution.scheduler import Scheduler
from pipeline.execution.worker_state import ScheduledWorker, WorkerState

Patch = pytest.MonkeyPatch


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


# ---- jobs and results


def forgets_released_jobs(patch: Patch) -> None:
    patch.setattr(Scheduler, "_remove_jobs", lambda self, worker, ids: worker.remove_jobs(ids) and [])


def counts_each_result(patch: Patch) -> None:
    finish = Scheduler._finish

    def take(self: Scheduler, worker: ScheduledWorker, ticket_id: int, seconds: float) -> Any:
        ticket = worker.jobs.get(ticket_id)
        return finish(self, worker, ticket_id, seconds) or (ticket and ticket.job)

    patch.setattr(Scheduler, "_finish", take)


def confuses_maps(patch: Patch) -> None:
    begin = MapJobs.__init__
    patch.setattr(MapJobs, "__init__", lambda self, jobs, attempts, *_: begin(self, jobs, attempts))


def asks_only_once(patch: Patch) -> None:
    results = Scheduler.results

    def and_is_asked(self: Scheduler, worker: ScheduledWorker, *arguments: Any) -> list[Any]:
        jobs = results(self, worker, *arguments)
        worker.asked = True
        return jobs

    patch.setattr(Scheduler, "results", and_is_asked)


def has_results_kept(patch: Patch) -> None:
    patch.setattr(module, "_BATCHING_DELAY_S", 30.0)


# ---- who gets which jobs


def leaves_jobs_before_busy_workers(patch: Patch) -> None:
    patch.setattr(IdleAndFull, "surplus_for_idle", lambda self: iter(()))


def recalls_for_one_lane_at_a_time(patch: Patch) -> None:
    free_lanes = ScheduledWorker.free_lanes.fget  # type: ignore[attr-defined]
    patch.setattr(ScheduledWorker, "free_lanes", property(lambda self: min(1, free_lanes(self))))


def sends_no_jobs_ahead(patch: Patch) -> None:
    def batch(*, waiting: int, missing: int, workers: int, has: int, jobs_at_once: int) -> int:
        return max(0, min(waiting, min(jobs_at_once, -(-missing // workers)) - has))

    patch.setattr(module, "batch_for_worker", batch)


def shares_with_workers_that_take_none(patch: Patch) -> None:
    def share(*, workers: int, **values: int) -> int:
        return batch_for_worker(workers=2 * workers, **values)

    patch.setattr(module, "batch_for_worker", share)


def forgets_jobs_of_earlier_maps_in_shares(patch: Patch) -> None:
    patch.setattr(ScheduledWorker, "num_before", lambda self, ticket_id: 0)


def waits_for_lost_recalls(patch: Patch) -> None:
    patch.setattr(module, "_RECALL_S", math.inf)


# ---- slow workers


def copies_nothing(patch: Patch) -> None:
    patch.setattr(Scheduler, "_copy_slow_jobs", _nothing)


def copies_copies(patch: Patch) -> None:
    with_holders = MapJobs.with_holders

    def select(self: MapJobs, count: int, tickets: Iterable[Ticket]) -> list[Ticket]:
        tickets = list(tickets)
        return [each for most in range(count, 99 if count else 1) for each in with_holders(self, most, tickets)]

    patch.setattr(MapJobs, "with_holders", select)


def gives_jobs_to_slow_workers(patch: Patch) -> None:
    def takes(worker: ScheduledWorker) -> bool:
        return worker.state in (WorkerState.READY, WorkerState.SLOW) and not worker.exclusive

    patch.setattr(ScheduledWorker, "takes_jobs", property(takes))


def never_reports_hung_workers(patch: Patch) -> None:
    patch.setattr(ScheduledWorker, "silent_s", lambda self, now: 0.0)


# ---- workers that leave, and others instead


def gives_jobs_to_draining_workers(patch: Patch) -> None:
    patch.setattr(ScheduledWorker, "mark_draining", _nothing)


def returns_jobs_to_draining_workers(patch: Patch) -> None:
    released = Scheduler.released

    def give(self: Scheduler, worker: ScheduledWorker, ids: Sequence[int]) -> None:
        tickets = [worker.jobs[ticket_id] for ticket_id in ids if ticket_id in worker.jobs]
        released(self, worker, ids)
        if worker.state is WorkerState.DRAINING and tickets:
            self._actions.append(Send(worker, tickets, False, 0.0))

    patch.setattr(Scheduler, "released", give)


def keeps_draining_workers(patch: Patch) -> None:
    patch.setattr(Scheduler, "_check_draining", _nothing)


def recalls_nothing_from_draining_workers(patch: Patch) -> None:
    check, recall = Scheduler._check_draining, Scheduler._recall

    def only_end(self: Scheduler, worker: ScheduledWorker, now: float) -> None:
        self._recall = _nothing  # type: ignore[method-assign]
        check(self, worker, now)
        self._recall = recall.__get__(self)  # type: ignore[method-assign]

    patch.setattr(Scheduler, "_check_draining", only_end)


def requests_no_replacements(patch: Patch) -> None:
    request = Scheduler._request
    patch.setattr(Scheduler, "_request", lambda self: None if self.num_workers else request(self))


def requests_too_many(patch: Patch) -> None:
    patch.setattr(ScheduledWorker, "staying", property(lambda self: self.state is WorkerState.READY))


# ---- failures


def counts_no_tries(patch: Patch) -> None:
    patch.setattr(MapJobs, "failed", _nothing)


def allows_one_more_try(patch: Patch) -> None:
    begin = MapJobs.__init__
    patch.setattr(MapJobs, "__init__", lambda self, jobs, most, *more: begin(self, jobs, most + 1, *more))


def counts_no_retries(patch: Patch) -> None:
    patch.setattr(Scheduler, "_retry", lambda self, tickets, begun: self.jobs.requeue(tickets))


def blames_jobs_of_lost_nodes(patch: Patch) -> None:
    patch.setattr(NodeWatch, "was_lost_with", lambda self, worker, failure, now: False)


def blames_jobs_that_were_not_begun(patch: Patch) -> None:
    failed = Scheduler.failed

    def blame(self: Scheduler, worker: ScheduledWorker, failure: Failure, now: float) -> None:
        failed(self, worker, failure, now, [*worker.jobs])

    patch.setattr(Scheduler, "failed", blame)


def blames_nobody_alone(patch: Patch) -> None:
    patch.setattr(MapJobs, "goes_alone", lambda self, ticket: False)
    patch.setattr(MapJobs, "_goes_alone", lambda self, entry: False)


def ignores_unreachable_workers(patch: Patch) -> None:
    patch.setattr(Scheduler, "_check_unreachable", _nothing)


def repeats_last_tries(patch: Patch) -> None:
    patch.setattr(MapJobs, "is_on_last_try", lambda self, ticket_id: False)


def forgets_attempts_of_unreachable_workers(patch: Patch) -> None:
    patch.setattr(MapJobs, "note_unresolved", _nothing)


def waits_long_for_unreachable_workers(patch: Patch) -> None:
    patch.setattr(module, "_UNREACHABLE_S", 20.0)


def starts_workers_for_ever(patch: Patch) -> None:
    decide = Scheduler.decide

    def and_forget(self: Scheduler, now: float) -> list[Action]:
        self._failed_starts = 0
        return decide(self, now)

    patch.setattr(Scheduler, "decide", and_forget)


def stalls_after_failures(patch: Patch) -> None:
    failed, decide = Scheduler.failed, Scheduler.decide
    until: dict[Scheduler, float] = {}

    def fail(self: Scheduler, worker: ScheduledWorker, failure: Failure, now: float) -> None:
        until[self] = now + 5.0
        failed(self, worker, failure, now)

    patch.setattr(Scheduler, "failed", fail)
    patch.setattr(Scheduler, "decide", lambda self, now: [] if now < until.get(self, 0.0) else decide(self, now))


MUTATIONS: tuple[Callable[[Patch], None], ...] = (
    forgets_released_jobs,
    counts_each_result,
    confuses_maps,
    asks_only_once,
    has_results_kept,
    leaves_jobs_before_busy_workers,
    recalls_for_one_lane_at_a_time,
    sends_no_jobs_ahead,
    shares_with_workers_that_take_none,
    forgets_jobs_of_earlier_maps_in_shares,
    waits_for_lost_recalls,
    copies_nothing,
    copies_copies,
    gives_jobs_to_slow_workers,
    never_reports_hung_workers,
    gives_jobs_to_draining_workers,
    returns_jobs_to_draining_workers,
    keeps_draining_workers,
    recalls_nothing_from_draining_workers,
    requests_no_replacements,
    requests_too_many,
    counts_no_tries,
    allows_one_more_try,
    counts_no_retries,
    blames_jobs_of_lost_nodes,
    blames_jobs_that_were_not_begun,
    blames_nobody_alone,
    ignores_unreachable_workers,
    repeats_last_tries,
    forgets_attempts_of_unreachable_workers,
    waits_long_for_unreachable_workers,
    starts_workers_for_ever,
    stalls_after_failures,
)
