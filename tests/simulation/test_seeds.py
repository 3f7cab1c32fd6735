"""Thousands of simulated maps, each with its own faults. ``tests/simulation/checks.py`` says what must be true.

``python -m tests.simulation SEED`` replays a seed that failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from tests.simulation.cases import case_of
from tests.simulation.cluster import run_seed
from tests.simulation.mutations import MUTATIONS
from tests.simulation.truth import Violated

SEEDS, AT_ONCE = 3000, 250
MOST = 400  # seeds until a mutation must have been noticed
MANY = (25, 40, 64, 100, 160, 256, 400, 640, 1024, 2048)  # workers


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of workers die: nobody reads of each."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_each_job_has_one_result_and_nobody_idles_under_all_events(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        try:
            run_seed(seed)
        except Exception as error:
            pytest.fail(f"{error!r}: replay it with `python -m tests.simulation {seed}`")


@pytest.mark.parametrize("workers", MANY)
def test_the_same_holds_for_thousands_of_workers(workers: int) -> None:
    for seed in range(workers, workers + 3):
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


def test_other_delays_and_other_harm_give_the_same_results() -> None:
    compared = 0
    for seed in range(60):
        case = case_of(seed)
        if case.fatal is not None or case.no_start or case.unlucky:
            continue
        whole = [each.most is None for each in case.maps]
        values = [run_seed(seed, other=other).values for other in range(3)]
        for each in zip(whole, *values, strict=True):
            if each[0]:
                assert each[1] == each[2] == each[3]
                compared += 1
    assert compared > 30


def test_seeds_draw_every_kind_of_harm() -> None:
    cases = [case_of(seed) for seed in range(SEEDS)]
    harms = (
        "kills", "hangs", "disconnections", "long_disconnections", "lost_nodes", "drains", "stops", "stragglers", "far",
        "lost_recalls", "failed_starts", "poison", "fatal", "unlucky", "one_by_one", "calm",
    )  # fmt: skip
    for name in harms:
        assert sum(bool(getattr(case, name)) for case in cases) > 100, name
    assert sum(case.no_start for case in cases) > 20
    assert any(case.fatal[1] == "vanish" for case in cases if case.fatal is not None)
    assert {how for case in cases for how, _ in case.poison.values()} == {"kill", "hang", "name", "raise"}
    maps = [pair for case in cases for pair in pairwise(case.maps)]
    assert sum(before.most is not None for before, _ in maps) > 100
    same_ids = [({job.id for job in before.jobs}, {job.id for job in after.jobs}) for before, after in maps]
    assert sum(bool(before & after) for before, after in same_ids) > 100
    assert sum(any(job in before.jobs for job in after.jobs) for before, after in maps) > 100


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_scheduler_that_is_wrong_is_noticed(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    for seed in range(MOST):
        try:
            run_seed(seed)
        except Violated:
            return
        except Exception:
            continue  # a crash is not what the checks are there for
    pytest.fail(f"{MOST} seeds have not shown that this scheduler {mutate.__name__.replace('_', ' ')}")
