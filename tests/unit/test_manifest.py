"""Records commit objects, manifests seal stages, and both detect changed bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pipeline.base.errors import AlreadyExistsError, DamagedDataError, StorageError
from pipeline.storage.layout import manifest_key
from pipeline.storage.manifest import (
    Manifest,
    commit,
    read_manifest,
    read_records,
    read_verified,
    require_manifest,
    seal,
    supersede,
)
from pipeline.storage.sealed_json import FORMAT_VERSION
from pipeline.storage.store import Store

KEY = manifest_key("stage")


def sealed(store: Store, **changes: Any) -> Manifest:
    """A sealed stage with two objects."""
    commit(store, "stage", "one.bin", b"one", rows=1, episodes=[[0, 1]])
    commit(store, "stage", "two.bin", b"two!", rows=2, episodes=[[1, 2]])
    manifest = Manifest(
        stage="collect",
        config={"seed": 1, "vae.learning_rate": 1e-4, "vae.patience": None},
        grown={"evolve.generations": 10},
        upstream={"rollouts": "abc"},
        records=read_records(store, "stage"),
        info={"seconds": 1.5},
    )
    manifest = replace(manifest, **changes)
    seal(store, "stage", manifest)
    return manifest


# ---- records


def test_committed_object_is_found_by_its_record_and_verified(store: Store) -> None:
    record = commit(store, "stage", "one.bin", b"data", rows=3, episodes=[[4, 5]])
    assert read_records(store, "stage") == {"one.bin": record}
    assert read_verified(store, record) == b"data"
    assert (record.size_bytes, record.rows, record.info) == (4, 3, {"episodes": [[4, 5]]})
    # SHA-256 of b"data", by sha256sum.
    assert record.sha256 == "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"


def test_commit_of_the_same_bytes_again_succeeds(store: Store) -> None:
    first = commit(store, "stage", "one.bin", b"data", rows=3)
    keys = store.list()
    assert commit(store, "stage", "one.bin", b"data", rows=3) == first
    assert store.list() == keys


def test_commit_of_other_bytes_under_a_taken_name_is_an_error(store: Store) -> None:
    first = commit(store, "stage", "one.bin", b"data")
    with pytest.raises(StorageError, match=r"one\.bin"):
        commit(store, "stage", "one.bin", b"other")
    assert read_records(store, "stage")["one.bin"] == first
    assert read_verified(store, first) == b"data"


def test_an_object_without_a_record_does_not_exist(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies between the object and its record has committed nothing."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "create", die)
        with pytest.raises(KeyboardInterrupt):
            commit(store, "stage", "one.bin", b"data")
    assert store.list("stage/data/"), "the object must have been written before its record"
    assert read_records(store, "stage") == {}
    assert read_verified(store, commit(store, "stage", "one.bin", b"data")) == b"data"


def test_records_of_a_stage_are_sorted_by_name(store: Store) -> None:
    for name in ("shard-2", "shard-10", "shard-1"):
        commit(store, "stage", name, name.encode())
    commit(store, "stage2", "other", b"")
    assert list(read_records(store, "stage")) == ["shard-1", "shard-10", "shard-2"]


@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "missing", "empty"])
def test_changed_bytes_are_refused_with_the_file_name(store: Store, damage: str) -> None:
    record = commit(store, "stage", "one.bin", b"some data")
    damaged = {"truncated": b"some dat", "longer": b"some data!", "flipped": b"some dat\x60", "empty": b""}
    store.delete(record.key) if damage == "missing" else store.write(record.key, damaged[damage])
    with pytest.raises(DamagedDataError) as error:
        read_verified(store, record)
    assert store.locate(record.key) in str(error.value)
    assert store.locate("stage/records/one.bin.json") in str(error.value), "says what to remove"
    said = {"flipped": "SHA-256", "missing": "is missing"}.get(damage, "bytes where 9 were committed")
    assert said in str(error.value)


def test_remedy_of_the_message_restores_a_damaged_object(store: Store) -> None:
    record = commit(store, "stage", "one.bin", b"some data")
    store.write(record.key, b"damaged!!")
    store.delete("stage/records/one.bin.json")
    assert read_verified(store, commit(store, "stage", "one.bin", b"some data")) == b"some data"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format_version": 3, "name": "x"}',
        b"\xff\xfe",
        b'{"format_version": 3, "nome": 1}',
    ],
)
def test_invalid_record_is_refused_with_the_file_name(store: Store, content: bytes) -> None:
    store.write("stage/records/one.bin.json", content)
    with pytest.raises(DamagedDataError, match=r"stage/records/one\.bin\.json"):
        read_records(store, "stage")


# ---- manifests


def test_sealed_manifest_is_read_back_unchanged(store: Store) -> None:
    manifest = sealed(store)
    assert read_manifest(store, "stage") == manifest
    assert require_manifest(store, "stage").digest == manifest.digest


def test_a_stage_without_a_manifest_is_not_complete(store: Store) -> None:
    commit(store, "stage", "one.bin", b"one")
    assert read_manifest(store, "stage") is None
    with pytest.raises(StorageError, match=r"stage/MANIFEST\.json is missing"):
        require_manifest(store, "stage")


def test_sealing_twice_is_refused(store: Store) -> None:
    manifest = sealed(store)
    with pytest.raises(AlreadyExistsError):
        seal(store, "stage", replace(manifest, stage="other"))
    assert read_manifest(store, "stage") == manifest


def test_supersede_removes_the_seal_and_keeps_a_copy(store: Store) -> None:
    manifest = sealed(store)
    data = store.read(KEY)
    supersede(store, "stage", manifest)
    assert read_manifest(store, "stage") is None
    (kept,) = store.list("stage/superseded/")
    assert store.read(kept) == data
    assert len(read_records(store, "stage")) == 2
    seal(store, "stage", replace(manifest, grown={"evolve.generations": 20}))
    again = read_manifest(store, "stage")
    assert again is not None
    assert again.grown == {"evolve.generations": 20}


def test_kill_during_supersede_keeps_the_seal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = sealed(store)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete", die)
        with pytest.raises(KeyboardInterrupt):
            supersede(store, "stage", manifest)
    assert read_manifest(store, "stage") == manifest
    supersede(store, "stage", manifest)
    assert read_manifest(store, "stage") is None


def test_another_format_version_is_refused_with_its_number(store: Store) -> None:
    sealed(store)
    content = json.loads(store.read(KEY))
    content["format_version"] = FORMAT_VERSION + 1
    content.pop("checksum")  # a later format may have none
    store.write(KEY, json.dumps(content).encode())
    with pytest.raises(StorageError, match=f"format {FORMAT_VERSION + 1}; this version reads format {FORMAT_VERSION}"):
        read_manifest(store, "stage")


def test_object_without_a_format_is_refused(store: Store) -> None:
    store.write(KEY, b'{"stage": "collect"}')
    with pytest.raises(StorageError, match="has no run format; this version reads format"):
        read_manifest(store, "stage")


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, child in value.items() for leaf in _leaves(child, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, child in enumerate(value) for leaf in _leaves(child, (*path, index))]
    return [path]


def test_change_of_any_value_in_a_manifest_is_detected(store: Store) -> None:
    sealed(store)
    intact = json.loads(store.read(KEY))
    paths = _leaves(intact)
    assert ("records", "one.bin", "info", "episodes", 0, 1) in paths
    assert ("grown", "evolve.generations") in paths
    for path in paths:
        content = json.loads(json.dumps(intact))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        old = parent[path[-1]]
        parent[path[-1]] = "x" if old is None else old + 1 if isinstance(old, int | float) else old + "x"
        store.write(KEY, json.dumps(content).encode())
        with pytest.raises(StorageError, match="MANIFEST"):
            read_manifest(store, "stage")


def test_manifest_may_be_reformatted(store: Store) -> None:
    manifest = sealed(store)
    store.write(KEY, json.dumps(dict(reversed(json.loads(store.read(KEY)).items()))).encode())
    assert read_manifest(store, "stage") == manifest


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'"x"', b'{"format_version": 3}', b"\xff"])
def test_invalid_manifest_is_refused_with_the_file_name(store: Store, content: bytes) -> None:
    store.write(KEY, content)
    with pytest.raises(DamagedDataError, match=r"stage/MANIFEST\.json"):
        read_manifest(store, "stage")


def test_every_truncation_of_a_manifest_is_detected(store: Store) -> None:
    sealed(store)
    data = store.read(KEY)
    for length in range(0, len(data) - 1, 7):
        store.write(KEY, data[:length])
        with pytest.raises(DamagedDataError):
            read_manifest(store, "stage")


def test_digest_covers_everything_that_affects_later_stages(store: Store) -> None:
    manifest = sealed(store)
    one = manifest.records["one.bin"]
    other_bytes = {**manifest.records, "one.bin": replace(one, sha256="0" * 64)}
    differing = [
        replace(manifest, stage="encode"),
        replace(manifest, config={**manifest.config, "seed": 2}),
        replace(manifest, upstream={"rollouts": "abd"}),
        replace(manifest, records=other_bytes),
        replace(manifest, records={"one.bin": one}),
    ]
    assert len({m.digest for m in [manifest, *differing]}) == 1 + len(differing)
    for same in (replace(manifest, info={"seconds": 99}), replace(manifest, grown={"evolve.generations": 11})):
        assert same.digest == manifest.digest


@pytest.mark.parametrize(
    "change", [{"rows": 7}, {"sha256": "0" * 64}, {"key": "elsewhere"}, {"info": {"episodes": []}}]
)
def test_changed_record_is_damaged_data_before_sealing(store: Store, change: dict[str, Any]) -> None:
    commit(store, "stage", "one.bin", b"one", rows=1, episodes=[[0, 1]])
    key = "stage/records/one.bin.json"
    store.write(key, json.dumps({**json.loads(store.read(key)), **change}).encode())
    with pytest.raises(DamagedDataError, match=r"one\.bin\.json"):
        read_records(store, "stage")
