"""Metrics of a stage, as JSON lines and as TensorBoard events.

Both are views of rows that the stage's checkpoint carries: a stage that resumes hands its rows back, the views are
begun anew from them, and no point appears twice.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from pipeline.storage.store import Store

Row = dict[str, Any]


class MetricsLog:
    """The metrics of one stage.

    Args:
        store: the run's.
        prefix: the stage's; ``metrics.jsonl`` and ``tensorboard/`` are written under it.
        rows: what an earlier sitting had logged, as far as its checkpoint knows.
    """

    def __init__(self, store: Store, prefix: str, rows: Sequence[Row] = ()) -> None:
        self._store = store
        self._prefix = prefix
        self._lines_key = f"{prefix}/metrics.jsonl"
        for key in store.list(f"{prefix}/tensorboard/"):
            store.delete(key)
        host = socket.gethostname()
        self._events_key = f"{prefix}/tensorboard/events.out.tfevents.{int(time.time())}.{host}"
        self.rows: list[Row] = list(rows)
        store.write(self._lines_key, b"".join(_line(row) for row in self.rows))
        header = _framed(Event(wall_time=time.time(), file_version="brain.Event:2"))
        store.write(self._events_key, header + b"".join(self._event(row) for row in self.rows))

    def log(self, step: int, values: Mapping[str, Any]) -> Row:
        """Add one row; None values are left out of TensorBoard. Returns the row."""
        row = {"step": step, "time": time.time(), **values}
        self.rows.append(row)
        self._store.append(self._lines_key, _line(row))
        self._store.append(self._events_key, self._event(row))
        return row

    def _event(self, row: Row) -> bytes:
        values = [
            Summary.Value(tag=f"{self._prefix}/{name}", simple_value=value)
            for name, value in row.items()
            if name not in ("step", "time") and isinstance(value, int | float)
        ]
        return _framed(Event(wall_time=row["time"], step=row["step"], summary=Summary(value=values)))


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _framed(event: Event) -> bytes:
    """An event as one TFRecord: length, its checksum, the event, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
