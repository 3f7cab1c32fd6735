"""Collected episodes: no row is lost, duplicated, reordered or shifted by a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.errors import EpisodeError, StorageError
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.data.artifacts import ROLLOUTS
from pipeline.data.episodes import Episode
from pipeline.data.shards import episode_steps, read_episodes
from pipeline.envs.environment import Environment, Step
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Pool, Worker
from pipeline.rollouts.recording import record_episode
from pipeline.stages import collect
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records
from pipeline.storage.store import Store
from tests.counting import (
    CountingEnv,
    counting_config,
    episode_length,
    own_end,
    reward_of,
    track_and_step,
)

LIMIT = 16  # env.max_episode_steps of the counting config


class CodedPolicy:
    """A policy whose actions encode their track and step."""

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.action(*track_and_step(frame))

    @staticmethod
    def action(track: int, step: int) -> NDArray[np.float32]:
        return np.array([(track % 100) / 100, step / 1000], np.float32)


def record(track: int, *, max_steps: int = LIMIT + 4, env: Environment | None = None) -> Episode:
    env = env or CountingEnv(counting_config().env)
    return record_episode(env, CodedPolicy(), episode_id=track + 7, track=track, max_actions=max_steps)


def check_steps(episode: Episode, track: int) -> None:
    """Check that every row belongs to its step, and that actions have the bits of the environment's float32."""
    assert episode.track == track
    assert track_and_step(episode.final_frame) == (track, len(episode))
    for t in range(len(episode)):
        assert track_and_step(episode.frames[t]) == (track, t)
        assert episode.rewards[t] == np.float32(reward_of(track, t, episode.actions[t]))


@pytest.mark.parametrize("track", range(30))
def test_frame_action_and_reward_of_a_row_belong_to_one_step(track: int) -> None:
    episode = record(track)
    assert episode.id == track + 7
    assert len(episode) == episode_length(track, LIMIT)
    check_steps(episode, track)
    for t in range(len(episode)):
        np.testing.assert_array_equal(episode.actions[t], CodedPolicy.action(track, t))


@pytest.mark.parametrize("track", range(30))
def test_terminated_and_truncated_are_separate_and_on_the_last_row(track: int) -> None:
    episode = record(track)
    assert not episode.terminated[:-1].any()
    assert not episode.truncated[:-1].any()
    assert episode.terminated[-1] == (own_end(track, LIMIT) is not None)
    assert episode.truncated[-1] == (own_end(track, LIMIT) in (None, LIMIT))


def test_tested_tracks_cover_every_kind_of_end() -> None:
    ends = {(bool(e.terminated[-1]), bool(e.truncated[-1])) for e in map(record, range(30))}
    assert ends == {(True, False), (False, True), (True, True)}


@pytest.mark.parametrize("track", [3, 6, 13])
def test_cut_episode_has_neither_flag_and_all_rows_up_to_the_cut(track: int) -> None:
    episode = record(track, max_steps=5)
    assert len(episode) == 5
    assert not episode.terminated.any()
    assert not episode.truncated.any()
    check_steps(episode, track)


def test_end_on_the_last_step_before_the_cut_keeps_its_flag() -> None:
    track = 10
    assert own_end(track, LIMIT) == 6
    assert record(track, max_steps=6).terminated[-1]


def test_recording_after_a_cut_episode_starts_a_new_episode() -> None:
    env = CountingEnv(counting_config().env)
    record(3, max_steps=5, env=env)
    check_steps(record(6, env=env), 6)


class BrokenEnv(CountingEnv):
    """An environment that raises in a step, or returns an invalid frame."""

    def __init__(self, config: EnvConfig, fault: str) -> None:
        super().__init__(config)
        self._fault = fault

    def reset(self, track: int) -> NDArray[np.uint8]:
        frame = super().reset(track)
        return frame[:60] if self._fault == "frame" else frame

    def step(self, action: NDArray[np.float32]) -> Step:
        step = super().step(action)
        if self._fault == "step" and self._step == 3:
            raise RuntimeError("boo")
        return step


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("step", r"collected episode 10, on track seed 3, in step 3: RuntimeError\('boo'\)"),
        (
            "frame",
            r"collected episode 10, on track seed 3, in reset: .*frame \(60, 64, 3\) uint8; \(64",
        ),
    ],
)
def test_failing_environment_is_named_with_episode_track_and_step(fault: str, said: str) -> None:
    with pytest.raises(EpisodeError, match=said):
        record(3, env=BrokenEnv(counting_config().env, fault))


# ---- the collect stage


def track_of(config: RunConfig, episode_id: int) -> int:
    return seeding.track(config.seed, config.tracks.training, "collect/track", episode_id)


def collected(config: RunConfig, store: Store) -> list[Episode]:
    records = read_records(store, ROLLOUTS)
    return [episode for record in records.values() for episode in read_episodes(store, record)]


