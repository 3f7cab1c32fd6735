"""TensorBoard records of scalars. The import is slow: tensorboardX imports torch if it is installed."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c


def header() -> bytes:
    """First record of an event file."""
    return _framed(Event(wall_time=time.time(), file_version="brain.Event:2"))


def restart() -> bytes:
    """Record that makes a reader discard all points from earlier files."""
    return _framed(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))


def scalars(step: int, wall_time: float, values: Mapping[str, float]) -> bytes:
    """Record of scalars at one step.

    Args:
        step: Position on the horizontal axis.
        wall_time: Unix time in seconds.
        values: Scalars by tag.
    """
    summary = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    return _framed(Event(wall_time=wall_time, step=step, summary=Summary(value=summary)))


def _framed(event: Event) -> bytes:
    """An event as one TFRecord: length, its checksum, the event, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
