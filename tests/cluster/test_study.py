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
    arguments = ("study", study, "--run-dir", str(study_dir))
    driver = command.Command(*arguments, environment={WORKER_VARIABLE: "generation-scored@2:freeze"})
    code, output = driver.interrupt(signal.SIGKILL, lambda: command.frozen_below(driver.process.pid))
    assert code == -signal.SIGKILL, output

    # A run that cannot be resumed does not end the others.
    foreign = study_dir / "arms" / "wide" / "seed-2"
    foreign.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in foreign.iterdir()}
    (foreign / "config.yaml").write_text("seed: 7\n")
    code, output = command.run(*arguments)
    assert code == 1, output
    assert "1 of 6 runs failed: wide/seed-2" in output
    assert "holds a run of another config" in output
    assert "Traceback" not in output.rpartition("Trial status")[2]

    if "config.yaml" not in before:
        (foreign / "config.yaml").unlink()
    code, output = command.run(*arguments)
    assert code == 0, output
    assert "| wide | 2 |" in output
    trials = trials_of(load_study(study))
    for trial in (trials[0], trials[-1]):
        straight = tmp_path / trial.arm
        run_config(trial.config, str(straight), "run")
        assert command.outcome(study_dir / trial.folder) == command.outcome(straight)
    assert [check_run(LocalStore(study_dir / trial.folder)).problems for trial in trials] == [[]] * 6
    found = json.loads((study_dir / "comparison" / "comparison.json").read_text())
    assert [arm["seeds"] for arm in found["arms"]] == [[1, 2]] * 3

    code, output = command.run("compare", *(str(study_dir / trial.folder) for trial in trials), "--json")
    assert code == 0, output
    again = json.loads(output.splitlines()[-1])
    assert [arm["score"] for arm in again["arms"]] == [arm["score"] for arm in found["arms"]]


def _rows(folder: str, name: str) -> list[dict[str, float]]:
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
        lambda name: _rows(str(tmp_path), name),
        concurrent=1,
        cpus=0,
        early_stopping={
            "time_attr": "generation", "metric": "validation", "mode": "max", "max_t": 10, "grace_period": 1,
            "reduction_factor": 2,
        },
    )  # fmt: skip
    assert failed == {}
    assert (tmp_path / "bad-began").exists()
