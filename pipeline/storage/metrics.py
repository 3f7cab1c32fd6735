"""Metrics of a stage, as JSON lines and as TensorBoard events.

On resume both files are rebuilt from the rows in the stage's checkpoint, so no point is duplicated. The files lag by
some seconds, because a store that cannot append writes the whole object each time.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pipeline.storage.layout import metrics_key, own_keys, tensorboard_prefix
from pipeline.storage.store import Appendable, Store

MetricsRow = dict[str, Any]

_FLUSH_EVERY_S = 10.0
_EMPTY_FILES = 5  # emptied event files of earlier sessions, kept for a TensorBoard that is open


def read_metrics(store: Store, prefix: str) -> list[MetricsRow]:
    """Rows of a stage's metrics, oldest first; none without a file. A line that a kill cut short is left out."""
    try:
        lines = store.read(metrics_key(prefix)).splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


@dataclass(eq=False)
class _View:
    """One object: its bytes, and the number of them that the store holds."""

    key: str
    content: bytearray = field(default_factory=bytearray)
    present: int = 0


class MetricsLog:
    """Metrics of one stage: a context manager that writes all rows to both files when it ends without an error.

    Args:
        store: Store of the run.
        prefix: Prefix of the stage; ``metrics.jsonl`` and ``tensorboard/`` are written under it.
        rows: Rows of earlier sessions, from the checkpoint.

    Attributes:
        rows: All rows of the stage.
    """

    def __init__(self, store: Store, prefix: str, rows: Sequence[MetricsRow] = ()) -> None:
        from pipeline.storage import (
            tensorboard_events,  # imports torch, which workers that only import a stage do not need
        )

        self._tensorboard = tensorboard_events
        self._store = store
        self._prefix = prefix
        earlier = own_keys(store, tensorboard_prefix(prefix))
        lines = _View(metrics_key(prefix))
        events = _View(_next_events_key(prefix, earlier))
        events.content += tensorboard_events.header() + tensorboard_events.restart()
        self._views = {lines: _line, events: self._event}
        self.rows: list[MetricsRow] = []
        for row in rows:
            self._add(row)
        for view in self._views:
            store.write(view.key, bytes(view.content))
            view.present = len(view.content)
        # The last ones are emptied, not removed: an open TensorBoard moves on to the next file only from a file that
        # still exists.
        for key in earlier[:-_EMPTY_FILES]:
            store.delete(key)
        for key in earlier[-_EMPTY_FILES:]:
            if len(store.read(key)) > len(tensorboard_events.header()):
                store.write(key, tensorboard_events.header())
        self._flushed = time.monotonic()

    def log(self, step: int, values: Mapping[str, Any]) -> MetricsRow:
        """Add one row.

        Args:
            step: Step of the stage.
            values: Values by name; TensorBoard shows only the numbers.

        Returns:
            Row with its step and Unix time.
        """
        row = {"step": step, "time": time.time(), **values}
        self._add(row)
        if time.monotonic() - self._flushed >= _FLUSH_EVERY_S:
            self.flush()
        return row

    def flush(self) -> None:
        """Write all rows to both files."""
        for view in self._views:
            if view.present != len(view.content):
                content = bytes(view.content)
                # Rows are rebuilt from a checkpoint on resume, so a half-written row does no harm.
                if isinstance(self._store, Appendable):
                    self._store.append(view.key, content, view.present)
                else:
                    self._store.write(view.key, content)
                view.present = len(view.content)
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()

    def _add(self, row: MetricsRow) -> None:
        self.rows.append(row)
        for view, encode in self._views.items():
            view.content += encode(row)

    def _event(self, row: MetricsRow) -> bytes:
        values = {
            f"{self._prefix}/{name}": value
            for name, value in row.items()
            if name not in ("step", "time") and isinstance(value, int | float)
        }
        return self._tensorboard.scalars(row["step"], row["time"], values)


def _next_events_key(prefix: str, earlier: Sequence[str]) -> str:
    """Key that sorts after all earlier ones, even if clocks disagree: TensorBoard reads files in order."""
    start = tensorboard_prefix(prefix)
    stamps = (re.match(r"\d{10}(?=\.)", key.removeprefix(start)) for key in earlier)
    seconds = max([int(time.time()), *(int(stamp[0]) + 1 for stamp in stamps if stamp is not None)])
    return f"{start}{seconds}.{socket.gethostname()}"


def _line(row: MetricsRow) -> bytes:
    return json.dumps(row).encode() + b"\n"
