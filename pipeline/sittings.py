"""The sittings of a run: each start of the command, on what machine, with what code, and how long each stage took."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import ConfigError
from pipeline.identity import code_version, cpu_kind, library_versions
from pipeline.storage.store import Store

KEY = "sittings.jsonl"

logger = logging.getLogger(__name__)


def read_sittings(store: Store) -> list[dict[str, Any]]:
    """All rows, in order. A line that a kill cut short is left out."""
    if not store.exists(KEY):
        return []
    rows = []
    for line in store.read(KEY).splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            logger.warning("%s: a line was cut short, left out", store.locate(KEY))
    return rows


def check_machine(store: Store, *, exact: bool) -> None:
    """Compare this machine and code with those that the run was begun with; what differs is logged.

    Raises:
        ConfigError: the run was begun on another kind of CPU and must be exact.
    """
    first = next((row for row in read_sittings(store) if row["event"] == "begin"), None)
    if first is None:
        return
    this = _this_sitting()
    if first["cpu"] != this["cpu"] and exact:
        raise ConfigError(
            f"{store.locate()} was begun on CPU {first['cpu']}, this is {this['cpu']}: results would not be the "
            "same to the bit. Go on there, or accept it with -o execution.exact=false"
        )
    for key in ("cpu", "code_version", "versions"):
        if first[key] != this[key]:
            logger.warning("this run was begun with %s %s, this sitting has %s: recorded", key, first[key], this[key])


def begin_sitting(store: Store) -> None:
    """Write down that a sitting begins."""
    _append(store, {"event": "begin", "time": time.time(), **_this_sitting()})


def _this_sitting() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cpu": cpu_kind(),
        "code_version": code_version(),
        "versions": library_versions(),
    }


@contextmanager
def timed(store: Store, stage: str) -> Iterator[None]:
    """Write down how long a stage took in this sitting, however it ends (but by a kill)."""
    began = time.monotonic()
    try:
        yield
    finally:
        _append(store, {"event": "stage", "stage": stage, "seconds": time.monotonic() - began, "time": time.time()})


def stage_seconds(store: Store, stage: str) -> float:
    """Seconds that a stage has taken, over all sittings but those that were killed in it."""
    return sum(
        float(row["seconds"]) for row in read_sittings(store) if row["event"] == "stage" and row["stage"] == stage
    )


def _append(store: Store, row: dict[str, Any]) -> None:
    # A line of its own, even after one that was cut short.
    cut = store.exists(KEY) and not store.read(KEY).endswith(b"\n")
    store.append(KEY, (b"\n" if cut else b"") + json.dumps(row).encode() + b"\n")
