"""What the sessions of a run tell: on what machine and with what code each began, and how long each stage took."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.base.errors import ConfigError, DamagedDataError
from pipeline.config.identity import code_version, cpu_kind, library_versions
from pipeline.config.schema import RunConfig
from pipeline.storage.layout import SESSIONS, own_keys, session_key, session_number
from pipeline.storage.lease import Lease
from pipeline.storage.sessions import read_owner, read_session, session_numbers
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


def lease_for(config: RunConfig, store: Store, purpose: str) -> Lease:
    """The lease that a command takes on a run before it changes anything."""
    storage = config.storage
    return Lease(
        store, purpose, heartbeat_s=storage.heartbeat_s, expiry_s=storage.lease_expiry_s, about=_this_machine()
    )


def check_machine(store: Store, *, exact: bool, session: int | None = None) -> None:
    """Compare this machine and code with those that the run was begun with; what differs is logged.

    Args:
        store: the run's.
        exact: whether another kind of CPU is refused.
        session: of this session, if it has begun: it is not compared with itself, and nothing is logged twice.

    Raises:
        ConfigError: the run was begun on another kind of CPU and must be exact.
    """
    numbers = session_numbers(store)
    if not numbers:
        return
    first, this = read_owner(store, numbers[0]).about, _this_machine()
    if first["cpu"] != this["cpu"] and exact:
        raise ConfigError(
            f"{store.locate()} was begun on CPU {first['cpu']}, this is {this['cpu']}: results would not be the "
            "same to the bit. Go on there, or accept it with -o execution.exact=false"
        )
    for key in ("cpu", "code_version", "versions"):
        if session is None and first[key] != this[key]:
            logger.warning("this run was begun with %s %s, this session has %s: recorded", key, first[key], this[key])


def _this_machine() -> dict[str, Any]:
    return {"cpu": cpu_kind(), "code_version": code_version(), "versions": library_versions()}


@contextmanager
def timed(store: Store, stage: str) -> Iterator[None]:
    """Write down how long a stage takes in this session."""
    key = session_key(store.session, stage)
    earlier = _seconds(store, store.session, key)  # nothing, but where a stage is run twice in a session
    row = {"began": time.time(), "earlier": earlier, "seconds": None}
    store.write(key, json.dumps(row).encode())
    clock = time.monotonic()
    yield
    store.write(key, json.dumps({**row, "seconds": time.monotonic() - clock}).encode())


def stage_seconds(store: Store, stage: str) -> float:
    """Seconds that a stage has taken, over all sessions; of one that was killed in it, until its last heartbeat."""
    keys = [key for key in own_keys(store, SESSIONS) if key.endswith(f"/{stage}.json")]
    return sum(_seconds(store, session_number(key), key) for key in keys)


def _seconds(store: Store, session: int, key: str) -> float:
    if not store.exists(key):
        return 0.0
    try:
        row = json.loads(store.read(key))
        seconds = row["seconds"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(f"{store.locate(key)} is damaged ({error}): remove it, it only tells seconds") from error
    if seconds is None:
        seconds = (
            max(0.0, read_session(store, session).time - row["began"]) if session in session_numbers(store) else 0.0
        )
    return float(row["earlier"] + seconds)
