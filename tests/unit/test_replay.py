"""The replay of hard tracks: their probability, the memory of returns, and equal draws after a resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import RunConfig
from pipeline.evolution.fitness import run_episodes, training_jobs
from pipeline.evolution.replay import PlayedTrack, remember, replayed_tracks
from pipeline.execution.in_process import InProcessExecutor
from pipeline.rollouts.jobs import RolloutJob, RolloutResult
from pipeline.run import run_stages
from pipeline.stages import evolve
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from tests.counting import counting_config

CANDIDATES = np.zeros((3, 4))


def replaying(**evolution: Any) -> RunConfig:
    chosen = {"episodes": 4, "replayed_tracks": 2, "replay_window": 3, **evolution}
    return counting_config({f"evolve.{key}": value for key, value in chosen.items()})


def results_with(jobs: Sequence[RolloutJob], returns: dict[int, list[float]]) -> dict[Any, RolloutResult]:
    """Results with these returns, by track and then by candidate."""
    return {job.id: RolloutResult(returns[job.track][job.candidate], 5, False, True) for job in jobs}


def test_probability_of_a_track_falls_with_its_rank() -> None:
    config = replaying(episodes=2, replayed_tracks=1)
    returns = {1: 300.0, 2: -20.0, 3: 900.0, 4: 10.0}
    counts: Counter[int] = Counter()
    for generation in range(1, 6001):
        counts.update(
            replayed_tracks(
                config.evolve, config.seed, generation, [PlayedTrack(t, generation, r) for t, r in returns.items()]
            )
        )
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    expected = {2: 1 / harmonic, 4: 1 / 2 / harmonic, 1: 1 / 3 / harmonic, 3: 1 / 4 / harmonic}
    for track, chance in expected.items():
        assert counts[track] / 6000 == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 6000))


def test_draw_has_distinct_tracks_from_within_the_window() -> None:
    config = replaying(episodes=9, replayed_tracks=5)
    known = [PlayedTrack(track, 1 + track // 10, float(track)) for track in range(100)]
    for generation, eldest in ((11, 8), (12, 9), (13, 10)):
        drawn = replayed_tracks(config.evolve, config.seed, generation, known)
        assert len(drawn) == len(set(drawn)) == 5
        assert min(1 + track // 10 for track in drawn) == eldest, "the hardest are the eldest here"
    assert replayed_tracks(config.evolve, config.seed, 14, known) == []
    assert sorted(replayed_tracks(config.evolve, config.seed, 2, known[:3])) == [0, 1, 2], "as many as there are"


def test_draw_depends_only_on_seed_generation_and_known_tracks() -> None:
    known = [PlayedTrack(track, 4, float(track * 7 % 20)) for track in range(20)]
    here, there = replaying(), replaying(generations=50, sigma=0.3)
    for generation in range(5, 8):
        assert replayed_tracks(here.evolve, here.seed, generation, known) == replayed_tracks(
            there.evolve, there.seed, generation, known[::-1]
        )
    draws = {tuple(replayed_tracks(here.evolve, here.seed, generation, known)) for generation in (5, 6, 7)}
    assert len(draws) > 1
    assert replayed_tracks(here.evolve, 9, 5, known) != replayed_tracks(here.evolve, here.seed, 5, known)


def test_only_the_last_episodes_use_the_replayed_tracks() -> None:
    plain = training_jobs(replaying(replayed_tracks=0), 3, CANDIDATES)
    jobs = training_jobs(replaying(), 3, CANDIDATES, [77, 88])
    assert [job.id for job in jobs] == [job.id for job in plain]
    assert [job.track for job in jobs if job.episode >= 2] == [77, 88] * 3
    assert [job.track for job in jobs if job.episode < 2] == [job.track for job in plain if job.episode < 2]
    assert len({job.noise_seed for job in jobs}) == 4, "new noise on an old track"


def test_memory_holds_the_last_mean_return_of_each_track_in_the_window() -> None:
    config = replaying()
    jobs = training_jobs(config, 5, CANDIDATES, [10, 20])
    new = [job.track for job in jobs[:2]]
    nan = float("nan")
    returns = {new[0]: [1.0, 2.0, 6.0], new[1]: [nan, 4.0, 8.0], 10: [-1.0, -1.0, -4.0], 20: [nan, nan, nan]}
    before = [
        PlayedTrack(10, 3, 500.0), PlayedTrack(20, 3, 600.0), PlayedTrack(30, 3, 700.0), PlayedTrack(40, 2, 0.0),
    ]  # fmt: skip
    after = {track.track: track for track in remember(config.evolve, before, jobs, results_with(jobs, returns))}
    assert after == {
        new[0]: PlayedTrack(new[0], 5, 3.0),
        new[1]: PlayedTrack(new[1], 5, 6.0),
        10: PlayedTrack(10, 5, -2.0),
        20: PlayedTrack(20, 3, 600.0),
        30: PlayedTrack(30, 3, 700.0),
    }
    assert list(after) == sorted(after)
    assert remember(replaying(replayed_tracks=0).evolve, [], jobs, results_with(jobs, returns)) == []


def test_evolution_replays_hard_tracks_also_after_a_resume(
    tmp_path: Any, executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[list[int]] = []

    def note(pool: Any, jobs: Sequence[RolloutJob], on_result: Any, *, require_finite: bool) -> Any:
        if jobs[0].purpose == "train":
            met.append([job.track for job in jobs if job.candidate == 0])
        return run_episodes(pool, jobs, on_result, require_finite=require_finite)

    monkeypatch.setattr(evolve, "run_episodes", note)
    run_stages(replaying(generations=7), LocalStore(tmp_path / "whole"), executor, STAGES[:5])
    whole = met[:]
    assert [len(set(tracks)) for tracks in whole] == [4] * 7
    new_ones = [set(whole[0]), *(set(tracks[:2]) for tracks in whole[1:])]
    assert len(set().union(*new_ones)) == 4 + 6 * 2, "new tracks are new"
    for generation in range(1, 7):
        window = {track for tracks in whole[max(0, generation - 3) : generation] for track in tracks}
        assert set(whole[generation][2:]) <= window
    assert any(set(before[2:]) != set(after[2:]) for before, after in pairwise(whole[1:]))

    met.clear()
    for generations in (2, 5, 7):
        run_stages(replaying(generations=generations), LocalStore(tmp_path / "parts"), executor, STAGES[:5])
    assert met == whole
