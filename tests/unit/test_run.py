"""The flow of a run: skipped stages, data that must not mix, and refusals before the start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import machine
from pipeline.base.errors import ConfigError, StorageError
from pipeline.data.artifacts import shard_name
from pipeline.data.shards import episodes_to_bytes, read_episodes
from pipeline.execution.in_process import InProcessExecutor
from pipeline.planning import preflight
from pipeline.run import run_stages
from pipeline.stages.table import STAGES, Stage, stages_of
from pipeline.storage.layout import manifest_key
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import commit, read_records
from pipeline.training.hardware import check_devices, resolve_device
from tests.counting import counting_config

SMALL = {
    "evolve.population_size": 3, "evolve.episodes": 1, "evolve.generations": 1, "evolve.validate_every": 1,
    "evolve.validation_episodes": 1, "evaluate.episodes": 1, "evaluate.film_seconds": 0.1,
}  # fmt: skip


def _other_bytes_in_the_first_shard(store: LocalStore) -> None:
    """Replace the shard, as if it had been lost and made again on another machine."""
    record = read_records(store, "rollouts")[shard_name(0)]
    episodes = list(read_episodes(store, record))
    episodes[0].rewards.setflags(write=True)
    episodes[0].rewards[0] += 1
    store.delete(f"rollouts/records/{record.name}.json")
    store.delete(manifest_key("rollouts"))
    commit(store, "rollouts", record.name, episodes_to_bytes(episodes), rows=record.rows, **record.info)


@pytest.mark.parametrize("is_sealed", [True, False])
def test_stage_does_not_resume_with_other_data(
    local_store: LocalStore, executor: InProcessExecutor, is_sealed: bool
) -> None:
    config = counting_config(SMALL)
    run_stages(config, local_store, executor, STAGES[:2])
    if not is_sealed:
        local_store.delete(manifest_key("vae"))
    _other_bytes_in_the_first_shard(local_store)
    run_stages(config, local_store, executor, STAGES[:1])
    before = {key: local_store.read(key) for key in local_store.list("vae/")}
    with pytest.raises(StorageError, match=r"train-vae: the output in .*vae was made from a different rollouts/ than"):
        run_stages(config, local_store, executor, STAGES[:2])
    assert {key: local_store.read(key) for key in local_store.list("vae/")} == before


def test_report_of_an_outdated_evaluation_is_refused(local_store: LocalStore, executor: InProcessExecutor) -> None:
    run_stages(counting_config(SMALL), local_store, executor, STAGES[:6])
    grown = counting_config({**SMALL, "evolve.generations": 2})
    assert preflight.complete_stages(grown, local_store) == stages_of(grown)[:4]
    run_stages(grown, local_store, executor, [STAGES[4]])
    assert preflight.complete_stages(grown, local_store) == stages_of(grown)[:5]
    with pytest.raises(
        StorageError, match=r"earlier evolution/ than the current one: run `world-models evaluate` first"
    ):
        run_stages(grown, local_store, executor, [STAGES[6]])
    run_stages(grown, local_store, executor, STAGES)
    assert (Path(local_store.root) / "report" / "index.html").is_file()


@pytest.mark.parametrize("section", ["vae", "mdnrnn"])
def test_missing_gpu_is_refused(executor: InProcessExecutor, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}.device = 'cuda', but there is no GPU here"):
        check_devices(counting_config({f"{section}.device": "cuda"}), executor, [section])


def test_auto_logs_that_it_selects_the_cpu(executor: InProcessExecutor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        check_devices(counting_config(), executor, STAGES[3].keys)
        check_devices(counting_config({"mdnrnn.device": "cuda"}), executor, STAGES[5].keys)
    assert caplog.messages == ["mdnrnn.device = 'auto': no GPU is available; using the CPU"]


def test_gpu_unusable_by_torch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert resolve_device("auto").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES = '0' gives a GPU, but torch finds no CUDA device"):
        resolve_device("auto")


def test_plan_counts_only_what_is_not_complete() -> None:
    def lines(complete: Sequence[Stage]) -> dict[str, list[str]]:
        text = preflight.describe(counting_config({"execution.workers": 1}), "runs/x", complete=complete)
        return {name: words for name, *words in (re.split("  +", line.strip()) for line in text.splitlines()[2:])}

    whole, rest, nothing = lines([]), lines(STAGES[:6]), lines(STAGES)
    assert whole["all"][0] != whole["report"][0]
    assert rest["evolve"] == ["complete", whole["evolve"][2]] and rest["report"] == whole["report"]
    assert rest["the rest"][:2] == whole["report"][:2]
    assert {words[0] for words in nothing.values()} == {"complete"} and nothing.keys() == whole.keys() - {"all"}


def test_batch_memory_is_limited_by_the_amount_of_data() -> None:
    def needs(**overrides: Any) -> dict[str, float]:
        config = counting_config({key.replace("__", "."): value for key, value in overrides.items()})
        return {row.stage: row.memory_bytes for row in preflight.estimate(config)}

    assert needs(mdnrnn__batch_size=100_000)["train-mdnrnn"] == needs(mdnrnn__batch_size=1000)["train-mdnrnn"]
    assert needs(mdnrnn__batch_size=8)["train-mdnrnn"] > needs(mdnrnn__batch_size=4)["train-mdnrnn"]
    assert needs(vae__batch_size=100_000)["train-vae"] == needs(vae__batch_size=1000)["train-vae"]


@pytest.mark.parametrize(
    ("key", "value"), [("mdnrnn.batch_size", 10**7), ("vae.batch_size", 10**7), ("collect.episodes_per_shard", 10**7)]
)
def test_missing_memory_is_refused_with_the_responsible_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: int
) -> None:
    monkeypatch.setattr(preflight, "memory_bytes", lambda: 8 * 2**30)
    monkeypatch.setattr(preflight, "_check_disk", lambda *_: None)
    config = counting_config({"collect.episodes": 10**7, key: value})
    with pytest.raises(ConfigError, match=rf"lower {key}, which takes .* of it"):
        preflight.check(config, str(tmp_path))


def test_memory_estimate_grows_with_the_controller() -> None:
    def disk(hidden_size: int) -> float:
        plan = preflight.estimate(counting_config({"controller.hidden_size": hidden_size}))
        return next(row.disk_bytes for row in plan if row.stage == "evolve")

    # Linear: 2 actions x (z + h + 1). With a layer of 64: 64 x (z + h + 1) + 2 x 65. The covariance is its square.
    config = counting_config()
    features = config.vae.z_size + config.mdnrnn.hidden_size + 1
    assert disk(64) / disk(0) == pytest.approx(((64 * features + 130) / (2 * features)) ** 2)


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1)])
def test_cpu_quota_of_a_container_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, expected: int | None
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    unlimited = machine.num_cores()
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert machine.num_cores() == (expected or unlimited)


def test_memory_limit_of_a_container_limits_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    unlimited = machine.memory_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_bytes() == unlimited
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert machine.memory_bytes() == 2**30


def test_run_directory_deleted_with_its_job_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = counting_config()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://package.zip"}}')
    with pytest.raises(ConfigError, match=r"--run-dir runs/x: on a cluster this must be s3://bucket/prefix"):
        preflight.check(config, "runs/x")
    preflight.check(config, str(tmp_path))
    preflight.check(config, "s3://bucket/x")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {}}')  # code of the image's own
    preflight.check(config, "runs/x")
