"""Metrics of a stage, as JSON lines and as TensorBoard events.

Both are views of rows that the stage's checkpoint carries: a stage that resumes hands its rows back, the views are
begun anew from them, and no point appears twice. The views lag by seconds, so that a store without appending is not
written a whole object for each row.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pipeline.storage.layout import metrics_key, own_keys, tensorboard_prefix
from pipeline.storage.store import Store

Row = dict[str, Any]

_FLUSH_EVERY_S = 10.0
_EMPTY_FILES = 5  # of earlier sessions, kept for a TensorBoard that is open


@dataclass(eq=False)
class _View:
    """One object: all its bytes, and how many of them the store has."""

    key: str
    content: bytearray = field(default_factory=bytearray)
    present: int = 0


class MetricsLog:
    """The metrics of one stage. A context: what was logged is in both views when it ends well.

    Args:
        store: the run's.
        prefix: the stage's; ``metrics.jsonl`` and ``tensorboard/`` are written under it.
        rows: what an earlier session had logged, as far as its checkpoint knows.
    """

    def __init__(self, store: Store, prefix: str, rows: Sequence[Row] = ()) -> None:
        from pipeline.storage import (
            tensorboard_events,  # imports torch, which workers that only import a stage do without
        )

        self._tensorboard = tensorboard_events
        self._store = store
        self._prefix = prefix
        earlier = own_keys(store, tensorboard_prefix(prefix))
        lines = _View(metrics_key(prefix))
        events = _View(_next_events_key(prefix, earlier))
        events.content += tensorboard_events.header() + tensorboard_events.restart()
        self._views = {lines: _line, events: self._event}
        self.rows: list[Row] = []
        for row in rows:
            self._add(row)
        for view in self._views:
            store.write(view.key, bytes(view.content))
            view.present = len(view.content)
        # Emptied, not removed: a TensorBoard that is open goes on to the next file from one that is there,
        # which is one of the last.
        for key in earlier[:-_EMPTY_FILES]:
            store.delete(key)
        for key in earlier[-_EMPTY_FILES:]:
            if len(store.read(key)) > len(tensorboard_events.header()):
                store.write(key, tensorboard_events.header())
        self._flushed = time.monotonic()

    def log(self, step: int, values: Mapping[str, Any]) -> Row:
        """Add one row; None values are left out of TensorBoard. Returns the row."""
        row = {"step": step, "time": time.time(), **values}
        self._add(row)
        if time.monotonic() - self._flushed >= _FLUSH_EVERY_S:
            self.flush()
        return row

    def flush(self) -> None:
        """Bring the views up to date."""
        for view in self._views:
            if view.present != len(view.content):
                self._store.grow(view.key, bytes(view.content), view.present)
                view.present = len(view.content)
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        for view, encode in self._views.items():
            view.content += encode(row)

    def _event(self, row: Row) -> bytes:
        values = {
            f"{self._prefix}/{name}": value
            for name, value in row.items()
            if name not in ("step", "time") and isinstance(value, int | float)
        }
        return self._tensorboard.scalars(row["step"], row["time"], values)


def _next_events_key(prefix: str, earlier: Sequence[str]) -> str:
    """A name that sorts after those of earlier sessions, whatever their clocks: TensorBoard reads files in order."""
    start = tensorboard_prefix(prefix)
    stamps = (re.match(r"\d{10}(?=\.)", key.removeprefix(start)) for key in earlier)
    seconds = max([int(time.time()), *(int(stamp[0]) + 1 for stamp in stamps if stamp is not None)])
    return f"{start}{seconds}.{socket.gethostname()}"


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
