"""From candidates to jobs, and from results to fitness: each result counts for its own candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import JobError
from pipeline.config.schema import RunConfig, SeedRange
from pipeline.evolution.fitness import (
    candidate_fitness,
    not_finite,
    run_episodes,
    scored_jobs,
    training_jobs,
    validation_returns,
)
from pipeline.rollouts.jobs import RolloutJob, RolloutResult
from tests.counting import counting_config

N = 4
CANDIDATES = np.random.default_rng(0).standard_normal((4, N))


def jobs_of(generation: int = 1, **overrides: Any) -> list[RolloutJob]:
    return training_jobs(counting_config(overrides), generation, CANDIDATES)


def by_candidate(jobs: Iterable[RolloutJob], value: Callable[[RolloutJob], Any]) -> list[list[Any]]:
    rows: list[list[Any]] = [[] for _ in CANDIDATES]
    for job in jobs:
        rows[job.candidate].append(value(job))
    return rows


class FakePool:
    """A pool that gives each job a return by a function of the job, in another order."""

    num_workers = 1
    retries = copies = 0

    def __init__(self, value: Callable[[RolloutJob], float], order: Callable[[list[Any]], list[Any]] = list) -> None:
        self._value, self._order = value, order
        self.calls: list[list[RolloutJob]] = []

    def map(self, jobs: Iterable[Any]) -> Iterator[tuple[Hashable, Any]]:
        self.calls.append(list(jobs))
        for job in self._order(self.calls[-1]):
            yield job.id, RolloutResult(self._value(job), 5 + job.episode, False, True)


def ignore(job: RolloutJob, result: RolloutResult) -> None:
    """An ``on_result`` that does nothing."""


# ---- training jobs


def test_every_candidate_gets_each_episode_once_with_its_parameters() -> None:
    jobs = jobs_of(generation=7, **{"evolve.episodes": 3})
    assert len({job.id for job in jobs}) == len(jobs) == 12
    assert {job.id for job in jobs} == {("train", 7, c, e) for c in range(4) for e in range(3)}
    for job in jobs:
        assert job.parameters.dtype == np.float32
        np.testing.assert_array_equal(job.parameters, CANDIDATES[job.candidate].astype(np.float32))


def test_number_of_episodes_can_be_another_than_that_of_the_config() -> None:
    jobs = training_jobs(counting_config({"evolve.episodes": 3}), 1, CANDIDATES, episodes=5)
    assert [job.episode for job in jobs] == [*range(5)] * 4
    assert {job.track for job in jobs} > {job.track for job in jobs_of(**{"evolve.episodes": 3})}


def test_later_generations_use_the_number_of_episodes_of_the_config() -> None:
    later = [{"generation": 9, "episodes": 1}, {"generation": 4, "episodes": 5}]
    overrides = {"evolve.episodes": 2, "evolve.episodes_from": later}
    counts = [len(jobs_of(generation, **overrides)) // 4 for generation in range(1, 11)]
    assert counts == [2, 2, 2, 5, 5, 5, 5, 5, 1, 1]
    evolve = counting_config(overrides).evolve
    assert [evolve.episodes_until(generation) for generation in (0, 3, 4, 10)] == [0, 6, 11, 33]


def test_common_tracks_are_shared_by_candidates_and_new_each_generation() -> None:
    overrides = {"evolve.episodes": 3}
    generations = [jobs_of(generation, **overrides) for generation in (1, 2, 3)]
    seen: set[int] = set()
    for jobs in generations:
        for value in (lambda job: job.track, lambda job: job.noise_seed):
            rows = by_candidate(jobs, value)
            assert rows == [rows[0]] * 4
            assert len(set(rows[0])) == 3, "the episodes of a candidate differ"
        tracks = {job.track for job in jobs}
        assert tracks.isdisjoint(seen)
        seen |= tracks


def test_independent_tracks_differ_between_candidates() -> None:
    jobs = [*jobs_of(1, **{"evolve.common_tracks": False}), *jobs_of(2, **{"evolve.common_tracks": False})]
    assert len({job.track for job in jobs}) == len({job.noise_seed for job in jobs}) == len(jobs) == 16


def test_jobs_depend_only_on_the_seed_of_the_run() -> None:
    assert [job.track for job in jobs_of()] == [job.track for job in jobs_of()]
    assert {job.track for job in jobs_of()}.isdisjoint(job.track for job in jobs_of(seed=2))
    assert {job.noise_seed for job in jobs_of()}.isdisjoint(job.noise_seed for job in jobs_of(seed=2))


def test_more_episodes_keep_the_tracks_of_the_first_ones() -> None:
    few, many = jobs_of(**{"evolve.episodes": 2}), jobs_of(**{"evolve.episodes": 5})
    assert {job.id: job.track for job in few}.items() <= {job.id: job.track for job in many}.items()


@pytest.mark.parametrize(
    ("overrides", "max_steps", "stall_steps"),
    [({}, 16, None), ({"evolve.episode_steps": 9}, 9, None), ({"evolve.stall_steps": 3}, 16, 3)],
)
def test_training_episodes_are_cut_at_the_length_of_the_config(
    overrides: dict[str, Any], max_steps: int, stall_steps: int | None
) -> None:
    assert {(job.max_steps, job.stall_steps) for job in jobs_of(**overrides)} == {(max_steps, stall_steps)}


# ---- validation and test


def scored(config: RunConfig, purpose: str, first_track: int, generation: int = 3) -> list[RolloutJob]:
    return scored_jobs(
        config.seed,
        purpose=purpose,
        generation=generation,
        candidate=0,
        parameters=CANDIDATES[0],
        first_track=first_track,
        episodes=range(5),
        max_steps=config.env.max_episode_steps,
    )


def test_scored_episodes_are_whole_and_use_the_first_tracks_of_a_range() -> None:
    config = counting_config({"evolve.episode_steps": 9, "evolve.stall_steps": 3})
    jobs = scored(config, "validate", 100_000)
    assert [job.track for job in jobs] == [100_000, 100_001, 100_002, 100_003, 100_004]
    assert {(job.max_steps, job.stall_steps) for job in jobs} == {(16, None)}
    assert [job.id for job in jobs] == [("validate", 3, 0, episode) for episode in range(5)]
    assert jobs[0].parameters.dtype == np.float32


def test_all_validations_use_the_same_tracks_and_noise() -> None:
    config = counting_config()
    first, later = scored(config, "validate", 100_000, 1), scored(config, "validate", 100_000, 50)
    assert [(a.track, a.noise_seed) for a in first] == [(b.track, b.noise_seed) for b in later]


def test_noise_differs_between_episodes_and_purposes() -> None:
    config = counting_config()
    jobs = [*scored(config, "validate", 0), *scored(config, "test", 0), *jobs_of()[:2]]
    assert len({job.noise_seed for job in jobs}) == 12


def test_training_validation_and_test_tracks_use_separate_ranges() -> None:
    config = counting_config(
        {
            "tracks.test": {"start": 0, "stop": 4},
            "tracks.validation": {"start": 4, "stop": 7},
            "tracks.training": {"start": 7, "stop": 20},
        }
    )
    ranges: dict[str, SeedRange] = dict(config.tracks)
    driven = {
        "training": {job.track for g in range(1, 60) for job in training_jobs(config, g, CANDIDATES)},
        "validation": {
            job.track
            for job in scored_jobs(
                config.seed, purpose="validate", generation=1, candidate=0, parameters=CANDIDATES[0],
                first_track=config.tracks.validation.start, episodes=range(config.evolve.validation_episodes),
                max_steps=1,
            )
        },
        "test": {
            job.track
            for job in scored_jobs(
                config.seed, purpose="test", generation=1, candidate=0, parameters=CANDIDATES[0],
                first_track=config.tracks.test.start, episodes=range(config.evaluate.episodes), max_steps=1,
            )
        },
    }  # fmt: skip
    for name, tracks in driven.items():
        assert tracks == set(range(ranges[name].start, ranges[name].stop)), name


# ---- results


def a_return(job: RolloutJob) -> float:
    return 1e8 * (job.candidate == 1) + 0.1 * job.candidate + math.sin(7 * job.episode + job.candidate)


def test_fitness_is_the_mean_return_in_any_order_of_results() -> None:
    jobs = jobs_of(**{"evolve.episodes": 9})
    rng = np.random.default_rng(1)
    orders: list[Callable[[list[Any]], list[Any]]] = [
        list,
        lambda jobs: jobs[::-1],
        lambda jobs: [jobs[i] for i in rng.permutation(len(jobs))],
    ]
    results = [run_episodes(FakePool(a_return, order), jobs, ignore, require_finite=True) for order in orders]
    fitness = [candidate_fitness(jobs, each, len(CANDIDATES)) for each in results]
    assert fitness[0] == fitness[1] == fitness[2]
    for candidate, returns in enumerate(by_candidate(jobs, a_return)):
        assert len(returns) == 9
        assert fitness[0][candidate] == pytest.approx(float(np.mean(np.array(returns, np.longdouble))), rel=1e-15)
    assert fitness[0].index(max(fitness[0])) == 1


def test_each_result_is_reported_once_with_its_job() -> None:
    jobs = jobs_of()
    shown: list[tuple[Any, float]] = []
    pool = FakePool(a_return)
    results = run_episodes(
        pool, jobs, lambda job, result: shown.append((job.id, result.episode_return)), require_finite=True
    )
    assert shown == [(job.id, a_return(job)) for job in jobs]
    assert {key: result.episode_return for key, result in results.items()} == dict(shown)


# ---- returns that are not finite

NOT_FINITE = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


@NOT_FINITE
def test_return_not_finite_twice_is_an_error_that_names_the_episode(value: float) -> None:
    jobs = jobs_of()
    shown: list[Any] = []
    pool = FakePool(lambda job: value if job.id == ("train", 1, 2, 1) else 1.0)
    with pytest.raises(JobError, match=rf"episode 1 of candidate 2 .* {jobs[5].track} is (nan|inf|-inf) .*, twice:"):
        run_episodes(pool, jobs, lambda job, result: shown.append(job.id), require_finite=True)
    assert shown == [job.id for job in jobs if job is not jobs[5]], "non-finite returns are not reported"


@NOT_FINITE
@pytest.mark.parametrize("require_finite", [True, False])
def test_episode_with_a_non_finite_return_runs_again_after_the_rest(value: float, require_finite: bool) -> None:
    jobs = jobs_of()
    shown: list[Any] = []
    pool = FakePool(lambda job: value if job in (jobs[2], jobs[5]) and len(pool.calls) == 1 else a_return(job))
    results = run_episodes(
        pool, jobs, lambda job, result: shown.append((job.id, result.episode_return)), require_finite=require_finite
    )
    assert pool.calls == [jobs, [jobs[2], jobs[5]]]
    assert [job_id for job_id, _ in shown] == [job.id for job in [*jobs[:2], *jobs[3:5], *jobs[6:], jobs[2], jobs[5]]]
    assert dict(shown) == {job.id: a_return(job) for job in jobs}
    assert {job_id: result.episode_return for job_id, result in results.items()} == dict(shown)
    assert not not_finite(jobs, results)


def test_permanent_non_finite_return_is_reported_once_and_listed() -> None:
    jobs = jobs_of()
    shown: list[Any] = []
    pool = FakePool(lambda job: math.nan if job is jobs[5] else 1.0)
    results = run_episodes(pool, jobs, lambda job, result: shown.append(job.id), require_finite=False)
    assert sorted(shown) == sorted(job.id for job in jobs)
    assert not_finite(jobs, results) == [jobs[5]]
    assert len(pool.calls) == 2


def results_of(jobs: list[RolloutJob], returns: list[float]) -> dict[Any, RolloutResult]:
    return {job.id: RolloutResult(value, 5, False, True) for job, value in zip(jobs, returns, strict=True)}


@NOT_FINITE
def test_non_finite_episode_counts_as_the_worst_complete_fitness_minus_one(value: float) -> None:
    jobs = jobs_of()  # four candidates of two episodes each
    returns = [10.0, 20.0, -500.0, value, 4.0, 8.0, 30.0, 50.0]
    # Complete candidates: 15, 6 and 40. The worst one is 6, so the missing return counts as 5.
    assert candidate_fitness(jobs, results_of(jobs, returns), 4) == [15.0, (-500.0 + 5.0) / 2, 6.0, 40.0]
    returns[6:] = [value, value]
    assert candidate_fitness(jobs, results_of(jobs, returns), 4) == [15.0, (-500.0 + 5.0) / 2, 6.0, 5.0]


def test_non_finite_episode_counts_as_the_worst_episode_minus_one() -> None:
    jobs = jobs_of()
    returns = [10.0, math.nan, math.inf, -7.0, 4.0, math.nan, -math.inf, math.nan]
    assert candidate_fitness(jobs, results_of(jobs, returns), 4) == [(10 - 8) / 2, (-7 - 8) / 2, (4 - 8) / 2, -8.0]


def test_non_finite_validation_episode_counts_as_the_worst_minus_one() -> None:
    jobs = scored(counting_config(), "validate", 100_000)
    returns = validation_returns(jobs, results_of(jobs, [3.0, math.nan, -2.0, math.inf, 9.0]))
    assert returns.tolist() == [3.0, -3.0, -2.0, -3.0, 9.0]
    assert validation_returns(jobs, results_of(jobs, [3.0, 1.0, -2.0, 0.0, 9.0])).tolist() == [3.0, 1.0, -2.0, 0.0, 9.0]


def test_fitness_needs_at_least_one_finite_return() -> None:
    jobs = jobs_of()
    with pytest.raises(JobError, match="no return is finite"):
        candidate_fitness(jobs, results_of(jobs, [math.nan, math.inf] * 4), 4)
    validation = scored(counting_config(), "validate", 100_000)
    with pytest.raises(JobError, match="no return is finite"):
        validation_returns(validation, results_of(validation, [math.nan] * 5))


def test_job_without_a_result_is_an_error() -> None:
    pool = FakePool(a_return, lambda jobs: jobs[1:])
    with pytest.raises(JobError, match="1 of 8 jobs gave no result"):
        run_episodes(pool, jobs_of(), ignore, require_finite=True)
