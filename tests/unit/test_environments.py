"""Environments of other packages: each runs through every stage, from collect to the report."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import gymnasium
import pytest

from pipeline.cli.run import run_config
from pipeline.envs.registry import check_environment, traits_of
from pipeline.execution.in_process import InProcessExecutor
from pipeline.planning import preflight
from pipeline.planning.episode_length import collected_actions
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest, read_records
from tests.counting import counting_config
from tests.unit.test_gymnasium_env import Ramp

IDS: list[tuple[str, dict[str, Any], int]] = [
    ("ALE/Breakout-v5", {}, 4),
    ("CarRacing-v3", {"env.options": {"continuous": False}}, 5),
    ("MiniGrid-Empty-8x8-v0", {}, 7),
    ("VizdoomTakeCover-v1", {"env.options": {"screen_resolution": "RES_160X120"}}, 3),
    ("CartPole-v1", {}, 2),
    ("Pendulum-v1", {}, 1),
    ("TakeCover", {}, 1),
    ("OwnRamp-v0", {"env.options": {"shows": "dict", "ends_at": 9}, "env.crop": [0, 70, 0, 100]}, 3),
]


# The report is the slowest stage, and these environments cover all that it takes from one.
REPORTED = ("ALE/Breakout-v5", "OwnRamp-v0")


@pytest.fixture(autouse=True)
def registered() -> Any:
    gymnasium.register("OwnRamp-v0", entry_point=Ramp)
    yield
    del gymnasium.registry["OwnRamp-v0"]


@pytest.mark.parametrize(("env_id", "more", "actions"), IDS, ids=[env_id for env_id, _, _ in IDS])
def test_environment_runs_through_all_stages(
    env_id: str, more: dict[str, Any], actions: int, local_store: LocalStore, executor: InProcessExecutor
) -> None:
    config = counting_config({"env.id": env_id, "collect.policy": "repeat", "collect.episodes_per_shard": 5, **more})
    check_environment(config)
    assert traits_of(config.env).actions.size == actions
    reported = env_id in REPORTED
    run_stages(config, local_store, executor, STAGES if reported else STAGES[:-1])
    manifest = read_manifest(local_store, "evaluation")
    assert manifest is not None and manifest.info["env_steps"] > 0
    weights = local_store.read(read_records(local_store, "vae")["vae.safetensors"].key)
    assert json.dumps(env_id).encode() in weights.replace(b"\\", b"")
    if not reported:
        return
    page = local_store.read("report/index.html").decode()
    assert env_id in page
    assert "CarRacing" not in page, "no numbers of another game"


def test_estimates_of_another_game_use_its_own_speed(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    slow, fast = (
        sum(row.seconds for row in preflight.estimate(counting_config({"env.id": "CartPole-v1"}), rate))
        for rate in (10.0, 1000.0)
    )
    assert slow > fast
    with caplog.at_level("INFO"):
        run_config(
            counting_config({"env.id": "CartPole-v1", "collect.policy": "white", "execution.executor": "in-process"}),
            str(tmp_path / "run"), "collect",
        )  # fmt: skip
    assert "CartPole-v1" in caplog.text


def test_estimates_use_the_length_of_collected_episodes(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    keys = {"env.max_episode_steps": 2000, "collect.episode_steps": 2000, "mdnrnn.window": 30}
    config = counting_config({**keys, "env.id": "CartPole-v1", "collect.episodes": 100})
    length = collected_actions(config)
    assert length is not None and 8 < length < 60, "random CartPole falls soon"
    rows, limits = ({row.stage: row for row in preflight.estimate(config, 100.0, known)} for known in (length, None))
    for stage in ("collect", "train-vae", "encode", "train-mdnrnn"):
        assert rows[stage].seconds < limits[stage].seconds and not rows[stage].at_most and limits[stage].at_most
    assert rows["collect"].disk_bytes == pytest.approx(limits["collect"].disk_bytes * length / 2000)
    assert rows["evolve"].at_most, "an agent's games may be long"
    assert rows["collect"].work == f"100 episodes of about {length:.0f} steps"
    with caplog.at_level("INFO"):
        run_config(config.model_copy(update={"collect": config.collect.model_copy(update={"episodes": 10})}),
                   str(tmp_path / "run"), "collect")  # fmt: skip
    assert "10 episodes of about" in caplog.text
    assert "up to" in caplog.text


def test_collected_length_is_measured_for_games_that_end_in_time() -> None:
    config = counting_config({"env.id": "OwnRamp-v0", "env.options": {"ends_at": 9}, "collect.policy": "repeat"})
    assert collected_actions(config) == 9
    ticks = count()
    assert collected_actions(config, lambda: float(next(ticks))) is None, "the first has not ended after a second"
    assert collected_actions(config, lambda: next(ticks) / 8) == 10, "one ended, and a second has begun"
    assert collected_actions(counting_config({"collect.policy": "random-controller"})) is None


def test_controller_evolved_in_dreams_is_tested_in_the_game(
    local_store: LocalStore, executor: InProcessExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    config = counting_config(
        {
            "env.id": "TakeCover", "env.max_episode_steps": 120, "collect.policy": "repeat",
            "collect.episode_steps": 120, "mdnrnn.done_weight": 1.0, "mdnrnn.done_positive_weight": 10.0,
            "evolve.environment": "dream", "evolve.select": "dream", "evolve.validation_dreams": 6,
            "dream.max_steps": 30, "dream.micro_batch": 4, "dream.lanes": 8,
        }
    )  # fmt: skip
    run_stages(config, local_store, executor, STAGES)
    evolution, collected = (read_manifest(local_store, prefix) for prefix in ("evolution", "rollouts"))
    assert evolution is not None and collected is not None
    info = evolution.info
    assert info["dream_steps"] > 0
    history = json.loads(local_store.read("report/report.json"))["history"]
    dreamt = [row["dream_mean"] for row in history if row["dream_mean"] is not None]
    assert info["best_validation"] == max(dreamt), "chosen by dreams"
    assert all(row["validation_mean"] is not None for row in history if row["dream_mean"] is not None)
    games = [row["env_steps"] for row in history]
    assert games[0] == 0 and games[-1] == info["env_steps"], "only validations step the environment"
    page = " ".join(local_store.read("report/index.html").decode().split())
    assert "Candidates were scored in M's dreams" in page
    assert "No return in the environment was used for it." in page
    assert "of the ends" in page or "was not measured" in page, "no return in dreams without M's recall"
