"""Unusual folders: without hard links or file modes, on a full disk, or with an invalid name."""

from __future__ import annotations

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from pipeline.base.errors import AlreadyExistsError, ConfigError, StorageError
from pipeline.storage import local as local
from pipeline.storage.local import LocalStore, temporary_keys
from pipeline.storage.run_dir import as_run_dir, open_store


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.__getitem__)
def without_links(
    request: pytest.FixtureRequest, local_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> LocalStore:
    """A folder without hard links, like exFAT, Colab's Drive and some network folders."""
    monkeypatch.setattr(os, "link", failing(request.param))
    return local_store


def test_key_is_created_once_without_hard_links(without_links: LocalStore) -> None:
    without_links.create("a/k", b"first")
    with pytest.raises(AlreadyExistsError, match="a/k"):
        without_links.create("a/k", b"second")
    assert without_links.read("a/k") == b"first"
    without_links.delete("a/k")
    without_links.create("a/k", b"third")
    assert without_links.read("a/k") == b"third"
    assert temporary_keys(without_links) == []


def test_exactly_one_concurrent_create_succeeds_without_hard_links(without_links: LocalStore) -> None:
    def create(number: int) -> int | None:
        try:
            without_links.create("k", str(number).encode())
        except AlreadyExistsError:
            return None
        return number

    for _ in range(5):
        with ThreadPoolExecutor(16) as threads:
            winners = [number for number in threads.map(create, range(16)) if number is not None]
        assert [without_links.read("k")] == [str(number).encode() for number in winners]
        without_links.delete("k")


def leave_a_dead_claim(store: LocalStore, key: str) -> None:
    """Leave the claim of a process that was killed while it held it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", failing(errno.EIO))
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        with pytest.raises(StorageError):
            store.create(key, b"never")
    assert any(name.startswith(".tmp/claim-") for name in temporary_keys(store))


def test_claim_of_a_dead_process_expires(without_links: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CLAIM_S", 0.2)
    leave_a_dead_claim(without_links, "k")
    without_links.create("k", b"mine")
    assert without_links.read("k") == b"mine"


def test_exactly_one_waiting_process_takes_the_claim_of_a_dead_one(
    without_links: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_CLAIM_S", 0.5)
    leave_a_dead_claim(without_links, "k")
    together = Barrier(8)

    def create(number: int) -> int | None:
        together.wait()
        try:
            without_links.create("k", str(number).encode())
        except AlreadyExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        winners = [number for number in threads.map(create, range(8)) if number is not None]
    assert [without_links.read("k")] == [str(number).encode() for number in winners]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.__getitem__)
def test_disk_without_file_modes_can_be_written(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Path, "chmod", failing(number))
    local_store.write("k", b"data")
    assert local_store.read("k") == b"data"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free the disk"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mounted read-only"),
        (errno.EACCES, "no write permission"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ESTALE, "remount the network folder"),
        (errno.EBUSY, "fix the cause"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_remedy_depends_on_the_error(
    local_store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", failing(number))
    with pytest.raises(StorageError, match="Completed work is saved") as caught:
        local_store.write("k", b"data")
    assert advice in str(caught.value)
    assert caught.value.for_readers.endswith(", then try again.") and "saved" not in caught.value.for_readers
    assert os.strerror(number) in str(caught.value)


# ---- locations as users write them


@pytest.mark.parametrize(
    "text", ["runs/x", "/data/x", "s3://bucket/x", "gopher://host/x", "./~/x", "./s3:/x", "a:b", "x~"]
)
def test_location_is_used_as_written(text: str) -> None:
    assert as_run_dir(text) == text


def test_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert as_run_dir("~/x") == "/home/somebody/x"
    with pytest.raises(ConfigError, match="no such home directory"):
        as_run_dir("~nobody-of-this-name/x")


@pytest.mark.parametrize("text", ["s3:/bucket/x", "s3:bucket/x", "S3:/bucket/x"])
def test_misspelt_bucket_url_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"looks like a URL but is not valid\. Did you mean s3://bucket/x\?"):
        as_run_dir(text)


def test_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"notes\.txt is not a folder: choose a folder"):
        open_store(str(tmp_path / "notes.txt"))
