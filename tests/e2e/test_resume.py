"""Killed and stopped processes: run again, they give the result of an uninterrupted run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.base.failpoints import VARIABLE
from tests.e2e import command

# As many checkpoints as possible.
OFTEN = {
    "vae__checkpoint_every_s": 1e-9, "vae__log_every_steps": 1, "evolve__generations": 5, "evolve__average_means": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return command.uninterrupted(tmp_path_factory.mktemp("uninterrupted"), **OFTEN)


def _logged_steps(run: Path, stage: str) -> list[int]:
    rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "held_out_loss" not in row]


def test_sigkill_in_training_and_in_evolve_changes_no_result(uninterrupted: Path, tmp_path: Path) -> None:
    """For the same test on Ray see ``test_s3_runs.py``."""
    folder = tmp_path / "run"
    arguments: tuple[str, ...] = ("run", command.counting_preset(tmp_path, **OFTEN), "--run-dir", str(folder))
    driver = command.frozen(arguments, "in-process", "checkpoint-recorded@3")
    code, output = driver.interrupt(signal.SIGKILL, lambda: True)
    assert code == -signal.SIGKILL, output
    assert not (folder / "vae" / "MANIFEST.json").exists()

    code, output = command.run(*arguments, environment={VARIABLE: "generation-scored@3"})
    assert code == -signal.SIGKILL, output
    resumed = re.search(r"train-vae: resuming at step (\d+)", output)
    assert resumed is not None and int(resumed[1]) >= 3, output
    assert not (folder / "evolution" / "MANIFEST.json").exists()

    code, output = command.run(*arguments)
    assert code == 0, output
    assert "evolve: resuming after generation 2" in output
    assert command.outcome(folder) == command.outcome(uninterrupted)

    for stage in ("vae", "evolution"):
        steps = _logged_steps(folder, stage)
        assert steps == sorted(set(steps)) == _logged_steps(uninterrupted, stage), f"{stage}: doubled or missing points"


@pytest.mark.parametrize("executor", ["in-process", "ray"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_shows_the_resume_command_and_loses_nothing(
    tmp_path: Path, number: signal.Signals, code: int, executor: str
) -> None:
    """The process that runs the episodes is frozen after its first shard, so that the signal never comes too late."""
    folder = tmp_path / "run"
    arguments = ("collect", "smoke", "--run-dir", str(folder))
    driver = command.frozen(arguments, executor, "record-created@1")
    if executor == "ray":
        ended, output = driver.interrupt(number, lambda: True)
    else:
        os.kill(driver.process.pid, number)
        driver.unfreeze()
        ended, output = driver.finish()
    assert ended == code, output
    assert f"world-models collect smoke --run-dir {folder}" in output
    assert "Traceback" not in output
    records = folder / "rollouts" / "records"
    kept = command.files(records)
    assert 1 <= len(kept) < 3
    again, output = command.run(*arguments)
    assert again == 0, output
    assert kept.items() < command.files(records).items()


def test_extended_evolution_equals_one_planned_at_that_length(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    code, output = command.run(
        "run", "smoke", "--run-dir", str(folder), "-o", "evolve.generations=4", "-o", "evaluate.episodes=3"
    )
    assert code == 0, output
    assert output.count("complete, skipped") == 4
    straight = tmp_path / "straight"
    for prefix in ("rollouts", "vae", "latents", "mdnrnn"):
        shutil.copytree(smoke_run / prefix, straight / prefix)
    shutil.copy(smoke_run / "config.yaml", straight)
    code, output = command.run(
        "run", "smoke", "--run-dir", str(straight), "-o", "evolve.generations=4", "-o", "evaluate.episodes=3"
    )
    assert code == 0, output
    grown, expected = command.outcome(folder), command.outcome(straight)
    assert expected.items() <= grown.items()
    code, output = command.run("run", "smoke", "--run-dir", str(folder))
    assert code == 2
    assert "evolve.generations: 4 -> 3" in output


def test_wall_clock_limit_ends_the_session_but_not_the_run(smoke_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for prefix in ("rollouts", "vae", "latents", "mdnrnn"):
        shutil.copytree(smoke_run / prefix, folder / prefix)
    shutil.copy(smoke_run / "config.yaml", folder)
    arguments = ("evolve", "smoke", "--run-dir", str(folder))
    code, output = command.run(*arguments, "-o", "evolve.max_seconds=0.001")
    assert code == 3, output
    assert "after generation 1 of 3" in output
    code, output = command.run(*arguments)
    assert code == 0, output
    whole = command.outcome(smoke_run)
    code, output = command.run("run", "smoke", "--run-dir", str(folder))
    assert code == 0, output
    assert command.outcome(folder) == whole
