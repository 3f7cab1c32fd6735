"""External agents on the test tracks: classes, and the agents of other runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from pipeline.cli.main import main
from pipeline.config.presets import dump
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.rollouts.external_agents import ExternalWorker, environment_for, make_external_agent, names_class
from pipeline.rollouts.jobs import RolloutJob
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.layout import CONFIG, manifest_key
from pipeline.storage.local import LocalStore
from tests.counting import counting_config, episode_length, reward_of
from tests.external_agents import Seeded, Straight
from tests.made_run import returns_of

HERE = ("-o", "execution.executor=in-process")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on the counting environment."""
    config = counting_config({"execution.executor": "in-process"})
    store = LocalStore(tmp_path_factory.mktemp("run") / "ours")
    store.write(CONFIG, dump(config).encode())
    run_stages(config, store, InProcessExecutor(), STAGES[:6])
    return store.root


def job(track: int, max_steps: int) -> RolloutJob:
    return RolloutJob("test", 0, 0, 0, track, 0, np.zeros(0, np.float32), max_steps)


@pytest.mark.parametrize("name", ["Straight", "Listing"])
def test_a_class_acts_in_gymnasiums_own_game(name: str) -> None:
    config = EnvConfig(id="CarRacing-v3", view="playfield", max_episode_steps=25)
    jobs = [job(3, 25)]
    ((_, result),) = ExternalWorker(f"tests.external_agents:{name}", config).run(jobs)
    env, agent, total = gymnasium.make("CarRacing-v3"), Straight(), 0.0
    observation, _ = env.reset(seed=3)
    for _ in range(25):
        observation, reward, *_ = env.step(agent.act(observation))
        total += float(reward)
    env.close()
    assert (result.episode_return, result.steps, result.terminated, result.truncated) == (total, 25, False, True)


def test_a_class_that_takes_the_seed_is_evaluated_and_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / "theirs"
    saved = str(run / CONFIG)
    with caplog.at_level("INFO"):
        assert main(["evaluate", saved, "--agent", "tests.external_agents:Seeded", "--run-dir", str(theirs)]) == 0
    config = counting_config()
    assert f"1 agent x {config.evaluate.episodes} tracks" in caplog.text and "device" not in caplog.text
    tracks = range(config.tracks.test.start, config.tracks.test.start + config.evaluate.episodes)
    expected = []
    for track in tracks:
        agent, total = Seeded(), 0.0
        agent.reset(track)
        for step in range(episode_length(track, config.env.max_episode_steps)):
            total += reward_of(track, step, agent.act(None))
        expected.append(total)
    assert returns_of(theirs) == {"agent": expected}
    output = capsys.readouterr().out
    assert f"tests.external_agents:Seeded: return {np.mean(expected):.1f}" in output

    assert main(["evaluate", saved, "--agent", "tests.external_agents:Seeded", "--run-dir", str(theirs)]) == 0
    assert main(["compare", str(run), str(theirs), "--out", str(tmp_path / "compared")]) == 0
    rows = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert [arm["name"] for arm in rows["arms"]] == [config.name, "tests.external_agents:Seeded"]
    assert main(["status", str(theirs)]) == 0
    assert "evaluate      complete" in capsys.readouterr().out


def test_the_agent_of_another_run_scores_what_it_does_there_to_the_bit(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["evaluate", "--agent", str(run), "--run-dir", str(again)]) == 0
    ours = returns_of(run)
    assert returns_of(again) == {"agent": ours[min(ours)]}
    films = [key for key in LocalStore(again).list("evaluation/records") if "drive" in key]
    assert len(films) == 2


