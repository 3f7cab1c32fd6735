"""Decisions of the scheduler, by events and actions alone: moments that once went wrong."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.base.errors import EpisodeError, JobError
from pipeline.execution.actions import Action, End, Recall, ReportHung, Request, Send
from pipeline.execution.failures import Failure, FailureKind
from pipeline.execution.node_watch import Nodes
from pipeline.execution.scheduler import Scheduler
from pipeline.execution.worker_state import ScheduledWorker, WorkerState
from tests.cluster.toys import Number

CONNECTION_LOST = Failure(FailureKind.UNREACHABLE, "its connection failed", None)


class Driver:
    """A driver with workers that are ready at once, each on a node of its own."""

    def __init__(self, workers: int, lanes: int = 1, **settings: Any) -> None:
        self.scheduler = Scheduler(max_attempts=3, jobs_at_once=lanes, max_workers=workers, **settings)
        self.workers = [ScheduledWorker(lanes) for _ in range(workers)]
        for number, worker in enumerate(self.workers):
            self.scheduler.requested(worker)
            self.scheduler.up(worker, f"node {number}", 0.0)
            self.scheduler.built(worker, 0.0)
        self.nodes = frozenset(f"node {number}" for number in range(workers))
        self.scheduler.see_nodes(Nodes(known=self.nodes), 0.0)
        self.scheduler.decide(0.0)

    def begin(self, *ids: int, now: float = 0.0) -> list[Action]:
        self.scheduler.begin([Number(job_id) for job_id in ids], now)
        return self.scheduler.decide(now)

    def finish(self, worker: ScheduledWorker, now: float, count: int = 1) -> list[Any]:
        """The worker answers with its first jobs; returns the jobs whose results count."""
        jobs = self.scheduler.results(worker, [(ticket_id, 0.1) for ticket_id in [*worker.jobs][:count]], now)
        self.scheduler.decide(now)
        return jobs

    def tick(self, now: float) -> list[Action]:
        self.scheduler.tick(now)
        return self.scheduler.decide(now)


def sent(actions: list[Action]) -> list[tuple[Any, list[int]]]:
    """Worker and job IDs of each message with jobs."""
    sends = [action for action in actions if isinstance(action, Send) and action.tickets]
    return [(send.worker, [ticket.job.id for ticket in send.tickets]) for send in sends]


def test_a_long_job_is_copied_once_and_not_to_one_worker_after_another() -> None:
    driver = Driver(6)
    driver.begin(*range(6))
    slow = driver.workers[0]
    for worker in driver.workers[1:]:
        assert driver.finish(worker, 0.1)
    copies = [sent(driver.tick(float(now))) for now in range(1, 60)]
    assert sum(map(len, copies)) == 1 and driver.scheduler.copies == 1
    assert slow.state is WorkerState.SLOW
    assert [ids for _, ids in sent(driver.begin(*range(6, 10), now=60.0))] == [[6], [7], [8], [9]]


def test_late_result_of_an_earlier_map_does_not_count_for_an_equal_id() -> None:
    driver = Driver(2)
    driver.begin(1, 2)
    late, other = driver.workers
    (of_first_map,) = [*late.jobs]
    driver.scheduler.unreachable(late, CONNECTION_LOST, 0.0)
    driver.finish(other, 1.0)
    driver.tick(3.0)  # the job of the unreachable worker is requeued
    assert driver.finish(other, 4.0) == [Number(1)]
    driver.begin(1, now=5.0)
    assert driver.scheduler.results(late, [(of_first_map, 9.0)], 5.1) == [None]
    assert driver.finish(other, 6.0) == [Number(1)]


@pytest.mark.parametrize("with_node", [False, True])
def test_a_job_is_not_begun_too_often_before_its_lost_workers_are_reported(with_node: bool) -> None:
    driver = Driver(5)
    driver.begin(1)
    lost: list[ScheduledWorker] = []
    for now in map(float, range(20)):  # each worker that begins the job loses its connection at once
        holders = [worker for worker in driver.workers if worker.jobs and not worker.unreachable]
        for worker in holders:
            driver.scheduler.unreachable(worker, CONNECTION_LOST, now)
            lost.append(worker)
        driver.tick(now + 0.5)
    assert len(lost) == 3, "max_attempts"
    died = Failure(FailureKind.WORKER_LOST, "its worker died", None)
    if with_node:  # none of them failed: there are as many attempts left as before
        gone = frozenset(worker.node_id for worker in lost if worker.node_id is not None)
        driver.scheduler.see_nodes(Nodes(known=driver.nodes, gone=gone), 21.0)
        driver.tick(21.0)
        (again,) = [worker for worker in driver.workers if worker.jobs]
        driver.scheduler.failed(again, died, 22.0)
        driver.scheduler.decide(22.0)
        assert driver.scheduler.jobs.has_failures and len(driver.scheduler.jobs) == 1
        return
    for worker in lost[:2]:
        driver.scheduler.failed(worker, died, 21.0)
    with pytest.raises(JobError, match=r"^job 1 was tried 3 times"):
        driver.scheduler.failed(lost[2], died, 22.0)


def test_same_jobs_can_be_mapped_again_while_a_worker_still_has_one() -> None:
    driver = Driver(2)
    driver.begin(1, 2)
    slow, other = driver.workers
    driver.finish(other, 0.1)
    driver.tick(10.0)  # its job also runs on the other worker
    assert driver.finish(other, 10.5) == [Number(1)]
    assert sent(driver.begin(1, now=11.0)) == [(other, [1])]
    lost = Failure(FailureKind.WORKER_LOST, "its worker died", None)
    driver.scheduler.failed(slow, lost, 12.0)
    driver.scheduler.failed(other, lost, 13.0)
    assert driver.scheduler.jobs.num_waiting == 1


def test_jobs_of_an_earlier_map_that_did_not_begin_are_recalled() -> None:
    driver = Driver(1)
    driver.begin(*range(8))
    assert len(driver.workers[0].jobs) > 1
    recalls = [action for action in driver.begin(9, now=1.0) if isinstance(action, Recall)]
    assert [len(recall.ids) for recall in recalls] == [len(driver.workers[0].jobs) - 1]


def test_jobs_of_an_earlier_map_take_lanes_but_leave_the_others_busy() -> None:
    driver = Driver(1, lanes=4)
    (worker,) = driver.workers
    driver.begin(1, 2)
    assert sent(driver.begin(3, 4, now=1.0)) == [(worker, [3, 4])], "two lanes are free"
    driver = Driver(2, lanes=4)
    busy, other = driver.workers
    driver.begin(*range(8))
    driver.finish(other, 0.5, count=4)
    assert sent(driver.begin(*range(10, 14), now=1.0)) == [(other, [10, 11, 12, 13])], "the other one has no free lane"
    assert driver.finish(busy, 2.0, count=4) == [None] * 4
    assert driver.scheduler.jobs.num_earlier == 0


def test_worker_of_a_job_that_goes_alone_is_not_in_the_fair_share() -> None:
    driver = Driver(2, lanes=4)
    alone, other = driver.workers
    driver.begin(0)
    for now in (1.0, 2.0):
        (holder,) = (worker for worker in driver.workers if worker.jobs)
        error = EpisodeError("it is bad", 0)
        driver.scheduler.failed(holder, Failure(FailureKind.RAISED, "it raised", error), now)
        driver.scheduler.decide(now)
    (alone,) = (worker for worker in driver.workers if worker.exclusive)
    (other,) = (worker for worker in driver.workers if worker is not alone)
    assert sent(driver.begin(1, 2, 3, 4, now=3.0)) == [(other, [1, 2, 3, 4])]


def test_draining_workers_do_not_count_in_the_fair_share() -> None:
    driver = Driver(8, lanes=16)
    healthy = driver.workers[0]
    driver.scheduler.see_nodes(Nodes(known=driver.nodes, gone=driver.nodes, leave=driver.nodes - {"node 0"}), 0.0)
    driver.begin(*range(20))
    assert len(healthy.jobs) >= 16


def test_connections_that_fail_at_the_start_are_no_failed_starts() -> None:
    scheduler = Scheduler(max_attempts=3, max_workers=1)
    scheduler.begin([Number(1)], 0.0)
    for now in range(5):
        (request,) = scheduler.decide(now)
        assert request == Request(1)
        worker = ScheduledWorker(1)
        scheduler.requested(worker)
        scheduler.see_nodes(Nodes(known=frozenset({"node"})), now)
        scheduler.up(worker, "node", now)
        scheduler.decide(now)
        scheduler.unreachable(worker, CONNECTION_LOST, now)
        scheduler.failed(worker, CONNECTION_LOST, now + 0.5)
        assert [action for action in scheduler.decide(now) if isinstance(action, End)]
        scheduler.tick(now + 1.0)


def test_silent_worker_is_reported_after_the_limit() -> None:
    driver = Driver(1, timeout_s=100.0)
    driver.begin(1)
    assert not [action for action in driver.tick(99.0) if isinstance(action, ReportHung)]
    assert driver.tick(100.0)[0] == ReportHung(driver.workers[0])
