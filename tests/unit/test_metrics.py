"""Metrics: the same points in both views, each once, after any sequence of sessions."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from pipeline.storage.metrics import MetricsLog
from pipeline.storage.store import Store


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """A checksum in the masked form of TFRecord files."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(data: bytes) -> Iterator[Event]:
    """The events of a TensorBoard file, every checksum verified."""
    at = 0
    while at < len(data):
        header = data[at : at + 8]
        (length,) = struct.unpack("<Q", header)
        (header_crc,) = struct.unpack("<I", data[at + 8 : at + 12])
        body = data[at + 12 : at + 12 + length]
        (body_crc,) = struct.unpack("<I", data[at + 12 + length : at + 16 + length])
        assert len(body) == length
        assert header_crc == masked(crc32c(header))
        assert body_crc == masked(crc32c(body))
        yield Event.FromString(body)
        at += 16 + length


def lines(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read("stage/metrics.jsonl").splitlines()]


def points(store: Store) -> list[tuple[str, int, float, float]]:
    """(tag, step, value, time) of all TensorBoard files of the stage."""
    found = []
    for key in store.list("stage/tensorboard/"):
        assert "tfevents" in key, "TensorBoard looks for this in a name"
        first, *rest = events(store.read(key))
        assert first.file_version == "brain.Event:2"
        newest = key == store.list("stage/tensorboard/")[-1]
        assert [event.session_log.status for event in rest[:1]] == ([SessionLog.START] if newest else [])
        for event in rest:
            found += [(value.tag, event.step, value.simple_value, event.wall_time) for value in event.summary.value]
    return found


def expected(store: Store) -> list[tuple[str, int, Any, float]]:
    """The points of metrics.jsonl, in TensorBoard's words."""
    return [
        (f"stage/{name}", line["step"], pytest.approx(value, rel=1e-6), line["time"])
        for line in lines(store)
        for name, value in line.items()
        if name not in ("step", "time") and value is not None
    ]


def test_crc32c_matches_published_values() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_both_views_have_the_same_points(store: Store) -> None:
    log = MetricsLog(store, "stage")
    log.log(10, {"loss": 0.1, "kl": 3})
    log.log(20, {"loss": 1e-12, "validation": None})
    log.log(2**40, {"loss": -2.5e30})
    log.flush()
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines(store)] == [
        {"step": 10, "loss": 0.1, "kl": 3},
        {"step": 20, "loss": 1e-12, "validation": None},
        {"step": 2**40, "loss": -2.5e30},
    ]
    assert points(store) == expected(store)
    assert len(points(store)) == 4


def test_log_returns_its_row_and_keeps_all_rows(store: Store) -> None:
    log = MetricsLog(store, "stage")
    row = log.log(1, {"loss": 0.5})
    log.log(2, {"loss": 0.25})
    log.flush()
    assert row == lines(store)[0]
    assert log.rows == lines(store)


def test_resume_neither_duplicates_nor_loses_points(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(store, "stage")
    for step in range(1, 6):
        log.log(step, {"loss": 1 / step})
    log.flush()
    known = log.rows[:3]  # the checkpoint was of step 3; 4 and 5 run again
    later = time.time() + 100  # the second session's file has another name
    monkeypatch.setattr(time, "time", lambda: later)
    resumed = MetricsLog(store, "stage", known)
    assert [line["step"] for line in lines(store)] == [1, 2, 3]
    assert points(store) == expected(store)
    for step in range(4, 8):
        resumed.log(step, {"loss": 1 / step})
    resumed.flush()
    assert [line["step"] for line in lines(store)] == [1, 2, 3, 4, 5, 6, 7]
    assert lines(store)[:3] == known
    assert points(store) == expected(store)


@pytest.mark.parametrize("seconds_on", [0, 3, -1000], ids=["at once", "later", "by a clock that is behind"])
def test_file_of_a_later_session_sorts_last(store: Store, monkeypatch: pytest.MonkeyPatch, seconds_on: int) -> None:
    """TensorBoard reads files in the order of their names, and never returns to an earlier one."""
    now = time.time()
    names: list[str] = []
    for number in range(3):
        monkeypatch.setattr(time, "time", lambda number=number: now + number * seconds_on)
        MetricsLog(store, "stage")
        (new,) = set(store.list("stage/tensorboard/")) - set(names)
        names.append(new)
    assert sorted(names) == names


def test_number_of_files_of_earlier_sessions_is_bounded(store: Store) -> None:
    for _ in range(12):
        with MetricsLog(store, "stage") as log:
            log.log(1, {"loss": 0.5})
    assert len(store.list("stage/tensorboard/")) == 6
    assert points(store) == expected(store)


def test_resume_removes_a_line_truncated_by_a_kill(store: Store) -> None:
    with MetricsLog(store, "stage") as log:
        log.log(1, {"loss": 0.5})
    for key, cut in (("stage/metrics.jsonl", b'{"step": 2, "lo'), (store.list("stage/tensorboard/")[0], b"\x20\x00")):
        store.write(key, store.read(key) + cut)
    MetricsLog(store, "stage", log.rows)
    assert lines(store) == log.rows
    assert points(store) == expected(store)


def test_restarted_metrics_change_no_other_object(store: Store) -> None:
    store.write("stage/data/shard", b"")
    with MetricsLog(store, "stage2") as other:
        other.log(1, {"loss": 0.5})
    before = set(store.list())
    with MetricsLog(store, "stage") as log:
        log.log(1, {"loss": 0.25})
    MetricsLog(store, "stage")
    assert before < set(store.list())
    assert [json.loads(line) for line in store.read("stage2/metrics.jsonl").splitlines()] == other.rows
    assert points(store) == []


def test_views_are_written_at_intervals_and_at_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with MetricsLog(store, "stage") as log:
        log.log(1, {"loss": 0.5})
        assert lines(store) == []
        now += 11
        log.log(2, {"loss": 0.25})
        assert [line["step"] for line in lines(store)] == [1, 2]
        log.log(3, {"loss": 0.125})
        assert [line["step"] for line in lines(store)] == [1, 2]
    assert [line["step"] for line in lines(store)] == [1, 2, 3]
    assert points(store) == expected(store)
