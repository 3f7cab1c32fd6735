"""Runs that refer to stages of other runs: equal bits, and complete checks and copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError, StorageError
from pipeline.cli.main import main
from pipeline.cli.run import run_config
from pipeline.config.schema import RunConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages.table import STAGES, stages_of
from pipeline.storage import references
from pipeline.storage.copying import copy_run
from pipeline.storage.layout import REFERRERS, own_keys, record_key
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_lines, check_run, find_garbage, garbage_lines, remove_garbage
from pipeline.storage.manifest import read_manifest, read_records, require_manifest
from pipeline.storage.run_dir import absolute_run, open_store, relative_run
from pipeline.storage.store import Store
from tests.counting import counting_config
from tests.e2e.command import outcome

TRAINING = ("rollouts", "vae", "latents", "mdnrnn")


def config_of(**keys: Any) -> RunConfig:
    return counting_config({"execution.executor": "in-process", **keys})


OTHER_EVOLUTION = config_of(**{"evolve.sigma": 0.3})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "made"
    run_config(config_of(), str(folder), "run")
    return folder


@pytest.fixture
def made(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "made")


def data_of(folder: Path, *prefixes: str) -> list[Path]:
    return [path for prefix in prefixes for path in (folder / prefix).glob("*/*") if path.parent.name == "data"]


def test_equal_stages_are_reused_and_others_computed_with_the_same_bits(made: Path, tmp_path: Path) -> None:
    referring, straight = tmp_path / "referring", tmp_path / "straight"
    run_config(OTHER_EVOLUTION, str(referring), "run", [str(made)])
    run_config(OTHER_EVOLUTION, str(straight), "run")
    assert outcome(referring) == outcome(straight)
    assert not data_of(referring, *TRAINING), "nothing is copied"
    assert data_of(referring, "evolution", "evaluation")
    for prefix in TRAINING:
        reference, source = (require_manifest(LocalStore(folder), prefix) for folder in (referring, made))
        assert reference.digest == source.digest
        assert reference.info["reused_from"] == "../made"
        assert reference.info["seconds"] == source.info["seconds"]
    page = (referring / "report" / "index.html").read_text()
    assert "There is no training curve" not in page, "the metrics are there"


def test_run_of_the_same_config_only_writes_the_report(made: Path, tmp_path: Path) -> None:
    referring = tmp_path / "referring"
    run_config(config_of(), str(referring), "run", [str(made)])
    assert outcome(referring) == outcome(made)
    assert not data_of(referring, *TRAINING, "evolution", "evaluation")
    assert (referring / "report" / "index.html").exists()


def test_single_stage_refers_to_its_missing_inputs(made: Path, tmp_path: Path) -> None:
    referring = tmp_path / "referring"
    assert run_config(OTHER_EVOLUTION, str(referring), "evolve", [str(made)]) == 0
    assert [stage.prefix for stage in STAGES if read_manifest(LocalStore(referring), stage.prefix)] == [
        *TRAINING, "evolution"
    ]  # fmt: skip


def test_missing_input_without_an_equal_stage_is_an_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="world-models collect"):
        run_config(config_of(seed=2), str(tmp_path / "referring"), "evolve", [str(made)])


def test_stage_of_another_cpu_is_not_reused_in_exact_runs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.cpu_kind", lambda: "another")
    with pytest.raises(StorageError, match="not complete"):
        run_config(config_of(), str(tmp_path / "exact"), "train-vae", [str(made)])
    inexact = config_of(**{"execution.exact": False})
    run_config(inexact, str(tmp_path / "inexact"), "train-vae", [str(made)])
    assert not data_of(tmp_path / "inexact", *TRAINING)


def test_reference_to_a_reference_leads_to_the_run_with_the_objects(made: Path, tmp_path: Path) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    run_config(OTHER_EVOLUTION, str(second), "evolve", [str(made)])
    run_config(OTHER_EVOLUTION, str(third), "evolve", [str(second)])
    shutil.rmtree(second / "rollouts")
    found = read_records(LocalStore(third), "rollouts")
    assert {record.run for record in found.values()} == {"../made"}
    assert {record.run for record in read_records(LocalStore(third), "evolution").values()} == {"../second"}


def test_interrupted_reference_is_completed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: InProcessExecutor
) -> None:
    store, config = LocalStore(tmp_path / "referring"), config_of()

    def fail(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="full"):
        patched.setattr(references, "seal", fail)
        run_stages(config, store, executor, stages_of(config)[:1], [LocalStore(made)])
    assert read_records(store, "rollouts") and read_manifest(store, "rollouts") is None
    run_stages(config, store, executor, stages_of(config)[:1], [LocalStore(made)])
    assert read_manifest(store, "rollouts") is not None


def test_referenced_stage_is_extended_from_its_checkpoint(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    referring, straight = tmp_path / "referring", tmp_path / "straight"
    run_config(config_of(), str(referring), "evolve", [str(made)])
    longer = config_of(**{"evolve.generations": config_of().evolve.generations + 1})
    with caplog.at_level("INFO"):
        run_config(longer, str(referring), "evolve")
    assert f"evolve: resuming after generation {config_of().evolve.generations}" in caplog.text
    run_config(longer, str(straight), "evolve", [str(made)])
    grown, expected = (require_manifest(LocalStore(folder), "evolution") for folder in (referring, straight))
    name = max(name for name in grown.records if name.startswith("controllers"))
    assert grown.records[name].sha256 == expected.records[name].sha256


def test_check_reads_the_referenced_run(made: Path, tmp_path: Path) -> None:
    referring = tmp_path / "referring"
    run_config(OTHER_EVOLUTION, str(referring), "evolve", [str(made)])
    store = LocalStore(referring)
    found = check_run(store)
    assert found.problems == []
    assert found.elsewhere == {str(made): sum(len(read_records(store, prefix)) for prefix in TRAINING)}
    assert f"lie in {made}" in "\n".join(check_lines(found, store))
    assert check_run(LocalStore(made)).referrers == [str(referring)]
    assert str(referring) in "\n".join(check_lines(check_run(LocalStore(made)), LocalStore(made)))
    made.rename(tmp_path / "moved")
    problems = check_run(store).problems
    assert problems and all(f"put the run {made}, to which this one refers, back" in problem for problem in problems)


def test_run_with_a_missing_source_is_not_reused(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    run_config(config_of(), str(second), "train-vae", [str(made)])
    shutil.rmtree(made)
    with caplog.at_level("WARNING"):
        run_config(config_of(), str(third), "collect", [str(second)])
    assert f"{second} refers to {made}, which is gone" in caplog.text
    assert data_of(third, "rollouts") and not made.exists(), "made again, and nothing is left where the run was"


def test_run_is_found_through_a_symbolic_link(made: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(tmp_path)
    run_config(config_of(), str(link / "referring"), "collect", [str(made)])
    assert check_run(LocalStore(tmp_path / "referring")).problems == []
    assert check_run(LocalStore(link / "referring")).problems == []
    with pytest.raises(ConfigError, match="is the run itself"):
        run_config(config_of(), str(link / "made"), "collect", [str(made)])


def test_runs_moved_together_still_find_each_other(made: Path, tmp_path: Path) -> None:
    run_config(OTHER_EVOLUTION, str(tmp_path / "referring"), "evolve", [str(made)])
    (tmp_path / "new").mkdir()
    for name in ("made", "referring"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    assert check_run(LocalStore(tmp_path / "new" / "referring")).problems == []


def test_referenced_objects_are_no_garbage(made: Path, tmp_path: Path) -> None:
    referring = tmp_path / "referring"
    run_config(OTHER_EVOLUTION, str(referring), "train-vae", [str(made)])
    store = LocalStore(made)
    # As if the stage was removed to compute it again.
    for name in read_records(store, "rollouts"):
        store.delete(record_key("rollouts", name))
    store.delete("rollouts/MANIFEST.json")
    assert not [key for key in find_garbage(store, lambda _: 9).data if key.startswith("rollouts/")]
    moved = referring.rename(tmp_path / "moved")
    unknown = find_garbage(store, lambda _: 9)
    assert (unknown.data, unknown.notes, unknown.unknown) == ([], [], [str(referring)]), "it may come back"
    assert f"because {referring} refers to this run" in "\n".join(garbage_lines(unknown, store, deleted=False))
    moved.rename(referring)
    shutil.rmtree(referring / "rollouts")
    shutil.rmtree(referring / "vae")
    garbage = find_garbage(store, lambda _: 9)
    assert [key for key in garbage.data if key.startswith("rollouts/")], "nobody refers to it any more"
    assert garbage.notes == own_keys(store, REFERRERS)
    remove_garbage(store, garbage)
    assert own_keys(store, REFERRERS) == []


def test_copy_includes_referenced_objects(made: Path, tmp_path: Path, store: Store) -> None:
    referring = tmp_path / "referring"
    run_config(OTHER_EVOLUTION, str(referring), "evolve", [str(made)])
    before = {p: require_manifest(LocalStore(referring), p).digest for p in (*TRAINING, "evolution")}
    count = copy_run(LocalStore(referring), store)
    assert copy_run(LocalStore(referring), store) == count, "again is no error"
    shutil.rmtree(made)
    shutil.rmtree(referring)
    found = check_run(store)
    assert (found.problems, found.elsewhere) == ([], {})
    assert {prefix: require_manifest(store, prefix).digest for prefix in before} == before
    assert not own_keys(store, REFERRERS)


def test_runs_in_a_bucket_refer_to_each_other_and_to_folders(made: Path, s3_url: str) -> None:
    first, second = f"{s3_url}/first", f"{s3_url}/second"
    run_config(config_of(), first, "train-vae", [str(made)])
    run_config(config_of(), second, "train-vae", [first])
    assert {record.run for record in read_records(open_store(second), "vae").values()} == {str(made)}
    copy_run(open_store(first), open_store(f"{s3_url}/third"))
    run_config(config_of(), f"{s3_url}/fourth", "train-vae", [f"{s3_url}/third"])
    assert {record.run for record in read_records(open_store(f"{s3_url}/fourth"), "vae").values()} == {"../third"}
    assert check_run(open_store(f"{s3_url}/fourth")).problems == []


@pytest.mark.parametrize(
    ("run", "other", "recorded"),
    [
        ("/data/a", "/data/b", "../b"),
        ("/data/study/arm/1", "/data/study/shared/x", "../../shared/x"),
        ("s3://bucket/a/b", "s3://bucket/c", "../../c"),
        ("s3://bucket", "s3://bucket/c", "c"),
        ("s3://bucket/a", "s3://bucket", ".."),
        ("s3://bucket/a", "s3://other/a", "s3://other/a"),
        ("s3://bucket/a", "/data/b", "/data/b"),
        ("/data/a", "s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_locations_are_relative_within_one_place(run: str, other: str, recorded: str) -> None:
    assert relative_run(run, other) == recorded
    assert absolute_run(run, recorded) == other


def test_other_runs_are_checked_before_anything_is_written(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    assert main(["run", "smoke", "--run-dir", str(new), "--reuse", str(tmp_path / "none")]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main(["run", "smoke", "--run-dir", str(made), "--reuse", str(made)]) == ConfigError.exit_code
    assert "is the run itself" in capsys.readouterr().err
    assert not new.exists()
