"""The same config and seed give the same bits, in-process and on Ray, with any number of workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.executor import RayExecutor
from pipeline.base.errors import SessionEnded
from pipeline.config.schema import RunConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.models.precision import native_precisions
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest, read_verified, require_manifest
from tests.cluster.faulty import DREAMT_ID, ask_for_a_death_in_a_dream, faults_folder

BEFORE_EVOLVE, EVOLVE_AND_EVALUATE = STAGES[:4], STAGES[4:6]


def config(workers: int = 1, lanes: int = 3, engine: str = "openvino", precision: str = "auto") -> RunConfig:
    return RunConfig.model_validate(
        {
            "env": {"id": "tests.counting:CountingEnv", "max_episode_steps": 16},
            "collect": {"policy": "white", "episodes": 4, "episode_steps": 12, "episodes_per_shard": 2},
            "vae": {"epochs": 1, "batch_size": 16, "validation_fraction": 0.3, "z_size": 8},
            "mdnrnn": {"window": 8, "epochs": 1, "batch_size": 4, "hidden_size": 16, "validation_fraction": 0.3},
            "rollouts": {"micro_batch": 4, "lanes": lanes, "engine": engine, "precision": precision},
            "evolve": {
                "population_size": 5, "episodes": 2, "replayed_tracks": 1, "generations": 3, "validate_every": 2,
                "validation_episodes": 3,
            },
            "evaluate": {"episodes": 4, "film_seconds": 0.2},
            "execution": {"workers": workers},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose evolution has yet to begin."""
    folder = tmp_path_factory.mktemp("trained")
    run_stages(config(), LocalStore(folder), InProcessExecutor(), BEFORE_EVOLVE)
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """The reproducible results: the history without its times, and the bytes of everything else."""
    store = LocalStore(folder)
    found: dict[str, Any] = {}
    for prefix in ("evolution", "evaluation"):
        manifest = read_manifest(store, prefix)
        assert manifest is not None
        for name, record in manifest.records.items():
            data = read_verified(store, record)
            if name.startswith("history"):
                found[name] = [
                    {key: value for key, value in row.items() if key not in ("seconds", "time")}
                    for row in json.loads(data)
                ]
            else:
                found[name] = data
    return found


