"""Which jobs a worker is given next, and how many."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.execution.jobs import MapJobs, Ticket, batch_for_worker
from tests.cluster.toys import Number


def made(count: int, max_attempts: int = 3, first: int = 0) -> MapJobs:
    return MapJobs([Number(number) for number in range(count)], max_attempts, first)


def ids(tickets: Sequence[Ticket]) -> list[int]:
    return [ticket.id for ticket in tickets]


def test_failed_job_goes_alone_on_its_last_try_and_holds_nobody_up() -> None:
    queue = made(10)
    for _ in range(2):
        taken = queue.take(4)
        assert ids(taken) == [0, 1, 2, 3]
        queue.failed([1], "it was unlucky", None)
        queue.requeue(taken)
    assert ids(queue.take(4)) == [0, 2, 3, 4]
    assert ids(queue.take(2, has_others=True)) == [5, 6]
    assert ids(queue.take(4)) == [1]
    last = queue.take(4)
    assert ids(last) == [7, 8, 9]
    assert queue.take(4) == []

    queue.failed([9], "it was unlucky", None)
    queue.failed([9], "it was unlucky", None)
    queue.requeue(last[2:])
    assert queue.take(4, has_others=True) == [] and queue.num_waiting == 1
    assert queue.goes_alone(last[2]) and not queue.goes_alone(last[0])


def test_the_first_result_of_a_job_counts_and_ends_its_copies() -> None:
    jobs = made(3, first=5)
    taken = jobs.take(2)
    assert ids(taken) == [5, 6] and jobs.next == 8
    assert jobs.requeue(taken, alone=True) == taken and jobs.num_waiting == 3
    assert jobs.finish(5, 1.0) == Number(0) and jobs.finish(5, 1.0) is None
    assert len(jobs) == 2 and 5 not in jobs and 6 in jobs
    earlier = Ticket(0, Number(1))
    assert jobs.requeue([taken[0], earlier]) == [], "neither a finished job nor one of an earlier map is queued"
    assert jobs.finish(earlier.id, 1.0) is None
    assert [ids(jobs.take(3)) for _ in range(2)] == [[6], [7]]


def test_jobs_are_selected_by_the_number_of_their_holders() -> None:
    jobs = made(3)
    first, second, queued = jobs.take(3)
    jobs.requeue([queued])
    jobs.note_held([first, second])
    jobs.note_held([second])
    assert jobs.with_holders(1, [first, second, queued]) == [first]
    jobs.note_dropped(first)
    assert jobs.with_holders(0, [first, second, queued]) == [first], "the third waits in the queue"


@pytest.mark.parametrize(
    ("waiting", "missing", "workers", "has", "jobs_at_once", "given"),
    [
        (4096, 4096, 256, 0, 1, 8),  # half of a fair share, to lie ready
        (2056, 4096, 256, 0, 1, 8),  # the last worker as many as the first
        (2048, 2304, 256, 1, 1, 3),  # the next ones, while it is at its last
        (700, 1024, 256, 0, 1, 2),  # one to begin, and one that lies ready
        (200, 456, 256, 1, 1, 1),
        (100, 356, 256, 1, 1, 0),  # no longer plenty: nothing lies ready where others may be idle first
        (100, 356, 256, 0, 1, 1),
        (1024, 1024, 128, 0, 16, 8),  # a fair share, of which all are begun at once
        (1024, 1024, 2, 0, 16, 24),  # not many ahead while others may wait for their first ones
        (1024, 1040, 2, 16, 16, 128),  # then no more ahead than this multiple of the jobs that it can begin
        (3, 20, 2, 8, 16, 2),  # towards the end as much as is fair
        (2, 20, 2, 12, 16, 0),
        (0, 20, 2, 3, 16, 0),
    ],
)
def test_shares(waiting: int, missing: int, workers: int, has: int, jobs_at_once: int, given: int) -> None:
    batch = batch_for_worker(waiting=waiting, missing=missing, workers=workers, has=has, jobs_at_once=jobs_at_once)
    assert batch == given
