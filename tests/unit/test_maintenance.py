"""Checking, cleaning and copying a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import StorageError
from pipeline.config.presets import dump
from pipeline.storage import maintenance, sealed_json
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.copying import copy_run
from pipeline.storage.layout import CONFIG
from pipeline.storage.lease import Lease
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run, find_garbage, remove_garbage
from pipeline.storage.manifest import commit, read_manifest, read_records, seal
from pipeline.storage.sessions import last_session
from pipeline.storage.store import Store
from tests.made_run import make_config, put_data, put_evaluation
from tests.unit.test_lease import ELSEWHERE, HERE, put

SHARD = "rollouts/records/shard-00001.parquet.json"


@pytest.fixture
def made(store: Store) -> Store:
    """A complete run with a few checkpoints, of one session."""
    with Lease(store, "run", heartbeat_s=60.0, expiry_s=600.0, about={}):
        pass
    config = make_config()
    put_data(store, config)
    put_evaluation(store, 6, {"mean": [1.0, 2.0, 3.0]})
    for step in range(1, 5):
        Checkpoints(store, "evolution", keep=9).save(step, b"state %d" % step)
    store.write(CONFIG, dump(config).encode())
    return store


def keep(number: int) -> Callable[[str], int]:
    return lambda prefix: number


def objects(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


# ---- check


def test_check_of_a_complete_run_counts_every_object_and_no_problem(made: Store) -> None:
    check = check_run(made)
    assert check.problems == []
    assert check.unnamed == []
    records = [key for key in made.list() if "/records/" in key]
    assert check.objects == len(records) > 15
    assert check.manifests == 6
    latents = read_records(made, "latents").values()
    assert check.rows == 2 * sum(record.rows for record in latents) + 3  # frames, latents, test episodes


def _rewritten(store: Store, key: str, change: Callable[[bytes], bytes]) -> None:
    store.write(key, change(store.read(key)))


def _data_key(store: Store) -> str:
    return str(json.loads(store.read(SHARD))["key"])


DAMAGE: dict[str, tuple[Callable[[Store], Any], str]] = {
    "flipped bit": (
        lambda s: _rewritten(s, _data_key(s), lambda data: data[:999] + bytes([data[999] ^ 1]) + data[1000:]),
        "its bytes have changed",
    ),
    "truncated": (lambda s: _rewritten(s, _data_key(s), lambda data: data[:-1]), "were committed"),
    "missing": (lambda s: s.delete(_data_key(s)), "is missing"),
    "record": (lambda s: _rewritten(s, SHARD, lambda data: data.replace(b"rows", b"sows")), "shard-00001.parquet.json"),
    "record missing": (lambda s: s.delete(SHARD), "names shard-00001.parquet, and no record does"),
    "manifest": (
        lambda s: _rewritten(s, "vae/MANIFEST.json", lambda data: data.replace(b"vae", b"vea")),
        "vae/MANIFEST.json does not match its own checksum",
    ),
    "checkpoint": (
        lambda s: _rewritten(s, s.list("evolution/checkpoints/data/")[1], lambda data: b"S" + data[1:]),
        "evolution/checkpoints/data/00000002",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_every_kind_of_damage_is_found_and_named(made: Store, how: str) -> None:
    damage, said = DAMAGE[how]
    damage(made)
    problems = check_run(made).problems
    assert any(said in problem for problem in problems), problems
    assert all("/" in problem for problem in problems)


def test_rows_that_do_not_fit_the_record_are_found(made: Store) -> None:
    data = made.read(_data_key(made))
    commit(made, "other", "shard.parquet", data, rows=1)
    (problem,) = check_run(made).problems
    assert "rows where 1 were committed" in problem


def test_stage_made_from_replaced_data_is_found(made: Store) -> None:
    manifest = read_manifest(made, "latents")
    assert manifest is not None
    made.delete("latents/MANIFEST.json")
    seal(made, "latents", replace(manifest, upstream={"rollouts": "0" * 64}))
    assert any("made from another rollouts/" in problem for problem in check_run(made).problems)


def test_folder_without_a_run_is_refused(store: Store) -> None:
    for action in (check_run, lambda s: find_garbage(s, keep(1)), lambda s: copy_run(s, s)):
        with pytest.raises(StorageError, match="holds no run"):
            action(store)


@pytest.mark.parametrize("key", ["vae/BEGUN.json", "sessions/000002/begun.json", CONFIG])
def test_small_objects_needed_to_resume_are_verified(made: Store, key: str) -> None:
    made.write("vae/BEGUN.json", sealed_json.to_bytes({"config": {}, "upstream": {}}))
    put(made, replace(ELSEWHERE, number=2), count=1)
    assert check_run(made).problems == []
    _rewritten(made, key, lambda data: data[:-9])
    assert any(key in problem for problem in check_run(made).problems)


# ---- gc


def test_sealed_data_without_a_record_is_no_garbage(made: Store) -> None:
    made.delete(SHARD)
    assert find_garbage(made, keep(9)).data == []
    assert check_run(made).problems != []


def test_only_unrecorded_objects_and_old_checkpoints_are_garbage(made: Store) -> None:
    before = objects(made)
    made.write("vae/data/half-0123456789ab.bin", b"never committed")
    made.write("evolution/checkpoints/data/00000009-000001-0123456789ab", b"its record was never written")
    garbage = find_garbage(made, keep(2))
    assert garbage.data == ["evolution/checkpoints/data/00000009-000001-0123456789ab", "vae/data/half-0123456789ab.bin"]
    assert [name for _, name in garbage.checkpoints] == ["00000002-000000", "00000001-000000"]
    assert len(objects(made)) == len(before) + 2, "looking changes nothing"
    remove_garbage(made, garbage)
    left = objects(made)
    assert Checkpoints(made, "evolution").steps() == [3, 4]
    gone = {key.rpartition("/")[2][:8] for key in before.keys() - left.keys()}
    assert gone == {"00000001", "00000002"}
    assert all(before[key] == data for key, data in left.items())
    assert check_run(made).problems == []
    assert len(find_garbage(made, keep(2))) == 0


def test_damaged_checkpoint_does_not_count_as_kept(made: Store) -> None:
    key = made.list("evolution/checkpoints/data/00000004-")[0]
    made.write(key, b"damaged")
    garbage = find_garbage(made, keep(2))
    assert [name for _, name in garbage.checkpoints] == ["00000001-000000"]


def test_no_object_is_garbage_if_a_record_cannot_be_read(made: Store) -> None:
    made.write(SHARD, b"{")
    assert find_garbage(made, keep(9)).data == []


def test_files_of_killed_writers_are_removed(local_store: LocalStore) -> None:
    local_store.write(CONFIG, b"{}")
    (local_store.root / ".tmp" / "tmpabc").write_bytes(b"half an obj")
    garbage = find_garbage(local_store, keep(2))
    assert garbage.leftovers == [".tmp/tmpabc"]
    remove_garbage(local_store, garbage)
    assert list((local_store.root / ".tmp").iterdir()) == []


# ---- copy


@pytest.fixture
def target(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "copy")


def test_copy_is_identical_and_needs_only_an_empty_target(made: Store, target: LocalStore) -> None:
    assert copy_run(made, target) == len(made.list())
    assert objects(target) == objects(made)
    assert copy_run(made, target) == len(made.list()), "again is no error"
    back = LocalStore(target.root.parent / "back")
    copy_run(target, back)
    assert objects(back) == objects(made)


def test_interrupted_copy_is_no_run_and_can_resume(
    made: Store, target: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_THREADS", 1)
    write = LocalStore.write
    keys: list[str] = []

    def stops(self: LocalStore, key: str, data: bytes) -> None:
        if len(keys) == len(made.list()) - 3:
            raise KeyboardInterrupt
        keys.append(key)
        write(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            copy_run(made, target)
    with pytest.raises(StorageError, match="holds no run"):
        check_run(target)
    seals = [key.endswith("MANIFEST.json") for key in keys]
    assert any(seals) and seals == sorted(seals), "a manifest is written after its objects"
    copy_run(made, target)
    assert objects(target) == objects(made)


def test_a_damaged_object_is_not_copied(made: Store, target: LocalStore) -> None:
    made.write(_data_key(made), b"damaged")
    with pytest.raises(StorageError, match="shard-00001"):
        copy_run(made, target)
    assert not target.exists(CONFIG)


def test_copy_onto_itself_is_refused(made: Store) -> None:
    with pytest.raises(StorageError, match="is the run itself"):
        copy_run(made, made)


def test_target_with_other_files_is_left_unchanged(made: Store, target: LocalStore) -> None:
    target.write("thesis.tex", b"ten years")
    with pytest.raises(StorageError, match=r"thesis\.tex"):
        copy_run(made, target)
    target.delete("thesis.tex")
    target.write("rollouts/MANIFEST.json", b"of another run")
    with pytest.raises(StorageError, match="is another than"):
        copy_run(made, target)
    assert target.read("rollouts/MANIFEST.json") == b"of another run"


def test_run_with_an_active_driver_is_not_copied(made: Store, target: LocalStore) -> None:
    put(made, replace(HERE, number=2), count=1)
    with pytest.raises(StorageError, match="is in use by"):
        copy_run(made, target)
    assert target.list() == []


def test_copy_of_a_run_with_a_dead_driver_has_no_driver(made: Store, target: LocalStore) -> None:
    put(made, replace(ELSEWHERE, number=2, expiry_s=0.0), count=1)
    copy_run(made, target)
    session = last_session(target)
    assert session is not None and session.ended == "copied"
