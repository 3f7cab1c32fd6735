"""The mailbox between a worker's thread and the calls that bring its jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from actors import mailbox as mailbox_module
from actors.mailbox import Mailbox
from pipeline.execution.jobs import Ticket

LONG_S = 3600.0


@dataclass(frozen=True)
class Job:
    id: int


def tickets(*ids: int) -> list[Ticket]:
    return [Ticket(number, Job(number)) for number in ids]


def fetching(mailbox: Mailbox, batching_delay_s: float) -> Future[list[Any]]:
    """A fetch in a new thread."""
    answer: Future[list[Any]] = Future()

    def fetch() -> None:
        try:
            answer.set_result([ticket_id for ticket_id, _, _ in mailbox.fetch(batching_delay_s)])
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=fetch, daemon=True).start()
    return answer


def finish(mailbox: Mailbox) -> None:
    job = next(mailbox)
    mailbox.put_result(job.id, f"result {job.id}")


def test_results_are_batched_until_the_last_job_begins() -> None:
    mailbox = Mailbox()
    mailbox.post(tickets(1, 2, 3), failures=0)
    answer = fetching(mailbox, LONG_S)
    finish(mailbox)
    finish(mailbox)
    with pytest.raises(TimeoutError):
        answer.result(0.2)
    next(mailbox)
    assert answer.result(600) == [1, 2], "the third is at work, and nothing behind it"


@pytest.mark.parametrize("batching_delay_s", [0.0, 0.05])
def test_results_wait_at_most_the_given_time(batching_delay_s: float) -> None:
    mailbox = Mailbox()
    mailbox.post(tickets(1, 2, 3), failures=0)
    finish(mailbox)
    assert fetching(mailbox, batching_delay_s).result(600) == [1]


def test_result_has_the_time_since_its_job_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, now = Mailbox(), 100.0
    monkeypatch.setattr(mailbox_module, "time", SimpleNamespace(monotonic=lambda: now))
    mailbox.post(tickets(1), failures=0)
    job, now = next(mailbox), 107.5
    mailbox.put_result(job.id, "result 1")
    assert mailbox.fetch(0) == [(1, "result 1", 7.5)]


def test_job_is_released_only_before_it_begins() -> None:
    mailbox = Mailbox()
    mailbox.post(tickets(1, 2, 3), failures=0)
    next(mailbox)
    assert mailbox.recall([1, 2, 7]) == [2], "1 is at work, and 7 was never here"
    assert [job.id for job in mailbox] == [3]


def test_duplicate_job_is_ignored() -> None:
    mailbox = Mailbox()
    mailbox.post(tickets(1, 2, 3), failures=0)
    finish(mailbox)
    next(mailbox)
    mailbox.post(tickets(1, 2, 3, 4), failures=0)
    assert [job.id for job in mailbox] == [3, 4], "the first has a result, the second is at work"


def test_jobs_of_two_maps_with_the_same_id_run_one_after_the_other() -> None:
    mailbox = Mailbox()
    mailbox.post([Ticket(7, Job(1))], failures=0)
    next(mailbox)
    mailbox.post([Ticket(8, Job(1)), Ticket(9, Job(2))], failures=0)
    assert [job.id for job in mailbox] == [2], "the first job 1 is still at work"
    answer = fetching(mailbox, LONG_S)
    mailbox.put_result(2, "two")
    assert answer.result(600) == [9], "nothing that is queued can begin: the result does not wait for more"
    mailbox.put_result(1, "of the first map")
    assert next(mailbox).id == 1
    mailbox.put_result(1, "of the second map")
    results = [(ticket_id, result) for ticket_id, result, _ in mailbox.fetch(0)]
    assert results == [(7, "of the first map"), (8, "of the second map")]


def test_fetch_without_remaining_jobs_ends() -> None:
    mailbox = Mailbox()
    mailbox.post(tickets(1), failures=0)
    answer = fetching(mailbox, LONG_S)
    mailbox.recall([1])
    assert answer.result(600) == []


def test_recalled_job_can_be_sent_again() -> None:
    """The job arrives again after the fetches have ended."""
    mailbox = Mailbox()
    mailbox.post(tickets(1, 2), failures=0)
    mailbox.recall([2])
    finish(mailbox)
    assert [fetching(mailbox, LONG_S).result(600) for _ in range(2)] == [[1], []]
    mailbox.post(tickets(2), failures=0)
    finish(mailbox)
    assert fetching(mailbox, LONG_S).result(600) == [2]


def test_fetch_waits_for_later_jobs() -> None:
    mailbox = Mailbox()
    waited: Future[None] = Future()

    def wait() -> None:
        mailbox.wait_for_jobs()
        waited.set_result(None)

    threading.Thread(target=wait, daemon=True).start()
    with pytest.raises(TimeoutError):
        waited.result(0.1)
    mailbox.post(tickets(1), failures=0)
    waited.result(600)


def test_jobs_sent_before_a_failure_was_known_are_ignored() -> None:
    mailbox = Mailbox()
    mailbox.post(tickets(1, 2, 3), failures=0)
    finish(mailbox)
    next(mailbox)
    mailbox.fail(ValueError("of job 2"))
    mailbox.post(tickets(4), failures=0)
    assert fetching(mailbox, LONG_S).result(600) == [1], "earlier results are not lost"
    with pytest.raises(ValueError, match="of job 2"):
        mailbox.fetch(LONG_S)
    assert [job.id for job in mailbox] == []
    mailbox.post(tickets(2, 3), failures=1)
    assert [job.id for job in mailbox] == [2, 3]


def test_concurrent_messages_lose_and_duplicate_no_job() -> None:
    """Thousands of messages from two threads, as from a driver's calls, and a worker at full speed."""
    mailbox = Mailbox()
    count = 4000

    def work() -> None:
        while True:
            mailbox.wait_for_jobs()
            for job in mailbox:
                mailbox.put_result(job.id, None)

    def feed(first: int) -> None:
        for job_id in range(first, count, 2):
            mailbox.post(tickets(job_id), failures=0)

    def start(target: Callable[..., None], *arguments: int) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    start(work)
    feeders = [start(feed, 0), start(feed, 1)]
    got: list[int] = []
    while len(got) < count:
        results = fetching(mailbox, 0.01).result(600)
        got += results
        if not results and not any(feeder.is_alive() for feeder in feeders) and len(got) < count:
            results = fetching(mailbox, 0.01).result(600)
            got += results
            assert results, "nothing is left to come"
    assert sorted(got) == list(range(count))
