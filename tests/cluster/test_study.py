"""Studies on a real Ray Tune: killed and resumed, with a run that fails, with early stopping, and as a job."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from actors.study import joined_ray, run_trials
from pipeline.base.errors import ConfigError
from pipeline.base.failpoints import WORKER_VARIABLE
from pipeline.cli.main import main
from pipeline.cli.run import run_config
from pipeline.config.study import load_study
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from pipeline.storage.manifest import read_manifest, read_records
from pipeline.studies.plan import trials_of
from tests.counting import counting_config
from tests.e2e import command
from tests.unit.test_study import study_file


def test_killed_study_resumes_with_the_same_results(tmp_path: Path) -> None:
    arms = "{trained: {}, wide: {evolve.sigma: 0.3}}"
    base = counting_config().model_dump_json()
    study = study_file(tmp_path, f"base: {base}\nseeds: [1]\nconcurrent: 1\narms: {arms}\n")
    study_dir = tmp_path / "study"
    arguments = ("study", study, "--run-dir", str(study_dir))
    driver = command.Command(*arguments, environment={WORKER_VARIABLE: "generation-scored@2:freeze"})
    code, output = driver.interrupt(signal.SIGKILL, lambda: command.frozen_below(driver.process.pid))
    assert code == -signal.SIGKILL, output
    code, output = command.run(*arguments)
    assert code == 0, output
    assert "evolve: resuming after generation 1" in output and "| wide | 1 |" in output
    trials = trials_of(load_study(study))
    straight = tmp_path / "straight"
    run_config(trials[0].config, str(straight), "run")
    assert command.outcome(study_dir / trials[0].folder) == command.outcome(straight)
    assert [check_run(LocalStore(study_dir / trial.folder)).problems for trial in trials] == [[]] * 2
    found = json.loads((study_dir / "comparison" / "comparison.json").read_text())
    assert main(["compare", str(study_dir), "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "comparison.json").read_text()) == found


def run_one_trial(folder: str) -> None:
    """Run a pool and a task in a trial on a local Ray, on whose one node Ray chooses the places."""
    config = counting_config({"execution.executor": "ray", "execution.workers": 1})

    def perform(name: str) -> None:
        for stage in ("collect", "train-vae"):
            run_config(config, f"{folder}/{name}", stage)

    with joined_ray(config.execution, 2):
        assert run_trials(["one"], perform, lambda _: [], concurrent=1, cpus=0, early_stopping=None) == {}


def test_runs_of_a_study_have_separate_workers(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=run_one_trial, args=(str(tmp_path),))
    process.start()  # this process may be connected to another Ray
    process.join(900)
    assert process.exitcode == 0
    for stage in ("collect", "train-vae"):
        run_config(counting_config(), str(tmp_path / "straight"), stage)
    one, straight = (LocalStore(tmp_path / name) for name in ("one", "straight"))
    for prefix in ("rollouts", "vae"):
        assert sealed_digests(one, prefix) == sealed_digests(straight, prefix) != {}


def sealed_digests(store: LocalStore, prefix: str) -> dict[str, str]:
    """Digests of a complete stage's objects by record."""
    assert read_manifest(store, prefix) is not None
    return {name: record.sha256 for name, record in read_records(store, prefix).items()}


def _rows(name: str) -> list[dict[str, float]]:
    return [{"generation": 1.0, "validation": {"good": 100.0, "bad": 1.0}[name]}]


@pytest.mark.usefixtures("local_ray")
def test_bad_arm_is_stopped_early(tmp_path: Path) -> None:
    def perform(name: str) -> None:
        (tmp_path / f"{name}-began").touch()
        while name == "bad":  # until the trial is stopped
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


@pytest.mark.usefixtures("local_ray")
def test_failed_run_does_not_end_the_other_runs(tmp_path: Path) -> None:
    def perform(name: str) -> None:
        if name == "bad":
            raise ConfigError("bad/config.yaml holds a run of another config")
        (tmp_path / name).touch()

    failed = run_trials(["bad", "good"], perform, lambda _: [], concurrent=1, cpus=0, early_stopping=None)
    assert failed == {"bad": "bad/config.yaml holds a run of another config"}
    assert (tmp_path / "good").exists()
