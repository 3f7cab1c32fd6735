"""Thousands of simulated maps, each with its own faults: see ``tests/simulation/faults.py`` for what must be true.

``python -m tests.simulation SEED`` replays a seed that failed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.execution.idle import IdleAndFull
from pipeline.execution.jobs import MapJobs
from pipeline.execution.node_watch import NodeWatch
from pipeline.execution.scheduler import Scheduler
from pipeline.execution.worker_state import ScheduledWorker
from tests.simulation.faults import Violated, case_of, run_seed

SEEDS, AT_ONCE = 3000, 250
MOST = 400  # seeds until a mutation must have been noticed


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of workers die: nobody reads of each."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_whatever_happens_each_job_has_one_result_and_nobody_idles(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        try:
            run_seed(seed)
        except Exception as error:
            pytest.fail(f"{error!r}: replay it with `python -m tests.simulation {seed}`")


@pytest.mark.parametrize(("seed", "workers"), [(1, 256), (2, 1024), (3, 2048), (6, 2048)])
def test_the_same_holds_for_thousands_of_workers(seed: int, workers: int) -> None:
    try:
        run_seed(seed, workers)
    except Exception as error:
        pytest.fail(f"{error!r}: replay it with `python -m tests.simulation {seed} {workers}`")


def test_a_seed_gives_the_same_actions_each_time() -> None:
    for seed in range(20):
        first: list[str] = []
        second: list[str] = []
        run_seed(seed, show=first.append)
        run_seed(seed, show=second.append)
        assert first == second and first


def test_seeds_draw_every_kind_of_harm() -> None:
    cases = [case_of(seed) for seed in range(SEEDS)]
    for name in ("kills", "hangs", "partings", "lost_nodes", "drains", "stops", "stragglers", "far", "poison", "fatal"):
        assert sum(bool(getattr(case, name)) for case in cases) > 100, name
    assert sum(case.calm for case in cases) > 100
    assert {how for case in cases for how, _ in case.poison.values()} == {"kill", "hang", "name", "raise"}


# ---- mutations: the simulation notices a scheduler that is wrong


def forgets_released_jobs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_remove_jobs", lambda self, worker, ids: worker.remove_jobs(ids) and [])


def counts_no_tries(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MapJobs, "failed", lambda self, begun, what, cause, *, raised=True: None)


def gives_jobs_to_draining_workers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ScheduledWorker, "mark_draining", lambda self: None)


def takes_every_result(patch: pytest.MonkeyPatch) -> None:
    finish = Scheduler._finish

    def take(self: Scheduler, worker: ScheduledWorker, ticket_id: int, seconds: float) -> Any:
        ticket = worker.jobs.get(ticket_id)
        return finish(self, worker, ticket_id, seconds) or (ticket and ticket.job)

    patch.setattr(Scheduler, "_finish", take)


def leaves_jobs_before_busy_workers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IdleAndFull, "surplus_for_idle", lambda self: iter(()))


def blames_jobs_of_lost_nodes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NodeWatch, "was_lost_with", lambda self, worker, failure, now: False)


def asks_only_once(patch: pytest.MonkeyPatch) -> None:
    results = Scheduler.results

    def and_is_asked(self: Scheduler, worker: ScheduledWorker, *arguments: Any) -> list[bool]:
        counts = results(self, worker, *arguments)
        worker.asked = True
        return counts

    patch.setattr(Scheduler, "results", and_is_asked)


def never_gives_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ScheduledWorker, "silent_s", lambda self, now: 0.0)


def blames_nobody_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MapJobs, "goes_alone", lambda self, job: False)


@pytest.mark.parametrize(
    "mutate",
    [
        forgets_released_jobs,
        counts_no_tries,
        gives_jobs_to_draining_workers,
        takes_every_result,
        leaves_jobs_before_busy_workers,
        blames_jobs_of_lost_nodes,
        asks_only_once,
        never_gives_up,
        blames_nobody_alone,
    ],
)
def test_a_scheduler_that_is_wrong_is_noticed(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    with pytest.raises((Violated, KeyError)):
        for seed in range(MOST):
            run_seed(seed)
