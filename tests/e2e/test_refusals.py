"""Refused commands: each gives one clear error and an exit code, and changes nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.e2e import command


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evolve.populaton_size=8", "Did you mean population_size?"),
        ("evolve.population_size=2", "expected at least 3"),
        ("evolve.sigma=1e300", "expected at most 1000000"),
        ("evolve.population_size=many", "expected a whole number"),
        ("mdnrnn.window=41", "longer than any episode"),
        ("tracks.test={start: 0, stop: 100001}", "overlap"),
        ("tracks.test={start: 5, stop: 5}", "empty seed range"),
        ("env.id=CarRacing-v9", "Expected CarRacing-v3"),
        ("execution.workers=100000", "lower execution.workers, which takes"),
        ("run_dir=s3", "unknown key run_dir"),
    ],
)
def test_invalid_config_is_refused_before_anything_is_written(tmp_path: Path, override: str, said: str) -> None:
    folder = tmp_path / "run"
    code, output = command.run("run", "smoke", "-o", override, "-o", "execution.executor=ray", "--run-dir", str(folder))
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output
    assert not folder.exists()


def test_thread_limit_below_the_requested_threads_is_refused(tmp_path: Path) -> None:
    arguments = ("run", "smoke", "--run-dir", str(tmp_path / "run"), "-o", "mdnrnn.threads=3", "-o", "vae.threads=2")
    code, output = command.run(*arguments, environment={"OMP_THREAD_LIMIT": "2"})
    assert code == 2, output
    assert "OMP_THREAD_LIMIT=2 allows fewer threads than the 3 of this run" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    code, output = command.run(
        "run", "smoke", "--run-dir", str(tmp_path / "run"), environment={"CUDA_VISIBLE_DEVICES": "0"}
    )
    assert code == 2, output
    assert "CUDA_VISIBLE_DEVICES = '0' gives a GPU, but torch finds no CUDA device here" in output
    assert "unset CUDA_VISIBLE_DEVICES to train on the CPU" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", ["-1", "NoDevFiles"])
def test_training_uses_the_cpu_without_a_gpu(tmp_path: Path, devices: str) -> None:
    preset, folder = command.counting_preset(tmp_path), tmp_path / "run"
    for stage in ("collect", "train-vae"):
        code, output = command.run(
            stage, preset, "--run-dir", str(folder), environment={"CUDA_VISIBLE_DEVICES": devices}
        )
        assert code == 0, output


def test_changed_config_is_refused_with_the_difference(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    before = command.files(folder)
    code, output = command.run("run", "smoke", "-o", "seed=2", "-o", "vae.z_size=16", "--run-dir", str(folder))
    assert code == 2, output
    assert "seed: 1 -> 2" in output
    assert "vae.z_size: 32 -> 16" in output
    assert command.files(folder) == before


def _shard(folder: Path) -> Path:
    record = json.loads((folder / "rollouts" / "records" / "shard-00001.parquet.json").read_text())
    return folder / str(record["key"])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("executor", "damage", "said"),
    [
        ("in-process", _flip, "its bytes have changed"),
        ("in-process", _cut, "were committed"),
        ("in-process", Path.unlink, "is missing"),
        ("ray", _flip, "its bytes have changed"),
    ],
)
def test_damaged_shard_is_named(
    smoke_run: Path, tmp_path: Path, executor: str, damage: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "run"
    for part in ("rollouts", "sessions"):
        shutil.copytree(smoke_run / part, folder / part)
    shutil.copy(smoke_run / "config.yaml", folder)
    shard = _shard(folder)
    damage(shard)
    before = command.files(folder / "rollouts")
    code, output = command.run(
        "run", "smoke", "--run-dir", str(folder), "-o", f"execution.executor={executor}", "-o", "execution.workers=1"
    )
    assert code == 1, output
    assert str(shard) in output
    assert said in output
    assert "Traceback" not in output
    assert command.files(folder / "rollouts") == before


def test_damaged_manifest_is_named(smoke_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    manifest = folder / "vae" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace("train-vae", "train-vea"))
    code, output = command.run("run", "smoke", "--run-dir", str(folder))
    assert code == 1, output
    assert str(manifest) in output
    assert "Traceback" not in output


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    # Root may write into read-only folders, so the test puts a file in the place of the folder.
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "file" / "run"
    code, output = command.run("run", "smoke", "--run-dir", str(folder))
    assert code == 1, output
    assert f"cannot write {folder}" in output
    assert "Traceback" not in output
    assert (tmp_path / "file").read_text() == "not a folder"


def test_folder_without_a_run_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    code, output = command.run("run", "smoke", "--run-dir", str(tmp_path))
    assert code == 2, output
    assert "thesis.tex" in output
    assert command.files(tmp_path).keys() == {"thesis.tex"}


def test_status_of_a_missing_run_is_an_error(tmp_path: Path) -> None:
    code, output = command.run("status", str(tmp_path))
    assert code == 1
    assert "holds no run" in output