@pytest.mark.parametrize("policy", ["white", "brownian", "random-controller"])
def test_collect_writes_every_episode_once_with_all_rows_in_its_shard(
    store: Store, executor: InProcessExecutor, policy: str, one_thread: None
) -> None:
    config = counting_config({"collect.policy": policy})
    info = collect.run(config, store, executor)

    episodes = collected(config, store)
    assert [episode.id for episode in episodes] == list(range(config.collect.episodes))
    records = list(read_records(store, ROLLOUTS).values())
    assert [list(episode_steps(record)) for record in records] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert {e.id: len(e) for e in episodes} == {k: v for r in records for k, v in episode_steps(r).items()}
    assert info["env_steps"] == sum(len(e) for e in episodes) == sum(r.rows for r in records)

    ways = set()
    for episode in episodes:
        track = track_of(config, episode.id)
        check_steps(episode, track)
        whole = episode_length(track, LIMIT)
        assert len(episode) == min(whole, config.collect.episode_steps)
        cut = whole > config.collect.episode_steps
        assert episode.terminated[-1] == (not cut and own_end(track, LIMIT) is not None)
        assert not episode.truncated.any(), "collect.episode_steps is below the environment's own limit here"
        ways.add((cut, bool(episode.terminated[-1])))
    assert ways == {(True, False), (False, True)}, "the seed must give episodes of both kinds"
    assert len({len(e) for e in episodes}) > 2


def test_collect_writes_one_row_per_action_with_action_repeat(
    local_store: LocalStore, executor: InProcessExecutor
) -> None:
    config = counting_config({"env.action_repeat": 3, "mdnrnn.window": 3})
    info = collect.run(config, local_store, executor)
    episodes = collected(config, local_store)
    for episode in episodes:
        track = track_of(config, episode.id)
        steps = min(episode_length(track, LIMIT), config.collect.episode_steps)
        assert len(episode) == -(-steps // 3)
        for t in range(len(episode)):
            assert track_and_step(episode.frames[t]) == (track, 3 * t)
            held = range(3 * t, min(3 * t + 3, episode_length(track, LIMIT)))
            earned = sum(reward_of(track, step, episode.actions[t]) for step in held)
            assert episode.rewards[t] == pytest.approx(earned, abs=1e-6)
    assert info["env_steps"] == 3 * sum(len(e) for e in episodes)
    rows = [json.loads(line) for line in local_store.read("rollouts/metrics.jsonl").splitlines()]
    assert rows[-1]["env_steps"] == info["env_steps"]


def test_collect_keeps_the_truncation_of_the_environment(store: Store, executor: InProcessExecutor) -> None:
    config = counting_config({"collect.episode_steps": LIMIT})
    collect.run(config, store, executor)
    for episode in collected(config, store):
        end = own_end(track_of(config, episode.id), LIMIT)
        assert (episode.terminated[-1], episode.truncated[-1]) == (end is not None, end in (None, LIMIT))


def test_collected_bytes_do_not_depend_on_shards_of_an_interrupted_run(
    tmp_path: Path, executor: InProcessExecutor
) -> None:
    whole, resumed = LocalStore(tmp_path / "whole"), LocalStore(tmp_path / "resumed")
    config = counting_config()
    collect.run(config, whole, executor)
    # An interrupted run with shards 2 and 0 complete, made in this order by another process.
    worker = collect.CollectWorker(config, resumed)
    list(worker.run([collect.ShardJob(2), collect.ShardJob(0)]))
    info = collect.run(config, resumed, executor)
    assert read_records(whole, ROLLOUTS) == read_records(resumed, ROLLOUTS)
    present = read_records(resumed, ROLLOUTS)
    new_rows = present["shard-00001.parquet"].rows + present["shard-00003.parquet"].rows
    assert info["env_steps_this_session"] == new_rows


def test_second_collect_runs_no_episode_and_changes_no_data(
    local_store: LocalStore, executor: InProcessExecutor
) -> None:
    config = counting_config()

    def present() -> dict[str, bytes]:
        return {k: local_store.read(k) for part in ("data", "records") for k in local_store.list(f"rollouts/{part}/")}

    collect.run(config, local_store, executor)
    before = present()
    info = collect.run(config, local_store, executor)
    assert info["env_steps_this_session"] == 0
    assert present() == before
    assert len(before) == 8


def test_metrics_of_an_interrupted_collect_count_each_shard_once(
    local_store: LocalStore, executor: InProcessExecutor
) -> None:
    config = counting_config()
    list(collect.CollectWorker(config, local_store).run([collect.ShardJob(2), collect.ShardJob(0)]))
    collect.run(config, local_store, executor)
    rows = [json.loads(line) for line in local_store.read("rollouts/metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert rows[-1]["env_steps"] == sum(len(episode) for episode in collected(config, local_store))


def test_another_seed_uses_other_tracks() -> None:
    tracks = [{track_of(counting_config({"seed": seed}), e) for e in range(10)} for seed in (1, 2)]
    assert tracks[0].isdisjoint(tracks[1])


class _Elsewhere(InProcessExecutor):
    """An executor whose workers have another disk in place of the run directory."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self._disk = disk

    @contextmanager
    def pool(
        self, factory: Callable[..., Worker], *arguments: Any, jobs_at_once: int = 1, jobs_per_worker: int = 1
    ) -> Iterator[Pool]:
        config, _, *others = arguments
        counts = {"jobs_at_once": jobs_at_once, "jobs_per_worker": jobs_per_worker}
        with super().pool(factory, config, LocalStore(self._disk), *others, **counts) as pool:
            yield pool


def test_shards_committed_elsewhere_are_missed_before_sealing(local_store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"lacks 4 of 4 records, shard-00000\.parquet first"):
        collect.run(counting_config(), local_store, _Elsewhere(tmp_path / "another-disk"))
