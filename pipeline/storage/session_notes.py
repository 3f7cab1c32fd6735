"""Notes of the sessions of a run: machine and code version of each session, and duration of each stage."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.base.errors import DamagedDataError
from pipeline.base.exactness import inexact_error
from pipeline.config.identity import this_machine
from pipeline.config.schema import StorageConfig
from pipeline.storage.layout import SESSIONS, own_keys, session_key, session_number
from pipeline.storage.lease import Lease
from pipeline.storage.sessions import read_owner, read_session, session_numbers
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


def lease_for(config: StorageConfig, store: Store, purpose: str, count_workers: Callable[[], int] = lambda: 0) -> Lease:
    """Lease that a command takes on a run before it changes anything.

    Args:
        config: Section ``storage`` of the run.
        store: Store of the run.
        purpose: Command, for the error message of other drivers.
        count_workers: See ``Lease``.
    """
    return Lease(
        store,
        purpose,
        heartbeat_s=config.heartbeat_s,
        expiry_s=config.lease_expiry_s,
        about=this_machine(),
        count_workers=count_workers,
    )


def check_machine(store: Store, *, exact: bool, session: int | None = None) -> None:
    """Compare this machine and code with those of the first session, and log the differences.

    Args:
        store: Store of the run.
        exact: Whether to refuse another kind of CPU.
        session: Number of this session if it has begun; differences were logged before and are not logged again.

    Raises:
        ConfigError: The run was started on another kind of CPU, and ``exact`` is set.
    """
    numbers = session_numbers(store)
    if not numbers:
        return
    first, current = read_owner(store, numbers[0]).about, this_machine()
    if first["cpu"] != current["cpu"] and exact:
        raise inexact_error(
            f"{store.locate()} was started on CPU {first['cpu']}, this is {current['cpu']}", "Continue there"
        )
    for key in ("cpu", "code_version", "versions"):
        if session is None and first[key] != current[key]:
            logger.warning(
                "this run was started with %s %s, this session has %s; the difference is recorded",
                key,
                first[key],
                current[key],
            )


@contextmanager
def timed(store: Store, stage: str) -> Iterator[None]:
    """Record the duration of a stage in this session, in seconds."""
    key = session_key(store.session, stage)
    earlier = _seconds(store, store.session, key)  # 0, unless the stage runs twice in this session
    row = {"began": time.time(), "earlier": earlier, "seconds": None}
    store.write(key, json.dumps(row).encode())
    clock = time.monotonic()
    yield
    store.write(key, json.dumps({**row, "seconds": time.monotonic() - clock}).encode())


def stage_seconds(store: Store, stage: str) -> float:
    """Duration of a stage in seconds over all sessions; a killed session counts until its last heartbeat."""
    keys = [key for key in own_keys(store, SESSIONS) if key == session_key(session_number(key), stage)]
    return sum(_seconds(store, session_number(key), key) for key in keys)


def _seconds(store: Store, session: int, key: str) -> float:
    if not store.exists(key):
        return 0.0
    try:
        row = json.loads(store.read(key))
        seconds = row["seconds"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f"{store.locate(key)} is damaged ({error}); it holds only a duration", resume_after="remove it"
        ) from error
    if seconds is None:
        seconds = (
            max(0.0, read_session(store, session).time - row["began"]) if session in session_numbers(store) else 0.0
        )
    return float(row["earlier"] + seconds)
