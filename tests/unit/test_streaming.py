"""Reading ahead and committing in the background: concurrency, order and limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import DamagedDataError
from pipeline.data import streaming
from pipeline.data.streaming import READ_AHEAD, StorageWait, commit_behind, read_ahead
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import Record, commit

NUM_OBJECTS = 3 * READ_AHEAD


class Watched(LocalStore):
    """A store that blocks reads until they are released, and counts them."""

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self.lock = threading.Condition()
        self.begun: list[str] = []
        self.allowed = 0

    def read(self, key: str) -> bytes:
        with self.lock:
            self.begun.append(key)
            self.lock.notify_all()
            assert self.lock.wait_for(lambda: len(self.begun) <= self.allowed, 600), "nobody let it go"
        return super().read(key)

    def allow(self, number: int) -> None:
        with self.lock:
            self.allowed = number
            self.lock.notify_all()


@pytest.fixture
def records(local_store: LocalStore) -> list[Record]:
    return [commit(local_store, "stage", f"{n:02d}.bin", bytes([n]) * 9) for n in range(NUM_OBJECTS)]


def test_objects_arrive_once_whole_and_in_order(local_store: LocalStore, records: list[Record]) -> None:
    for some in (records, records[:1], []):
        found = list(read_ahead(local_store, some))
        assert [record for record, _ in found] == some
        assert [data for _, data in found] == [bytes([n]) * 9 for n in range(len(some))]


def test_next_objects_are_read_ahead_up_to_the_limit(local_store: LocalStore, records: list[Record]) -> None:
    store = Watched(local_store.root)
    store.allow(NUM_OBJECTS)
    objects = read_ahead(store, records)
    assert store.begun == [], "nothing is read before the first is requested"
    for taken in range(1, NUM_OBJECTS + 1):
        next(objects)
        with store.lock:
            expected = min(taken - 1 + READ_AHEAD, NUM_OBJECTS)
            assert store.lock.wait_for(lambda: len(store.begun) >= expected, 600)  # noqa: B023
            assert len(store.begun) == expected


def test_early_stop_leaves_no_thread_running(local_store: LocalStore, records: list[Record]) -> None:
    before = set(threading.enumerate())
    objects = read_ahead(local_store, records)
    next(objects)
    assert set(threading.enumerate()) > before
    objects.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 600
    while set(threading.enumerate()) > before:
        assert time.monotonic() < deadline, "threads are left"
        time.sleep(0.01)


def test_damaged_object_is_an_error_when_it_is_reached(local_store: LocalStore, records: list[Record]) -> None:
    local_store.write(records[2].key, b"damaged")
    objects = read_ahead(local_store, records)
    assert [next(objects)[0].name, next(objects)[0].name] == ["00.bin", "01.bin"]
    with pytest.raises(DamagedDataError, match=r"02-"):
        next(objects)


def made(store: LocalStore, events: list[str], go: threading.Event | None = None) -> Iterator[tuple[int, Any]]:
    """Make and commit objects and log it; the first commit waits for the start of the third object."""
    for number in range(4):
        events.append(f"make {number}")
        if number == 1 and go is not None:
            go.set()
        yield number, _committing(store, events, number, go)


def _committing(store: LocalStore, events: list[str], number: int, go: threading.Event | None) -> Callable[[], Record]:
    def work() -> Record:
        if number == 0 and go is not None:
            assert go.wait(600), "the next object was not made while this one was being committed"
        record = commit(store, "stage", f"{number}.bin", bytes([number]))
        events.append(f"committed {number}")
        return record

    return work


def test_object_is_committed_while_the_next_is_made(local_store: LocalStore) -> None:
    events: list[str] = []
    results = list(commit_behind(made(local_store, events, threading.Event())))
    assert [number for number, _ in results] == [0, 1, 2, 3]
    assert [local_store.read(record.key) for _, record in results] == [bytes([n]) for n in range(4)]
    assert events.index("make 1") < events.index("committed 0")


def test_at_most_one_object_waits_for_its_commit(local_store: LocalStore) -> None:
    events: list[str] = []
    list(commit_behind(made(local_store, events)))
    for number in range(2, 4):
        assert events.index(f"committed {number - 2}") < events.index(f"make {number}")


def test_failed_commit_is_an_error_after_the_earlier_commits(local_store: LocalStore) -> None:
    def fails() -> Record:
        raise DamagedDataError("the bucket is gone")

    results = commit_behind([(0, _committing(local_store, [], 0, None)), (1, fails), (2, fails)])
    assert next(results)[0] == 0
    with pytest.raises(DamagedDataError, match="the bucket is gone"):
        list(results)


def test_objects_made_before_a_failure_are_committed(local_store: LocalStore) -> None:
    def broken() -> Iterator[tuple[int, Any]]:
        yield 0, _committing(local_store, [], 0, None)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(commit_behind(broken()))
    assert local_store.exists("stage/records/0.bin.json")


def test_waiting_time_is_counted(
    local_store: LocalStore, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that moves only while the awaited object is read."""
    now, asked = 0.0, threading.Event()
    read = LocalStore.read

    def clock() -> float:
        at = now
        asked.set()
        return at

    def read_for_a_minute(store: LocalStore, key: str) -> bytes:
        nonlocal now
        if key == records[0].key:
            assert asked.wait(600)
            now = 60.0
        return read(store, key)

    monkeypatch.setattr(LocalStore, "read", read_for_a_minute)
    monkeypatch.setattr(streaming, "time", SimpleNamespace(monotonic=clock))
    waiting = StorageWait()
    next(read_ahead(local_store, records, waiting))
    assert waiting.seconds == 60.0
