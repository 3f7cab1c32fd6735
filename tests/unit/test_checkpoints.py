"""Checkpoints: the newest intact one is used, and damage is always detected."""

from __future__ import annotations

import logging

import pytest

from pipeline.base.errors import DamagedDataError
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.fence import fenced
from pipeline.storage.store import Store


def store_of_session(store: Store, session: int) -> Store:
    """A session's store whose fence has not seen its successor yet: a pause at the worst moment."""
    return fenced(store, session)


def data_keys(store: Store, step: int) -> list[str]:
    return store.list(f"stage/checkpoints/data/{step:08d}-")


def damage(store: Store, step: int, how: str) -> None:
    (key,) = data_keys(store, step)
    (record,) = store.list(f"stage/checkpoints/records/{step:08d}-")
    if how == "missing":
        store.delete(key)
    elif how == "record":
        store.write(record, store.read(record)[:-5])
    else:
        data = store.read(key)
        store.write(key, data[:-1] if how == "truncated" else bytes([data[0] ^ 1]) + data[1:])


def test_latest_is_none_before_the_first_save(store: Store) -> None:
    assert Checkpoints(store, "stage").latest() is None
    assert Checkpoints(store, "stage").steps() == []


def test_newest_checkpoint_is_found_by_number_not_by_name(store: Store) -> None:
    checkpoints = Checkpoints(store, "stage", keep=5)
    for step in (2, 10, 100):
        checkpoints.save(step, b"state %d" % step)
    assert checkpoints.steps() == [2, 10, 100]
    assert Checkpoints(store, "stage").latest() == (100, b"state 100")


def test_pruning_keeps_only_the_newest_checkpoints(store: Store) -> None:
    checkpoints = Checkpoints(store, "stage", keep=3)
    for step in range(1, 8):
        checkpoints.save(step, b"state %d" % step)
        assert checkpoints.latest() == (step, b"state %d" % step)
    assert checkpoints.steps() == [5, 6, 7]
    assert len(store.list("stage/checkpoints/data/")) == 3
    assert all(len(data_keys(store, step)) == 1 for step in (5, 6, 7))


def test_stages_do_not_see_each_other(store: Store) -> None:
    Checkpoints(store, "a").save(1, b"a")
    Checkpoints(store, "ab").save(2, b"ab")
    assert Checkpoints(store, "a").latest() == (1, b"a")


def test_saving_a_step_again_replaces_it(store: Store) -> None:
    checkpoints = Checkpoints(store, "stage")
    checkpoints.save(1, b"old")
    checkpoints.save(1, b"new")
    assert checkpoints.latest() == (1, b"new")
    assert len(data_keys(store, 1)) == 1, "the old bytes are gone"


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "record"])
def test_damaged_newest_checkpoint_falls_back_with_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    checkpoints = Checkpoints(store, "stage", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, b"state %d" % step)
    damage(store, 3, how)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest() == (2, b"state 2")
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "00000003" in warning.getMessage()
    assert "DAMAGED" in warning.getMessage()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "record"])
def test_damage_of_all_checkpoints_is_an_error(store: Store, how: str) -> None:
    checkpoints = Checkpoints(store, "stage")
    for step in (1, 2):
        checkpoints.save(step, b"state %d" % step)
        damage(store, step, how)
    with pytest.raises(DamagedDataError, match="every checkpoint"):
        checkpoints.latest()


def test_new_checkpoints_are_used_after_a_fallback(store: Store) -> None:
    checkpoints = Checkpoints(store, "stage", keep=2)
    checkpoints.save(1, b"state 1")
    checkpoints.save(3, b"state 3")
    damage(store, 3, "flipped")
    checkpoints.save(2, b"state 2")
    assert checkpoints.latest() == (2, b"state 2")
    checkpoints.save(3, b"state 3")
    assert checkpoints.latest() == (3, b"state 3")


def test_kill_before_the_record_keeps_the_previous_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(store, "stage")
    checkpoints.save(1, b"state 1")
    write = type(store).write
    keys: list[str] = []

    def die_at_the_second(self: Store, key: str, data: bytes) -> None:
        keys.append(key)
        if len(keys) == 2:
            raise KeyboardInterrupt
        write(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "write", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(2, b"state 2")
    assert "/data/" in keys[0], "the bytes come before the record that commits them"
    assert checkpoints.latest() == (1, b"state 1")


def test_kill_during_pruning_leaves_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(store, "stage", keep=2)
    checkpoints.save(1, b"state 1")
    checkpoints.save(2, b"state 2")
    delete = type(store).delete
    keys: list[str] = []

    def die_at_the_second(self: Store, key: str) -> None:
        keys.append(key)
        if len(keys) == 2:
            raise KeyboardInterrupt
        delete(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "delete", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(3, b"state 3")
    # A record whose bytes are gone would be damage; bytes without a record are nothing.
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.latest() == (3, b"state 3")


def test_driver_without_a_lease_does_not_touch_newer_checkpoints(store: Store) -> None:
    lost = store_of_session(store, 1)
    Checkpoints(lost, "stage").save(5, b"by the first")
    successor = Checkpoints(store_of_session(store, 2), "stage", keep=2)
    successor.save(6, b"by the second")
    successor.save(7, b"by the second")
    Checkpoints(lost, "stage", keep=1).save(6, b"late")
    assert successor.latest() == (7, b"by the second")
    assert successor.names() == ["00000006-000001", "00000006-000002", "00000007-000002"]
