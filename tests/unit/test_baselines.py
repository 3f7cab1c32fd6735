"""Blind policies compared with a run's controller: same tracks, paired differences, and a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import EpisodeError
from pipeline.cli.main import main
from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import TEST_EPISODES
from pipeline.envs.registry import make_environment
from pipeline.execution.in_process import InProcessExecutor
from pipeline.reporting.baselines import baseline_rows, table
from pipeline.reporting.findings import read_test_returns
from pipeline.rollouts.blind_policies import BlindJob, BlindWorker, SweepPolicy, blind_policies
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import newest, require_manifest
from tests.counting import counting_config

FRAME = np.zeros((64, 64, 3), np.uint8)


def test_sweep_steers_both_ways() -> None:
    env = make_environment(RunConfig.model_validate({"env": {"id": "TakeCover"}}).env)
    policy = SweepPolicy(env, 3)
    assert [float(policy.act(FRAME)[0]) for _ in range(8)] == [-1, -1, -1, 1, 1, 1, -1, -1]
    assert blind_policies(env) == ["random", "repeat", "sweep 40", "sweep 60", "sweep 90", "sweep 140"]
    assert blind_policies(make_environment(counting_config().env)) == ["random", "repeat"], (
        "a sweep needs a single number"
    )


@pytest.mark.parametrize("policy", ["random", "sweep 30"])
def test_game_without_drawing_gives_the_same_result(policy: str) -> None:
    config = RunConfig.model_validate(
        {"env": {"id": "TakeCover", "max_episode_steps": 400}, "collect": {"episode_steps": 400, "policy": "repeat"},
         "mdnrnn": {"window": 100}}
    )  # fmt: skip
    unseen, seen = (
        BlindWorker(config.env, config.collect.max_repeats, config.seed),
        BlindWorker(config.env, config.collect.max_repeats, config.seed),
    )
    seen._env.draws = True  # type: ignore[attr-defined]
    jobs = [BlindJob(policy, track) for track in range(6)]
    found = dict(unseen.run(jobs))
    assert found == dict(seen.run(jobs))
    assert len(set(found.values())) > 3
    for worker in (unseen, seen):
        worker._env.close()


def test_difference_is_paired_and_the_verdict_follows_its_interval() -> None:
    rng = np.random.default_rng(0)
    tracks = rng.normal(500, 300, 200)  # tracks differ much more than policies do
    better, equal = tracks + rng.normal(30, 40, 200), tracks + rng.normal(0, 40, 200)
    rows = baseline_rows("ours", better.tolist(), {"theirs": tracks.tolist(), "random": (tracks - 400).tolist()}, 1)
    assert rows[1].difference == pytest.approx((better - tracks).mean())
    assert rows[1].difference_low is not None and rows[1].difference_low > 15
    assert rows[0].high - rows[0].low > 60, "an unpaired interval would be too wide"
    verdict = "The controller scores {} the best blind policy (theirs)."
    assert table(rows, range(200))[-1] == verdict.format("more than")
    for ours, theirs, words in ((equal, tracks, "about as much as"), (tracks, better, "less than")):
        rows = baseline_rows("ours", ours.tolist(), {"theirs": theirs.tolist()}, 1)
        assert table(rows, range(200))[-1] == verdict.format(words)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    store = LocalStore(folder)
    config = counting_config({"execution.executor": "in-process"})
    store.write("config.yaml", dump(config).encode())
    run_stages(config, store, InProcessExecutor(), STAGES[:6])
    return folder


def test_command_compares_on_the_test_tracks_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["baselines", str(run), "--json"]) == 0
    output = capsys.readouterr().out
    rows = json.loads(output.splitlines()[-1])
    assert [row["policy"] for row in rows][1:] == ["random", "repeat"]
    manifest = require_manifest(LocalStore(run), "evaluation")
    scores = read_test_returns(LocalStore(run), newest(manifest.records, TEST_EPISODES))
    assert rows[0]["mean"] == pytest.approx(np.mean(scores[min(scores)]))
    assert rows[1]["difference"] == pytest.approx(rows[0]["mean"] - rows[1]["mean"])
    assert "The controller scores" in output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, "nothing is written"


def test_tracks_outside_the_test_tracks_of_the_run_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", str(run), "-o", "tracks.test.start=500"]) == 2
    assert "baselines keeps the run's values of these keys:\n  tracks.test.start: 0 -> 500" in capsys.readouterr().err


class Breaks:
    """An environment that raises from its third step on."""

    def __init__(self, real: Any) -> None:
        self._real, self._steps, self.actions = real, 0, real.actions

    def reset(self, track: int) -> Any:
        return self._real.reset(track)

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps >= 3:
            raise RuntimeError("the engine is gone")
        return self._real.step(action)

    def close(self) -> None:
        self._real.close()


def test_broken_environment_is_replaced() -> None:
    config = counting_config()
    worker = BlindWorker(config.env, config.collect.max_repeats, config.seed)
    job = BlindJob("random", 3)
    ((_, expected),) = worker.run([job])
    worker._env = Breaks(worker._env)  # type: ignore[assignment]
    with pytest.raises(EpisodeError, match=r"episode of random on track seed 3.*in step 3.*the engine is gone"):
        list(worker.run([job]))
    ((_, found),) = worker.run([job])
    assert found == expected


def test_unknown_policy_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", str(run), "--policies", "sweep 40"]) == 2
    assert "policy 'sweep 40': expected random or repeat" in capsys.readouterr().err