@pytest.fixture(scope="module")
def reference(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of one process with three lanes."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    shutil.copytree(trained, folder)
    run_stages(config(), LocalStore(folder), InProcessExecutor(), EVOLVE_AND_EVALUATE)
    return outcome(folder)


def test_reference_covers_the_compared_cases(reference: dict[str, Any]) -> None:
    history = next(value for name, value in reference.items() if name.startswith("history"))
    assert len(history) == 3
    assert all(row["fitness_sd"] > 0 for row in history), "candidates differ"
    assert [row["validation_mean"] is not None for row in history] == [False, True, False]
    episodes = next(value for name, value in reference.items() if name.startswith("episodes"))
    steps = pq.read_table(pa.BufferReader(episodes))["steps"].to_pylist()
    assert len(set(steps)) > 1, "episodes are of unequal length"


def test_any_number_of_lanes_gives_the_same_bits(trained: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    for lanes in (1, 8):
        folder = tmp_path / str(lanes)
        shutil.copytree(trained, folder)
        run_stages(config(lanes=lanes), LocalStore(folder), InProcessExecutor(), EVOLVE_AND_EVALUATE)
        assert outcome(folder) == reference


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("workers", [1, 3])
def test_ray_with_any_number_of_workers_gives_the_same_bits(
    trained: Path, reference: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    run_stages(config(workers), LocalStore(folder), RayExecutor(config(workers).execution), EVOLVE_AND_EVALUATE)
    assert outcome(folder) == reference


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("engine", "precision"),
    # `auto` resolves to OpenVINO's last precision. torch emulates bfloat16 on a CPU without it, which is slow.
    [
        ("torch", "float32"),
        *([("torch", "bfloat16")] if "bfloat16" in native_precisions() else []),
        *(("openvino", precision) for precision in native_precisions()[:-1]),
    ],
)
def test_every_engine_and_precision_gives_the_same_bits_on_ray(
    trained: Path, tmp_path: Path, engine: str, precision: str, reference: dict[str, Any]
) -> None:
    """Frames and V do not depend on engine and precision; all later stages do."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        for stage in STAGES[:2]:
            shutil.copytree(trained / stage.prefix, folder / stage.prefix)
    run_stages(config(2, 3, engine, precision), LocalStore(here), InProcessExecutor(), STAGES[:6])
    chosen = config(1, 8, engine, precision)
    limited = chosen.model_copy(update={"evolve": chosen.evolve.model_copy(update={"max_seconds": 1e-6})})
    with pytest.raises(SessionEnded, match="after generation 1 of 3"):
        run_stages(limited, LocalStore(there), RayExecutor(limited.execution), STAGES[:6])
    run_stages(chosen, LocalStore(there), RayExecutor(chosen.execution), STAGES[:6])
    assert outcome(there) == outcome(here)
    assert outcome(here) != reference, "engine and precision change the bits"


@pytest.mark.usefixtures("local_ray")
def test_collect_and_training_give_the_same_bits_on_ray(trained: Path, tmp_path: Path) -> None:
    run_stages(config(2), LocalStore(tmp_path), RayExecutor(config(2).execution), BEFORE_EVOLVE)
    for stage in BEFORE_EVOLVE:
        here, there = (read_manifest(LocalStore(folder), stage.prefix) for folder in (tmp_path, trained))
        assert here is not None and there is not None
        assert here.digest == there.digest, stage.name


def dreaming(workers: int = 1, lanes: int = 8) -> RunConfig:
    """A run whose candidates are scored in dreams, at sizes that fill the CPU's vector registers."""
    keys = config(workers).model_dump()
    keys["vae"]["z_size"] = 32
    keys["mdnrnn"].update(hidden_size=64, done_weight=1.0, reward_weight=1.0)
    keys["evolve"].update(environment="dream", validation_dreams=6, replayed_tracks=0)
    keys["dream"].update(reward="model", max_steps=20, micro_batch=8, lanes=lanes)
    return RunConfig.model_validate(keys)


@pytest.mark.usefixtures("local_ray")
def test_dreams_give_the_same_bits_on_ray_in_two_sessions(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run_stages(dreaming(), LocalStore(here), InProcessExecutor(), STAGES[:6])
    for stage in BEFORE_EVOLVE:
        shutil.copytree(here / stage.prefix, there / stage.prefix)
    chosen = dreaming(2, 20)
    limited = chosen.model_copy(update={"evolve": chosen.evolve.model_copy(update={"max_seconds": 1e-6})})
    with pytest.raises(SessionEnded, match="after generation 1 of 3"):
        run_stages(limited, LocalStore(there), RayExecutor(limited.execution), EVOLVE_AND_EVALUATE)
    run_stages(chosen, LocalStore(there), RayExecutor(chosen.execution), EVOLVE_AND_EVALUATE)
    assert outcome(there) == outcome(here)
    history = next(value for name, value in outcome(here).items() if name.startswith("history"))
    assert [row["dream_mean"] is not None for row in history] == [False, True, False]
    assert all(row["fitness_sd"] > 0 for row in history), "candidates differ"


@pytest.mark.usefixtures("local_ray")
def test_worker_killed_in_a_dream_changes_no_result(tmp_path: Path) -> None:
    def mortal(workers: int) -> RunConfig:
        keys = dreaming(workers).model_dump()
        keys["env"]["id"] = DREAMT_ID
        return RunConfig.model_validate(keys)

    here, there = tmp_path / "here", tmp_path / "there"
    run_stages(mortal(1), LocalStore(here), InProcessExecutor(), STAGES[:6])
    for stage in BEFORE_EVOLVE:
        shutil.copytree(here / stage.prefix, there / stage.prefix)
    faults_folder().mkdir()
    try:
        asked = ask_for_a_death_in_a_dream()
        run_stages(mortal(2), LocalStore(there), RayExecutor(mortal(2).execution), EVOLVE_AND_EVALUATE)
        assert not asked.exists(), "a worker died"
    finally:
        shutil.rmtree(faults_folder())
    assert require_manifest(LocalStore(there), "evolution").info["retries"] > 0
    assert outcome(there) == outcome(here)
