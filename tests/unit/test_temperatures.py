"""The table of temperatures: an evolution for each, in its own folder, with the run's own V and M."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.cli.status_text import describe_run
from pipeline.config.presets import dump
from pipeline.data.rounds import Round
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.layout import foreign_keys
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from pipeline.storage.manifest import require_manifest
from tests.counting import counting_config

KEYS = {
    "mdnrnn.done_weight": 1.0, "mdnrnn.reward_weight": 1.0, "execution.executor": "in-process",
    "dream.reward": "model", "dream.max_steps": 12, "dream.micro_batch": 4, "dream.lanes": 8,
    "dream.end_probability": 0.6, "evolve.validation_dreams": 9, "evolve.validate_every": 1, "evolve.stall_steps": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose M predicts ends, with or without an evolution in the game."""
    folder = tmp_path_factory.mktemp("run")
    store = LocalStore(folder)
    store.write("config.yaml", dump(counting_config(KEYS)).encode())
    run_stages(counting_config(KEYS), store, InProcessExecutor(), STAGES[:4])
    return folder


def test_each_temperature_has_an_evolution_and_a_row_in_the_table(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["temperatures", str(run), "--at", "1.15", "0.5", "--generations", "2", "--episodes", "3", "--json"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(arguments) == 0
    output = capsys.readouterr().out
    rows = json.loads(output.splitlines()[-1])
    assert [row["temperature"] for row in rows] == [0.5, 1.15]
    assert {row["episodes"] for row in rows} == {3} and {row["generation"] for row in rows} <= {1, 2}
    assert output.count("| 0.5 |") == output.count("| 1.15 |") == 1
    assert "M predicts" in output or "is unknown" in output
    held_out = require_manifest(LocalStore(run), "mdnrnn").info["held_out"]
    for row in rows:
        assert [row["end_recall"], row["end_precision"]] == held_out["ends_by_threshold"]["0.60"], "dreams end at 0.6"
    store = LocalStore(run)
    for row in rows:
        at = Round(1, f"temperature-{row['temperature']:g}")
        manifest = require_manifest(store, at.folder("evolution"))
        assert manifest.config["dream.temperature"] == row["temperature"]
        assert manifest.config["evolve.environment"] == manifest.config["evolve.select"] == "dream"
        assert set(manifest.upstream) == {"vae", "latents", "mdnrnn"}
        score = require_manifest(store, at.folder("evaluation")).info["controllers"]
        assert score[min(score)]["mean"] == row["mean"]
    assert rows[0]["dream_mean"] != rows[1]["dream_mean"]
    assert all(path.read_bytes() == data for path, data in before.items()), "the run itself is left alone"
    assert not (run / "evolution").exists()
    assert foreign_keys(store) == [] and check_run(store).problems == []

    assert main([*arguments[:2], "--at", "0.5", *arguments[5:-1]]) == 0, "nothing is made again"
    assert "| 0.5 |" in capsys.readouterr().out
    assert "  temperature-1.15 evaluated" in describe_run(store)


def test_evolution_in_the_game_is_kept_next_to_those_in_dreams(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["temperatures", str(run), "--at", "0.9", "--game", "--generations", "2", "--episodes", "3", "--json"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    dream, game = json.loads(output.splitlines()[-1])
    assert (dream["temperature"], game["temperature"], game["dream_mean"]) == (0.9, None, None)
    assert "| none: in the game | – |" in output and "evolved and chosen in the game" in output
    store = LocalStore(run)
    manifest = require_manifest(store, "game/evolution")
    assert manifest.config["evolve.environment"] == manifest.config["evolve.select"] == "game"
    assert (manifest.config["evolve.stall_steps"], manifest.info["generations"]) == (9, 2)
    assert manifest.upstream == require_manifest(store, "temperature-0.9/evolution").upstream, "the same V and M"
    assert foreign_keys(store) == [] and check_run(store).problems == []
    assert "  game          evaluated" in describe_run(store)
    assert main([*arguments[:-1], "-o", "evolve.sigma=0.25"]) == 2
    said = capsys.readouterr().err
    assert f"or remove {run / 'temperature-0.9'} to run this evolution from scratch" in said and "--run-dir" not in said


def test_run_unfit_for_dreams_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(tmp_path / "blind")
    store.write("config.yaml", dump(counting_config({"execution.executor": "in-process"})).encode())
    store.write("sessions/000001/begun.json", b"{}")
    assert main(["temperatures", str(tmp_path / "blind")]) == 2
    assert "set mdnrnn.done_weight above 0" in capsys.readouterr().err


def test_keys_of_completed_stages_cannot_be_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["temperatures", str(run), "-o", "mdnrnn.hidden_size=9"]) == 2
    assert "temperatures keeps the run's values of these keys:\n  mdnrnn.hidden_size: " in capsys.readouterr().err
    assert main(["temperatures", str(run), "--at", "0.123"]) == 2
    assert "temperature 0.123: at most two decimals" in capsys.readouterr().err


def test_missing_device_is_refused_before_anything_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["temperatures", str(run), "--at", "0.7", "--generations", "1", "-o", "dream.device=cuda"]) == 2
    assert "dream.device = 'cuda', but there is no GPU here" in capsys.readouterr().err
    assert not (run / "temperature-0.7").exists()


def test_too_few_generations_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["temperatures", str(run), "--generations", "2", "-o", "evolve.validate_every=5"]) == 2
    assert "2 generations end before the first validation" in capsys.readouterr().err
