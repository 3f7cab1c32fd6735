"""Studies on a real Ray Tune: killed and resumed, with a run that fails, with early stopping, and as a job."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from actors.study import run_trials
from pipeline.base.failpoints import WORKER_VARIABLE
from pipeline.cli.run import run_config
from pipeline.config.study import load_study
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from pipeline.studies.plan import trials_of
from tests.e2e import command
from tests.unit.test_study import study_file


def test_a_study_that_is_killed_comes_to_the_same_results(tmp_path: Path) -> None:
    study, study_dir = study_file(tmp_path), tmp_path / "study"
    arguments = ("study", study, "--run-dir", str(study_dir), "--seeds", "1")
    driver = command.Command(*arguments, environment={WORKER_VARIABLE: "generation-scored@2:freeze"})
    code, output = driver.interrupt(signal.SIGKILL, lambda: command.frozen_below(driver.process.pid))
    assert code == -signal.SIGKILL, output

    # A run that cannot be resumed does not end the others.
    trained, random, wide = trials_of(load_study(study, seeds=[1]))
    config = study_dir / random.folder / "config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("seed: 7\n")
    code, output = command.run(*arguments)
    assert code == 1, output
    assert "1 of 3 runs failed: random/seed-1" in output
    assert "holds a run of another config" in output
    assert "| wide | 1 |" in output
    straight = tmp_path / "straight"
    run_config(trained.config, str(straight), "run")
    assert command.outcome(study_dir / trained.folder) == command.outcome(straight)
    for trial in (trained, wide):
        assert check_run(LocalStore(study_dir / trial.folder)).problems == []
    found = json.loads((study_dir / "comparison" / "comparison.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["trained", "wide"]


def _rows(name: str) -> list[dict[str, float]]:
    return [{"generation": 1.0, "validation": {"good": 100.0, "bad": 1.0}[name]}]


@pytest.mark.usefixtures("local_ray")
def test_a_bad_arm_is_stopped_early(tmp_path: Path) -> None:
    def perform(name: str) -> None:
        (tmp_path / f"{name}-began").touch()
        while name == "bad":  # until it is stopped
            time.sleep(0.1)

    failed = run_trials(
        ["good", "bad"],
        perform,
        _rows,
        concurrent=1,
        cpus=0,
        early_stopping={
            "time_attr": "generation", "metric": "validation", "mode": "max", "max_t": 10, "grace_period": 1,
            "reduction_factor": 2,
        },
    )  # fmt: skip
    assert failed == {}
    assert (tmp_path / "bad-began").exists()
