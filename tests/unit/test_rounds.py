"""Rounds: episodes of the agent, continued training of V, M and C, and the same results after a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from pipeline.base import seeding
from pipeline.base.errors import ConfigError, StorageError
from pipeline.cli.run import run_config
from pipeline.cli.status_text import describe_run, summarise_scores
from pipeline.config.identity import check_same_run
from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import controllers_of, mdnrnn_weights, vae_weights
from pipeline.data.rounds import FIRST, Round, episodes_of, rounds_of, shard_episodes, shards_of
from pipeline.data.shards import episode_steps, read_episodes
from pipeline.envs.registry import make_environment
from pipeline.evolution.fitness import training_jobs
from pipeline.execution.in_process import InProcessExecutor
from pipeline.models.controller import ControllerShape
from pipeline.planning import preflight
from pipeline.planning.growth import check_growth
from pipeline.rollouts.policies import ControllerPolicy, EvolvedAgent
from pipeline.run import run_stages, stages_for
from pipeline.stages.table import STAGES, stages_of
from pipeline.storage.layout import own_keys
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records, require_manifest
from pipeline.training.held_out import HELD_OUT_OF_M, held_out_of_round, held_out_so_far
from pipeline.view.runs import Runs
from tests.counting import ACTION_SIZE, counting_config, episode_length

SECOND = Round(2)


def config_of(count: int = 2, **keys: Any) -> RunConfig:
    return counting_config(
        {"rounds.count": count, "rounds.episodes": 4, "rounds.generations": 2, "rounds.mdnrnn_epochs": 1,
         "rounds.bursts": 0.2, **keys}
    )  # fmt: skip


def data_of(store: LocalStore) -> dict[str, bytes]:
    """All committed data except those with times: the report and the history."""
    return {
        key: store.read(key)
        for key in own_keys(store)
        if "/data/" in key and not any(word in key for word in ("checkpoints", "report", "history"))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    store = LocalStore(folder)
    store.write("config.yaml", dump(config_of()).encode())
    run_stages(config_of(), store, InProcessExecutor())
    return folder


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> LocalStore:
    """A copy of the finished run for one test."""
    return LocalStore(shutil.copytree(finished, tmp_path / "run"))


def agent_of(store: LocalStore) -> EvolvedAgent:
    tensors = controllers_of(store)
    return EvolvedAgent(vae_weights(store), mdnrnn_weights(store), tensors["mean"], tensors["spread"])


def test_episodes_and_shards_are_numbered_across_rounds() -> None:
    config = config_of(3)
    assert [episodes_of(config, at) for at in rounds_of(config.rounds)] == [range(10), range(10, 14), range(14, 18)]
    assert [shards_of(config, at) for at in rounds_of(config.rounds)] == [range(4), range(4, 6), range(6, 8)]
    for at in rounds_of(config.rounds):
        drawn = [list(shard_episodes(config, at, shard)) for shard in shards_of(config, at)]
        assert [episode for shard in drawn for episode in shard] == list(episodes_of(config, at))
        assert max(map(len, drawn)) <= config.collect.episodes_per_shard


def test_single_round_has_the_usual_stages() -> None:
    assert stages_of(counting_config({"collect.policy": "random-controller"})) == list(STAGES)
    assert [stage.prefix for stage in STAGES] == [
        "rollouts", "vae", "latents", "mdnrnn", "evolution", "evaluation", "report"
    ]  # fmt: skip


def test_later_round_collects_into_its_own_folder(store: LocalStore) -> None:
    config = config_of()
    records = require_manifest(store, "round-002/rollouts").records
    assert sorted(e for record in records.values() for e in episode_steps(record)) == list(episodes_of(config, SECOND))
    for episode in read_episodes(store, *records.values()):
        assert len(episode) == min(episode_length(episode.track, 16), 12)
        assert episode.track == seeding.track(config.seed, config.tracks.training, "collect/track", episode.id)
    assert require_manifest(store, "round-002/latents").records.keys() == records.keys(), (
        "V is unchanged, so only new episodes are encoded"
    )
    assert not (Path(store.root) / "round-002" / "vae").exists()


def test_agent_of_the_previous_round_collects(store: LocalStore) -> None:
    config, agent = config_of(), agent_of(store)
    env = make_environment(config.env)
    shape = ControllerShape.of_agent(config.agent, ACTION_SIZE)
    for episode in read_episodes(store, *require_manifest(store, "round-002/rollouts").records.values()):
        rng = seeding.generator(config.seed, "collect/policy", episode.id)
        parameters = agent.candidate(episode.id, rng)
        assert np.array_equal(parameters, agent.mean) == (episode.id % 2 == 0)
        policy = ControllerPolicy(
            env, agent.networks(config.agent, ACTION_SIZE), shape, parameters, rng,
            sample=config.controller.z == "sample", bursts=0.2, burst_actions=config.rounds.burst_actions,
        )  # fmt: skip
        chosen = [policy.act(frame) for frame in episode.frames]
        np.testing.assert_array_equal(np.stack(chosen), episode.actions)


def test_bursts_repeat_one_random_action_and_need_a_probability(store: LocalStore) -> None:
    config, agent = config_of(), agent_of(store)
    env = make_environment(config.env)
    shape, networks = ControllerShape.of_agent(config.agent, ACTION_SIZE), agent.networks(config.agent, ACTION_SIZE)
    frame = env.reset(3)

    def actions(bursts: float) -> NDArray[np.float32]:
        rng = np.random.default_rng(0)
        policy = ControllerPolicy(
            env, networks, shape, agent.mean, rng, sample=False, bursts=bursts, burst_actions=5
        )  # fmt: skip
        return np.stack([policy.act(frame) for _ in range(200)])

    always = actions(1.0)
    assert (always[1:] == always[:-1]).all(axis=1).sum() > 80, "bursts of 1 to 5 equal actions, one after the other"
    assert np.ptp(always, axis=0).min() > 0.5 > np.ptp(actions(0.0)[50:], axis=0).max()


def test_m_continues_from_its_weights_and_c_from_the_last_mean(store: LocalStore) -> None:
    first, second = load(mdnrnn_weights(store)), load(mdnrnn_weights(store, "round-002/mdnrnn"))
    far = max(float(np.abs(first[name] - second[name]).max()) for name in first)
    assert 0 < far < 0.05, "a few steps from where it was"
    before, after = controllers_of(store), controllers_of(store, "round-002/evolution")
    step = np.abs(after["mean"] - before["mean"]).max()
    assert 0 < step < 6 * config_of().rounds.sigma
    assert before["spread"].min() > 0
    jobs, later = (training_jobs(config_of(), 1, np.zeros((2, 3)), (), *at.seed_indices()) for at in (FIRST, SECOND))
    assert not {job.track for job in jobs} & {job.track for job in later}, "a round has tracks of its own"


def test_held_out_episodes_stay_held_out() -> None:
    config = config_of(3)
    arguments = (0.3, HELD_OUT_OF_M)
    first, second = (held_out_so_far(config, at, *arguments) for at in (FIRST, SECOND))
    assert set(first) < set(second)
    assert second[: len(second) - len(first)] == held_out_of_round(config, SECOND, *arguments)
    assert set(held_out_of_round(config, SECOND, *arguments)) <= set(episodes_of(config, SECOND))


def test_report_and_status_show_each_round(store: LocalStore) -> None:
    numbers = json.loads(store.read("report/report.json"))
    assert [row["number"] for row in numbers["rounds"]] == [1, 2]
    assert [row["episodes"] for row in numbers["rounds"]] == [10, 4]
    info = require_manifest(store, "round-002/evaluation").info["controllers"]
    assert numbers["headline"]["mean"] == info[min(info)]["mean"] == numbers["rounds"][1]["score"]
    assert all(row["reconstruction"] > 0 for row in numbers["rounds"])
    assert numbers["rounds"][1]["mdnrnn"]["episodes"] == round(4 * config_of().mdnrnn.validation_fraction)
    names = [stage["name"] for stage in numbers["stages"]]
    assert names.count("collect") == 1 and "collect, round-002" in names and "train-vae, round-002" not in names
    assert "Rounds</h2>" in store.read("report/index.html").decode()
    text = describe_run(store)
    assert "\nround 2\n" in text and "evolution: round 2, generation 2 of 2" in text
    assert summarise_scores(store).splitlines()[0] == "round 1"


def test_run_stopped_anywhere_gives_the_same_results(store: LocalStore, tmp_path: Path) -> None:
    stages = stages_of(config_of())
    other = LocalStore(tmp_path / "parts")
    for count in (3, 7, 9, len(stages)):  # sessions that end after this number of stages
        run_stages(config_of(), other, InProcessExecutor(), stages[:count])
    assert data_of(other) == data_of(store)


class Stopping(LocalStore):
    """A store whose session ends before a write, as by a kill."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self._left = writes

    def write(self, key: str, data: bytes) -> None:
        self._count()
        super().write(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._count()
        super().create(key, data)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


def test_later_round_stopped_within_its_stages_gives_the_same_results(store: LocalStore, tmp_path: Path) -> None:
    config, other = config_of(), LocalStore(tmp_path / "parts")
    other.write("config.yaml", dump(config).encode())
    stages = stages_of(config)
    (first,) = [index for index, stage in enumerate(stages) if stage.label == "round-002-collect"]
    run_stages(config, other, InProcessExecutor(), stages[:first])
    stopped_in = set()
    for index in range(first, len(stages)):
        for writes in range(1, 50, 3):  # more in each session, so that every one gets further
            try:
                run_stages(config, Stopping(other.root, writes), InProcessExecutor(), stages[: index + 1])
                break
            except KeyboardInterrupt:
                if any(key.startswith(f"{stages[index].prefix}/") for key in other.list()):
                    stopped_in.add(stages[index].label)
                (shown,) = Runs(other.locate()).describe()["runs"]
                assert "problem" not in shown, shown
                if (now := shown["now"])["total"] is not None:
                    assert 0 <= now["done"] <= now["total"], now
    assert stopped_in == {stage.label for stage in stages[first:]}, "each was stopped after its first writes"
    assert data_of(other) == data_of(store)


def test_continued_v_encodes_all_episodes_again(tmp_path: Path) -> None:
    config = config_of(2, **{"rounds.vae_epochs": 1})
    store = LocalStore(tmp_path)
    run_stages(config, store, InProcessExecutor())
    first, second = load(vae_weights(store)), load(vae_weights(store, "round-002/vae"))
    far = max(float(np.abs(first[name] - second[name]).max()) for name in first if name != "activation_max")
    assert 0 < far < 0.05
    assert len(require_manifest(store, "round-002/latents").records) == len(shards_of(config, FIRST)) + 2
    reads = {stage.label: stage.reads for stage in stages_of(config)}
    assert reads["round-002-train-mdnrnn"] == ("round-002/latents", "mdnrnn")
    assert reads["round-002-encode"] == ("rollouts", "round-002/rollouts", "round-002/vae")


def test_finished_run_accepts_more_rounds_with_new_keys(store: LocalStore, tmp_path: Path) -> None:
    alone = LocalStore(tmp_path / "alone")
    run_stages(counting_config(), alone, InProcessExecutor())
    check_same_run(counting_config(), config_of(), "runs/x")
    run_stages(config_of(), alone, InProcessExecutor())
    assert data_of(alone) == data_of(store)
    with pytest.raises(ConfigError, match=r"rounds\.episodes: 4 -> 5"):
        check_same_run(config_of(), config_of(**{"rounds.episodes": 5}), "runs/x")
    with pytest.raises(ConfigError, match=r"rounds\.count: 2 -> 1"):
        check_same_run(config_of(), config_of(1), "runs/x")


def test_only_the_last_evolution_can_be_extended(store: LocalStore) -> None:
    before = {key: store.read(key) for key in store.list()}
    more: dict[str, Any] = {"evolve.generations": 5, "execution.executor": "in-process"}
    said = r"(?s)evolution cannot grow any more.*round-002/rollouts was made from it.*evolve.generations: 3 -> 5"
    with pytest.raises(ConfigError, match=said):
        run_config(config_of(**more), str(store.root), "run")
    assert {key: store.read(key) for key in store.list()} == before, "the run can still be resumed"
    check_growth(config_of(3, **{"evaluate.episodes": 9}), store)
    check_growth(config_of(**{"rounds.generations": 3}), store)
    run_stages(config_of(**{"rounds.generations": 3}), store, InProcessExecutor())
    assert require_manifest(store, "round-002/evolution").info["generations"] == 3
    assert json.loads(store.read("report/report.json"))["tag"].startswith("000003-")


def test_stage_command_runs_in_the_first_round_without_the_stage(store: LocalStore) -> None:
    config = config_of(3)
    labels = [stage.label for stage in stages_for(config, store, "collect")]
    assert labels == ["collect", "round-002-collect", "round-003-collect"]
    assert [stage.label for stage in stages_for(config_of(), store, "encode")] == ["encode", "round-002-encode"]
    run_stages(config, store, InProcessExecutor(), stages_for(config, store, "collect"))
    assert len(read_records(store, "round-003/rollouts")) == 2
    with pytest.raises(StorageError, match=r"round 3, train-mdnrnn reads the output of encode in .*round-003/latents"):
        run_stages(config, store, InProcessExecutor(), stages_for(config, store, "train-mdnrnn"))


def test_later_round_after_an_evolution_in_the_environment_is_valid() -> None:
    episodes = {"evolve.stall_steps": 9, "evolve.episode_steps": 9, "evolve.replayed_tracks": 1}
    in_dreams: dict[str, Any] = {"evolve.environment": "dream", "evolve.game_from": 2, "mdnrnn.done_weight": 1.0}
    evolve = config_of(**in_dreams, **episodes).in_round(2).evolve
    assert all(map(evolve.dreams_at, range(1, evolve.generations + 1)))
    assert (evolve.stall_steps, evolve.episode_steps, evolve.replayed_tracks) == (None, None, 0)
    evolve = config_of(**episodes).in_round(2).evolve
    assert (evolve.stall_steps, evolve.episode_steps, evolve.replayed_tracks) == (9, 9, 1)


def test_estimate_includes_later_rounds() -> None:
    names = [row.stage for row in preflight.estimate(config_of(3))]
    assert names[-1] == "report" and "2: collect" in names and "3: evolve" in names and "2: train-vae" not in names
    assert "2: train-vae" in [row.stage for row in preflight.estimate(config_of(2, **{"rounds.vae_epochs": 2}))]