def test_it_resumes_where_it_was_stopped(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, played = tmp_path / "theirs", []
    real = ExternalWorker.run

    def counted(self: ExternalWorker, jobs: Any) -> Any:
        for found in real(self, jobs):
            played.append(found[0])
            yield found

    monkeypatch.setattr(ExternalWorker, "run", counted)
    command = ["evaluate", str(run / CONFIG), "--agent", "tests.external_agents:Seeded", "--run-dir", str(theirs)]
    assert main([*command, "-o", "evaluate.episodes=2"]) == 0
    before = returns_of(theirs)["agent"]
    assert main([*command, "-o", "evaluate.episodes=4"]) == 0
    assert returns_of(theirs)["agent"][:2] == before and len(played) == 4, "two were played already"


OTHER_AGENT = """
import numpy as np

class Agent:
    def reset(self):
        pass

    def act(self, observation):
        return np.full(2, {value}, np.float32)
"""


@pytest.mark.parametrize("done", ["sealed", "stopped"])
def test_results_of_two_sources_of_a_class_are_not_mixed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: str
) -> None:
    source = tmp_path / "changing.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def evaluate(value: float, place: Path) -> int:
        source.write_text(OTHER_AGENT.format(value=value))
        sys.modules.pop("changing", None)
        return main(["evaluate", str(run / CONFIG), "--agent", "changing:Agent", "--run-dir", str(place)])

    assert evaluate(0.25, tmp_path / "a") == 0
    first = returns_of(tmp_path / "a")
    if done == "stopped":
        (tmp_path / "a" / manifest_key("evaluation")).unlink()
    capsys.readouterr()
    assert evaluate(0.5, tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "evaluate.agent, SHA-256 of its source" in error and "Choose another --run-dir" in error
    assert evaluate(0.5, tmp_path / "b") == 0 and returns_of(tmp_path / "b") != first
    assert evaluate(0.25, tmp_path / "a") == 0 and returns_of(tmp_path / "a") == first


def test_the_results_of_a_run_are_not_mixed_with_those_of_its_other_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent, other, theirs = tmp_path / "agent", tmp_path / "other", tmp_path / "theirs"
    shutil.copytree(run, agent)
    assert main(["evaluate", "--agent", str(agent), "--run-dir", str(theirs)]) == 0
    config = counting_config({"seed": 2})
    LocalStore(other).write(CONFIG, dump(config).encode())
    run_stages(config, LocalStore(other), InProcessExecutor(), STAGES[:5])
    shutil.rmtree(agent)
    other.rename(agent)
    saved = str(theirs / CONFIG)
    assert main(["evaluate", saved, "--agent", str(agent), "--run-dir", str(theirs)]) == 2
    error = capsys.readouterr().err
    assert "evaluate.agent, SHA-256 of its weights" in error and "Choose another --run-dir" in error


def test_a_class_acts_at_every_step_of_an_environment_that_repeats_actions() -> None:
    config = counting_config().env.model_copy(update={"action_repeat": 3})
    for track in (3, 4):
        jobs = [job(track, config.max_episode_steps)]
        ((_, result),) = ExternalWorker("tests.external_agents:Seeded", config).run(jobs)
        agent, total = Seeded(), 0.0
        agent.reset(track)
        length = episode_length(track, config.max_episode_steps)
        for step in range(length):
            total += reward_of(track, step, agent.act(None))
        assert (result.episode_return, result.steps) == (total, length)


def cartpole(**env: Any) -> RunConfig:
    values = {"env": {"id": "CartPole-v1", "max_episode_steps": 50, **env}, "collect": {"episode_steps": 50}}
    return RunConfig.model_validate({**values, "mdnrnn": {"window": 5}})


def test_agent_of_another_run_keeps_its_view_in_the_evaluations_game() -> None:
    theirs = cartpole(crop=[0, 300, 0, 600], action_repeat=2, options={"sutton_barto_reward": True})
    ours = cartpole(fresh=True, max_episode_steps=60)
    env = environment_for(theirs.env, ours)
    assert env == ours.test_env.model_copy(update={"crop": [0, 300, 0, 600], "action_repeat": 2})
    assert env.options == {} and env.fresh and env.max_episode_steps == 60
    small = {"env": {"max_episode_steps": 50}, "collect": {"episode_steps": 50}, "mdnrnn": {"window": 5}}
    car = RunConfig.model_validate(small)
    random = RunConfig.model_validate(
        {**small, "env": {"max_episode_steps": 50, "domain_randomize": True, "view": "full"}}
    )
    played = environment_for(random.env, car)
    assert (played.domain_randomize, played.view, played.rendering) == (False, "full", "gymnasium")
    assert environment_for(car.env, random).domain_randomize


def test_the_agent_of_another_run_that_cannot_act_or_see_here_is_refused() -> None:
    lander = {"id": "LunarLander-v3", "max_episode_steps": 50}
    small = {"collect": {"episode_steps": 50, "policy": "white"}, "mdnrnn": {"window": 5}}
    discrete = RunConfig.model_validate({**small, "env": lander})
    continuous = RunConfig.model_validate({**small, "env": {**lander, "options": {"continuous": True}}})
    with pytest.raises(ConfigError, match=r"has action space Discrete\(4\); LunarLander-v3 with .* has Box"):
        environment_for(discrete.env, continuous)
    keyed = cartpole(frame_key="screen")
    with pytest.raises(ConfigError, match=r"in the environment of this evaluation: env.frame_key = 'screen'"):
        environment_for(keyed.env, cartpole())


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("tests.external_agents:Absent", "tests.external_agents has no class Absent"),
        ("nowhere_at_all:Agent", "importing nowhere_at_all failed.*PYTHONPATH=FOLDER"),
        ("tests.external_agents:NeedsArguments", "cannot be made without arguments"),
        ("tests.external_agents:Unfinished", r"has no method reset: expected reset\(\) and act\(observation\)"),
    ],
)
def test_a_class_that_is_no_agent_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], agent: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_external_agent(agent)
    place = tmp_path / "theirs"
    assert main(["evaluate", str(run / CONFIG), "--agent", agent, "--run-dir", str(place)]) == 2
    assert "evaluate.agent" in capsys.readouterr().err
    assert not place.exists()


def test_an_agent_that_raises_ends_the_evaluation_with_its_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(run / CONFIG), "--agent", "tests.external_agents:Raising"]
    assert main([*command, "--run-dir", str(tmp_path / "theirs")]) == 1
    error = capsys.readouterr().err
    assert "in step 3" in error and "out of ideas" in error


def test_a_command_that_says_too_little_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--agent", "tests.external_agents:Seeded", "--run-dir", str(tmp_path / "x")]) == 2
    assert "needs CONFIG" in capsys.readouterr().err
    assert main(["evaluate", str(run / CONFIG), "--agent", str(run)]) == 2
    assert "needs --run-dir" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "CONFIG" in capsys.readouterr().err
    other = tmp_path / "other.yaml"
    other.write_text(dump(RunConfig.model_validate({"env": {"id": "CarRacing-v3"}})))
    assert main(["evaluate", str(other), "--agent", str(run), "--run-dir", str(tmp_path / "y"), *HERE]) == 2
    assert "plays tests.counting:CountingEnv, and env.id is CarRacing-v3" in capsys.readouterr().err


def test_an_agent_is_a_class_or_the_location_of_a_run() -> None:
    assert names_class("my.package:Agent") and names_class("m:A_1")
    for run_dir in ("runs/laptop", "s3://bucket/run", "pretrained:carracing", "/data/x:y", "laptop"):
        assert not names_class(run_dir)
