"""The whole pipeline on real CarRacing, by the real command."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.e2e import command


def test_complete_run_writes_a_report(smoke_run: Path) -> None:
    page = (smoke_run / "report" / "index.html").read_text()
    assert len(page) > 20_000
    assert "data:video/mp4;base64," in page


def test_second_run_skips_every_stage_and_changes_only_its_log(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    before = command.files(folder)
    code, output = command.run("run", "smoke", "--run-dir", str(folder))
    assert code == 0, output
    assert output.count("complete, skipped") == 7
    after = command.files(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"sessions/000002/begun.json", "sessions/000002/heartbeat.json"}
    assert before.keys() <= after.keys()


def test_status_shows_stages_and_evolution(smoke_run: Path) -> None:
    code, output = command.run("status", str(smoke_run))
    assert code == 0
    stages = ("collect", "train-vae", "encode", "train-mdnrnn", "evolve", "evaluate", "report")
    lines = output.splitlines()
    for stage in stages:
        assert any(line.split()[:2] == [stage, "complete"] for line in lines), stage
    assert "generation 3 of 3" in output


def test_single_stage_needs_the_stage_before_it(tmp_path: Path) -> None:
    code, output = command.run("train-vae", "smoke", "--run-dir", str(tmp_path / "run"))
    assert code == 1
    assert "Run `world-models collect` first" in output


def test_single_stages_give_the_same_result_as_run(smoke_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for stage in ("collect", "train-vae"):
        code, output = command.run(stage, "smoke", "--run-dir", str(folder))
        assert code == 0, output
    code, output = command.run("run", "smoke", "--run-dir", str(folder))
    assert code == 0, output
    assert output.count("complete, skipped") == 2
    assert command.outcome(folder) == command.outcome(smoke_run)
