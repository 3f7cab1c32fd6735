"""Sessions of a run: a session is one process that has the run to itself, from taking the lease to its end.

A session begins with the creation of ``sessions/NUMBER/begun.json``, which succeeds for only one driver. Its owner
writes a heartbeat next to that file until the session ends.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from pipeline.base.errors import LeaseError
from pipeline.base.machine import machine_name, process_started
from pipeline.storage import sealed_json
from pipeline.storage.layout import HEARTBEAT, SESSION_BEGUN, SESSIONS, own_keys, session_key, session_number
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


# Two readings of the start time of one process differ by the rounding of a clock tick; two processes differ by more.
_SAME_START_S = 1.0


# After this number of missed heartbeats an existing process may be frozen.
_MISSED_HEARTBEATS = 3


@dataclass(frozen=True)
class Owner:
    """Process that began a session.

    Attributes:
        number: Session number, from 1.
        purpose: Command that the session runs.
        host: Host name, for messages.
        machine: Identity of the machine; differs between boots and between containers.
        pid: Process ID.
        process_started: Start time of the process, which tells apart processes that had the same ID.
        began: Unix time in seconds by the owner's clock, for display only.
        heartbeat_s: Seconds between heartbeats.
        expiry_s: Seconds without a heartbeat after which another driver may take over.
        token: Session token, unique to this session.
        about: Further facts, such as the versions of code and packages.
    """

    number: int
    purpose: str
    host: str
    machine: str
    pid: int
    process_started: float
    began: float
    heartbeat_s: float
    expiry_s: float
    token: str = field(default_factory=lambda: uuid4().hex)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alive_here(self) -> bool | None:
        """Whether the process is alive; None if it runs on another machine."""
        if self.machine != machine_name():
            return None
        started = process_started(self.pid)
        return started is not None and abs(started - self.process_started) < _SAME_START_S

    def __str__(self) -> str:
        return f"`{self.purpose}` on {self.host}, pid {self.pid} (session {self.number})"


@dataclass(frozen=True)
class Session:
    """State of a session as read from the store.

    Attributes:
        owner: Process that began the session.
        heartbeats: Number of heartbeats; 0 before the first.
        time: Unix time in seconds of the last heartbeat, by the owner's clock.
        ended: Outcome of the session; None while it runs, or if its process was killed.
        age_s: Seconds since its last sign of life, by the store's clock.
        workers: Number of workers that were ready at the last heartbeat.
    """

    owner: Owner
    heartbeats: int
    time: float
    ended: str | None
    age_s: float
    workers: int = 0

    @property
    def over(self) -> bool:
        """Whether the next session may begin: this one has ended, its process is gone, or its lease has expired."""
        return self.ended is not None or self.owner.alive_here is False or self.age_s >= self.owner.expiry_s

    @property
    def seen_alive(self) -> bool:
        """Whether its process runs on this machine and gave a sign of life recently."""
        return (
            not self.over and self.owner.alive_here is True and self.age_s < _MISSED_HEARTBEATS * self.owner.heartbeat_s
        )


def session_numbers(store: Store) -> list[int]:
    """Numbers of all sessions, in ascending order."""
    keys = own_keys(store, SESSIONS)
    return [session_number(key) for key in keys if key == session_key(session_number(key), SESSION_BEGUN)]


def read_owner(store: Store, number: int) -> Owner:
    """Owner of a session."""
    key = session_key(number, SESSION_BEGUN)
    content = sealed_json.read(store, key, "the beginning of a session")
    try:
        return Owner(**content)
    except TypeError as error:
        raise sealed_json.damaged(store, key, "the beginning of a session", error) from error


def read_session(store: Store, number: int) -> Session:
    """Current state of a session."""
    owner = read_owner(store, number)
    key = session_key(number, HEARTBEAT)
    try:
        heartbeat = json.loads(store.read(key))
        return Session(
            owner, heartbeat["count"], heartbeat["time"], heartbeat["ended"], store.age_s(key), heartbeat["workers"]
        )
    except FileNotFoundError:
        return Session(owner, 0, owner.began, None, store.age_s(session_key(number, SESSION_BEGUN)))
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is corrupt; using only its modification time", store.locate(key))
        return Session(owner, 0, owner.began, None, store.age_s(key))


def last_session(store: Store) -> Session | None:
    """Session that owns the run or owned it last; None before the first."""
    numbers = session_numbers(store)
    return read_session(store, numbers[-1]) if numbers else None


def end_session(store: Store, number: int, how: str) -> None:
    """Mark a session as ended, from another process.

    Args:
        store: Store of the run.
        number: Session number.
        how: Outcome of the session, such as "copied".
    """
    heartbeat = {"count": 0, "time": time.time(), "ended": how, "workers": 0}
    store.write(session_key(number, HEARTBEAT), json.dumps(heartbeat).encode())


def refuse_if_owned(store: Store) -> None:
    """Refuse a run, without waiting, whose owner is alive on this machine.

    Raises:
        LeaseError: The owner is alive; the message names it.
    """
    session = last_session(store)
    if session is not None and session.seen_alive:
        raise owned_error(store, session)


def owned_error(store: Store, session: Session) -> LeaseError:
    """Error for a run that already has a driver."""
    return LeaseError(
        f"{store.locate()} is in use by {session.owner}, whose last sign of life was {session.age_s:.0f} s ago; "
        "a run has one driver at a time. Wait for it or stop it; `world-models status` shows its progress."
    )
