"""The contract of every kind of store, and the guarantees of the local one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import AlreadyExistsError, ConfigError, StorageError
from pipeline.storage.local import LocalStore, temporary_keys
from pipeline.storage.run_dir import open_store
from pipeline.storage.store import Store

# ---- every store


def test_written_object_is_read_back(store: Store) -> None:
    data = bytes(range(256)) * 100
    store.write("a/b/c.bin", data)
    store.write("empty", b"")
    assert store.read("a/b/c.bin") == data
    assert store.read("empty") == b""


def test_reading_a_missing_object_is_a_file_not_found_error(store: Store) -> None:
    store.write("a/b", b"1")
    for key in ("c", "a/c", "a", "a/b/c"):
        with pytest.raises(FileNotFoundError):
            store.read(key)


def test_exists_is_true_only_for_objects(store: Store) -> None:
    store.write("a/b", b"")
    assert store.exists("a/b")
    assert not store.exists("a")
    assert not store.exists("a/b/c")
    assert not store.exists("c")


def test_write_replaces_the_object(store: Store) -> None:
    store.write("k", b"long old value")
    store.write("k", b"new")
    assert store.read("k") == b"new"


def test_create_refuses_an_existing_key_and_keeps_its_object(store: Store) -> None:
    store.create("folder/k", b"first")
    with pytest.raises(AlreadyExistsError, match="k"):
        store.create("folder/k", b"second")
    assert store.read("folder/k") == b"first"


def test_create_refuses_a_key_of_a_written_object(store: Store) -> None:
    store.write("k", b"first")
    with pytest.raises(AlreadyExistsError):
        store.create("k", b"second")
    assert store.read("k") == b"first"


def test_create_accepts_a_deleted_key(store: Store) -> None:
    store.create("k", b"first")
    store.delete("k")
    store.create("k", b"second")
    assert store.read("k") == b"second"


def test_append_writes_the_new_content_over_any_old_one(local_store: LocalStore) -> None:
    store = local_store
    store.append("log/lines", b"one\n", 0)
    assert store.read("log/lines") == b"one\n"
    store.append("log/lines", b"one\ntwo\n", 4)
    assert store.read("log/lines") == b"one\ntwo\n"
    store.write("log/lines", b"shorter\n")
    store.append("log/lines", b"one\ntwo\nthree\n", 8 + 1)
    assert store.read("log/lines") == b"one\ntwo\nthree\n"
    store.delete("log/lines")
    store.append("log/lines", b"new\n", 3)
    assert store.read("log/lines") == b"new\n"


def test_age_of_an_object_counts_from_its_last_write(store: Store) -> None:
    store.write("a/k", b"1")
    assert 0 <= store.age_s("a/k") < 600
    store.delete("a/k")
    for key in ("a/k", "a/k/below", "a", "never/was"):
        with pytest.raises(FileNotFoundError):
            store.age_s(key)


def test_finished_writers_leave_no_temporary_files(store: Store) -> None:
    assert temporary_keys(store) == []
    store.write("k", b"1")
    store.create("k2", b"2")
    with pytest.raises(AlreadyExistsError):
        store.create("k", b"3")
    assert temporary_keys(store) == []
    assert store.list() == ["k", "k2"]


def test_delete_removes_one_object_and_accepts_a_missing_one(store: Store) -> None:
    store.write("a/b", b"1")
    store.write("a/bb", b"2")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    store.delete("a/bb/below-an-object")
    assert store.list() == ["a/bb"]


def test_list_is_sorted_and_a_prefix_may_end_inside_a_name(store: Store) -> None:
    keys = ["b", "a/shard-2", "a/shard-10", "a/other/x", "a.txt", "ab/c"]
    for key in keys:
        store.write(key, b"")
    assert store.list() == sorted(keys)
    assert store.list("a/") == ["a/other/x", "a/shard-10", "a/shard-2"]
    assert store.list("a/shard-1") == ["a/shard-10"]
    assert store.list("a") == ["a.txt", "a/other/x", "a/shard-10", "a/shard-2", "ab/c"]
    assert store.list("a/shard-2") == ["a/shard-2"]
    assert store.list("zzz/") == []
    assert store.list("b/") == []


def test_list_of_an_empty_store_is_empty(store: Store) -> None:
    assert store.list() == []


def test_a_store_survives_pickling(store: Store) -> None:
    store.write("k", b"v")
    other = pickle.loads(pickle.dumps(store))
    other.write("k2", b"v2")
    assert other.read("k") == b"v"
    assert store.read("k2") == b"v2"


def test_locate_names_the_key(store: Store) -> None:
    assert store.locate("a/b.bin").endswith("a/b.bin")


_NAMES = st.sampled_from(["a", "b", "ab", "a.b", "c-1"])
_KEYS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_ACTIONS = st.lists(
    st.tuples(st.sampled_from(["write", "create", "delete"]), _KEYS, st.binary(max_size=3)), max_size=25
)


def test_store_behaves_like_a_dictionary(store: Store) -> None:
    @settings(max_examples=60 if isinstance(store, LocalStore) else 30, deadline=None)
    @given(actions=_ACTIONS)
    def check(actions: list[tuple[str, str, bytes]]) -> None:
        _behaves_as_a_dictionary(store, actions)

    check()


def _behaves_as_a_dictionary(store: Store, actions: list[tuple[str, str, bytes]]) -> None:
    for key in store.list():
        store.delete(key)
    # A folder that a deleted object leaves empty takes its name from no object: only keys below objects are left out,
    # which no key of a run is.
    model: dict[str, bytes] = {}
    for action, key, data in actions:
        key = key.replace("/", "_") + "/x"
        if action == "write":
            store.write(key, data)
            model[key] = data
        elif action == "delete":
            store.delete(key)
            model.pop(key, None)
        elif key in model:
            with pytest.raises(AlreadyExistsError):
                store.create(key, data)
        else:
            store.create(key, data)
            model[key] = data
    assert {key: store.read(key) for key in store.list()} == model
    for prefix in ("a", "a/", "ab", "c-1_"):
        assert store.list(prefix) == sorted(key for key in model if key.startswith(prefix))


# ---- the local store


class _Stop(Exception):
    """Stands for any end of a process during a write."""


def _failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), _Stop()], ids=["disk-full", "interrupted"])
def test_failed_write_keeps_the_old_object(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    local_store.write("a/k", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, _failing(error))
        with pytest.raises(_Stop if isinstance(error, _Stop) else StorageError):
            local_store.write("a/k", b"new")
    assert local_store.read("a/k") == b"old"
    assert local_store.list() == ["a/k"]
    assert [path.name for path in (local_store.root / ".tmp").iterdir()] == []


@pytest.mark.parametrize("function", ["fsync", "link"])
def test_failed_create_leaves_the_key_free(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, function, _failing(OSError(28, "No space left on device")))
        with pytest.raises(StorageError, match="No space left on device"):
            local_store.create("a/k", b"new")
    assert local_store.list() == []
    local_store.create("a/k", b"again")
    assert local_store.read("a/k") == b"again"


@pytest.mark.parametrize("name", ["write", "create"])
def test_bytes_are_synced_before_the_rename(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    named: list[bool] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        named.append((local_store.root / "k").exists())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    getattr(local_store, name)("k", b"data")
    assert named == [False, True], "the file is synced before it is named, its folder after"


@pytest.mark.parametrize("name", ["write", "create"])
def test_temporary_files_of_a_write_are_not_listed(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        seen.append(local_store.list())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    getattr(local_store, name)("k", b"data")
    assert seen == [[], ["k"]]


def test_partial_files_of_a_killed_process_are_never_listed(local_store: LocalStore) -> None:
    local_store.write("k", b"")
    (local_store.root / ".tmp" / "tmpabc").write_bytes(b"half an obj")
    assert local_store.list() == ["k"]
    assert local_store.list("") == ["k"]


def test_file_in_place_of_the_run_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    store = LocalStore(tmp_path / "run")
    for write in (store.write, store.create):
        with pytest.raises(StorageError, match=str(tmp_path / "run")):
            write("a/k", b"data")
    with pytest.raises(FileNotFoundError):
        store.read("a/k")
    assert not store.exists("a/k")
    assert store.list() == []
    store.delete("a/k")
    assert (tmp_path / "run").read_text() == "a file"


def test_file_in_place_of_a_folder_is_a_storage_error_and_is_kept(local_store: LocalStore) -> None:
    local_store.write("a", b"an object")
    for write in (local_store.write, local_store.create):
        with pytest.raises(StorageError, match=r"a/k"):
            write("a/k", b"data")
    assert local_store.list() == ["a"]
    assert local_store.read("a") == b"an object"


def test_unreadable_folder_does_not_count_as_empty(local_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    local_store.write("a/k", b"")
    monkeypatch.setattr(os, "scandir", _failing(PermissionError(13, "Permission denied", "there")))
    with pytest.raises(StorageError, match="there"):
        local_store.list()


def test_relative_run_directory_does_not_follow_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore("run")
    store.write("k", b"v")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.read("k") == b"v"


def test_open_store_accepts_a_path_and_refuses_an_unknown_scheme(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "x"))
    store.write("k", b"v")
    assert (tmp_path / "x" / "k").read_bytes() == b"v"
    with pytest.raises(ConfigError, match="gopher"):
        open_store("gopher://host/run")
