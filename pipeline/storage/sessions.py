"""The sessions of a run: each is one process that has the run for itself, from taking the lease to its end.

A session begins by creating ``sessions/NUMBER/begun.json``, which only one driver can. Its owner writes a heartbeat
beside it until it ends.
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
from pipeline.storage import sealed
from pipeline.storage.layout import SESSIONS, own_keys, session_key, session_number
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


BEGUN, HEARTBEAT = "begun", "heartbeat"


# Two readings of when one process began differ by the rounding of a clock tick, two processes by more.
_SAME_START_S = 1.0


# After so many heartbeats that did not come, a process that is there may be frozen.
_LATE = 3


@dataclass(frozen=True)
class Owner:
    """Who began a session.

    Attributes:
        number: the session's number, from 1.
        purpose: the command it runs.
        host, machine, pid, process_started: which process; ``machine`` tells boots and containers apart.
        began: seconds since the epoch, by the owner's clock; for people.
        heartbeat_s, expiry_s: how often it gives a sign of life, and after how long a silence it may be succeeded.
        token: of this session alone.
        about: what else is worth knowing of it.
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
        """Whether its process lives, if it is of this machine; None if it is of another."""
        if self.machine != machine_name():
            return None
        started = process_started(self.pid)
        return started is not None and abs(started - self.process_started) < _SAME_START_S

    def __str__(self) -> str:
        return f"`{self.purpose}` on {self.host}, pid {self.pid} (session {self.number})"


@dataclass(frozen=True)
class Session:
    """A session as it is found in the store.

    Attributes:
        owner: who began it.
        heartbeats: given so far; 0 before the first.
        time: of the last one, by the owner's clock.
        ended: how it ended; None while it goes on, or if it was killed.
        age_s: seconds since its last sign of life, by the store's clock.
    """

    owner: Owner
    heartbeats: int
    time: float
    ended: str | None
    age_s: float

    @property
    def over(self) -> bool:
        """Whether the next may begin: it has ended, its process is gone, or it has been silent for too long."""
        return self.ended is not None or self.owner.alive_here is False or self.age_s >= self.owner.expiry_s

    @property
    def seen_alive(self) -> bool:
        """Whether its process is one of this machine's and gave a sign of life just now."""
        return not self.over and self.owner.alive_here is True and self.age_s < _LATE * self.owner.heartbeat_s


def session_numbers(store: Store) -> list[int]:
    """The numbers of all sessions, in order."""
    keys = own_keys(store, SESSIONS)
    return [session_number(key) for key in keys if key == session_key(session_number(key), BEGUN)]


def read_owner(store: Store, number: int) -> Owner:
    """Who began a session."""
    key = session_key(number, BEGUN)
    content = sealed.read(store, key, "the beginning of a session")
    try:
        return Owner(**content)
    except TypeError as error:
        raise sealed.damaged(store, key, "the beginning of a session", error) from error


def read_session(store: Store, number: int) -> Session:
    """A session as it is now."""
    owner = read_owner(store, number)
    key = session_key(number, HEARTBEAT)
    try:
        heartbeat = json.loads(store.read(key))
        return Session(owner, heartbeat["count"], heartbeat["time"], heartbeat["ended"], store.age_s(key))
    except FileNotFoundError:
        return Session(owner, 0, owner.began, None, store.age_s(session_key(number, BEGUN)))
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged: its age is all that it tells", store.locate(key))
        return Session(owner, 0, owner.began, None, store.age_s(key))


def last_session(store: Store) -> Session | None:
    """The session that owns the run, or owned it last; None before the first."""
    numbers = session_numbers(store)
    return read_session(store, numbers[-1]) if numbers else None


def end_session(store: Store, number: int, how: str) -> None:
    """Say of a session that it is over, from outside."""
    store.write(session_key(number, HEARTBEAT), json.dumps({"count": 0, "time": time.time(), "ended": how}).encode())


def refuse_if_driven(store: Store) -> None:
    """Refuse a run whose owner is seen to be alive at once: it is a process of this machine.

    Raises:
        LeaseError: names the owner.
    """
    session = last_session(store)
    if session is not None and session.seen_alive:
        raise driven_error(store, session)


def driven_error(store: Store, session: Session) -> LeaseError:
    """The refusal of a run that another process drives."""
    return LeaseError(
        f"{store.locate()} is being driven by {session.owner}, whose last sign of life was {session.age_s:.0f} s ago; "
        "a run has one driver at a time. Wait for it or stop it; `world-models status` shows how far it is."
    )
