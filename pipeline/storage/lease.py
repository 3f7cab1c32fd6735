"""One driver at a time: a run is driven in sittings, numbered, and the last one begun owns the run.

A sitting is taken by creating ``sittings/NUMBER/begun.json``, which only one driver can. Its number is the *epoch*. The
owner writes a heartbeat beside it until it ends. Whoever writes for a sitting, the driver and its workers wherever they
run, does so through a ``FencedStore``, which refuses as soon as a later sitting has begun.

No decision depends on a clock of a driver: how long a heartbeat is old is told by the store's own.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any
from uuid import uuid4

from pipeline.errors import AlreadyExistsError, LeaseError, StorageError
from pipeline.failpoints import failpoint
from pipeline.machine import machine_name, process_started, stop_grace_s
from pipeline.progress import Progress, Update
from pipeline.storage import sealed
from pipeline.storage.layout import own_keys
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

SITTINGS = "sittings"

# Two readings of when one process began differ by the rounding of a clock tick, two processes by more.
_SAME_START_S = 1.0
# After so many heartbeats that did not come, a process that is there may be frozen.
_LATE = 3
# The last heartbeat, which lets the next owner begin at once, may take so long where nobody is about to kill this
# process. After a stop it may take a third of the time until the kill.
_LAST_HEARTBEAT_S = 30.0
_SLOW_S = 1.0  # until a person who waits is told what for


@dataclass(frozen=True)
class Owner:
    """Who began a sitting.

    Attributes:
        epoch: the sitting's number, from 1.
        purpose: the command it runs.
        host, machine, pid, process_started: which process; ``machine`` tells boots and containers apart.
        began: seconds since the epoch, by the owner's clock; for people.
        heartbeat_s, expiry_s: how often it gives a sign of life, and after how long a silence it may be succeeded.
        token: of this sitting alone.
        about: what else is worth knowing of it.
    """

    epoch: int
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
        return f"`{self.purpose}` on {self.host}, pid {self.pid} (sitting {self.epoch})"


@dataclass(frozen=True)
class Sitting:
    """A sitting as it is found in the store.

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


def _begun_key(epoch: int) -> str:
    return f"{SITTINGS}/{epoch:06d}/begun.json"


def _heartbeat_key(epoch: int) -> str:
    return f"{SITTINGS}/{epoch:06d}/heartbeat.json"


def epochs(store: Store) -> list[int]:
    """The numbers of all sittings, in order."""
    keys = own_keys(store, f"{SITTINGS}/")
    return [int(key.split("/")[1]) for key in keys if key.endswith("/begun.json")]


def read_owner(store: Store, epoch: int) -> Owner:
    """Who began a sitting."""
    key = _begun_key(epoch)
    content = sealed.read(store, key, "the beginning of a sitting")
    try:
        return Owner(**content)
    except TypeError as error:
        raise sealed.damaged(store, key, "the beginning of a sitting", error) from error


def read_sitting(store: Store, epoch: int) -> Sitting:
    """A sitting as it is now."""
    owner = read_owner(store, epoch)
    key = _heartbeat_key(epoch)
    try:
        heartbeat = json.loads(store.read(key))
        return Sitting(owner, heartbeat["count"], heartbeat["time"], heartbeat["ended"], store.age_s(key))
    except FileNotFoundError:
        return Sitting(owner, 0, owner.began, None, store.age_s(_begun_key(epoch)))
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged: its age is all that it tells", store.locate(key))
        return Sitting(owner, 0, owner.began, None, store.age_s(key))


def last_sitting(store: Store) -> Sitting | None:
    """The sitting that owns the run, or owned it last; None before the first."""
    numbers = epochs(store)
    return read_sitting(store, numbers[-1]) if numbers else None


def end_sitting(store: Store, epoch: int, how: str) -> None:
    """Say of a sitting that it is over, from outside."""
    store.write(_heartbeat_key(epoch), json.dumps({"count": 0, "time": time.time(), "ended": how}).encode())


def refuse_if_driven(store: Store) -> None:
    """Refuse a run whose owner is seen to be alive at once: it is a process of this machine.

    Raises:
        LeaseError: names the owner.
    """
    sitting = last_sitting(store)
    if sitting is not None and sitting.seen_alive:
        raise _driven(store, sitting)


def _driven(store: Store, sitting: Sitting) -> LeaseError:
    return LeaseError(
        f"{store.locate()} is being driven by {sitting.owner}, whose last sign of life was {sitting.age_s:.0f} s ago; "
        "a run has one driver at a time. Wait for it or stop it; `world-models status` shows how far it is."
    )


class FencedStore:
    """A run's store in the hands of one sitting: it changes nothing once a later sitting has begun.

    Args:
        store: the run's.
        epoch: the sitting's number.
    """

    def __init__(self, store: Store, epoch: int) -> None:
        self._store = store
        self._epoch = epoch
        self._changes = store.guarded(self.check)

    @property
    def epoch(self) -> int:
        """See ``Store.epoch``."""
        return self._epoch

    def check(self) -> None:
        """Look whether the lease is still this sitting's.

        Raises:
            LeaseError: a later sitting has begun.
        """
        # Sittings are numbered without gaps, so one look is enough, however many there were.
        if self._store.exists(_begun_key(self._epoch + 1)):
            successor = read_owner(self._store, self._epoch + 1)
            raise LeaseError(
                f"this driver has lost {self._store.locate()} to {successor}: it gave no sign of life for so long that "
                "another one went on with the run. Nothing more is written from here."
            )

    def write(self, key: str, data: bytes) -> None:
        self.check()
        self._changes.write(key, data)

    def create(self, key: str, data: bytes) -> None:
        self.check()
        self._changes.create(key, data)

    def grow(self, key: str, data: bytes, present: int) -> None:
        self.check()
        self._changes.grow(key, data, present)

    def delete(self, key: str) -> None:
        self.check()
        self._changes.delete(key)

    def remove_leftover(self, name: str) -> None:
        self.check()
        self._changes.remove_leftover(name)

    def guarded(self, look: Callable[[], None]) -> FencedStore:
        return self  # it looks by itself

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def list(self, prefix: str = "") -> list[str]:
        return self._store.list(prefix)

    def locate(self, key: str = "") -> str:
        return self._store.locate(key)

    def age_s(self, key: str) -> float:
        return self._store.age_s(key)

    def leftovers(self) -> Sequence[str]:
        return self._store.leftovers()


class Lease:
    """The run in the hands of this process. A context: taken on entry, given back on exit.

    Args:
        store: the run's.
        purpose: the command, for whoever is refused meanwhile.
        heartbeat_s, expiry_s: see ``Owner``.
        about: see ``Owner``.
    """

    def __init__(
        self, store: Store, purpose: str, *, heartbeat_s: float, expiry_s: float, about: Mapping[str, Any]
    ) -> None:
        self._store = store
        self._beats = store.guarded(self._in_time)
        self._purpose = purpose
        self._heartbeat_s, self._expiry_s = heartbeat_s, expiry_s
        self._patience_s = heartbeat_s
        self._is_last = False
        self._about = about
        self._stopped = threading.Event()
        self._ended: str | None = None
        self._count = 0

    def __enter__(self) -> FencedStore:
        """Take the lease; waits where the last owner is silent and may be dead.

        Raises:
            LeaseError: another driver has the run and is alive.
        """
        self._owner = self._take()
        failpoint("sitting-begun")
        self._beat()
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)
        self._thread.start()
        return FencedStore(self._store, self._owner.epoch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._ended = "complete" if kind is None else "interrupted" if interrupted else kind.__name__
        self._patience_s = stop_grace_s() / 3 if interrupted else _LAST_HEARTBEAT_S
        self._stopped.set()
        self._thread.join(min(_SLOW_S, self._patience_s))
        if self._thread.is_alive() and self._patience_s > _SLOW_S:
            logger.warning(
                "%s is slow to take the lease back: waiting %.0f s at most, after which the next driver has to wait "
                "until the lease expires",
                self._store.locate(), self._patience_s,
            )  # fmt: skip
            self._thread.join(max(0.0, self._patience_s - _SLOW_S))

    def _take(self) -> Owner:
        while True:
            last = last_sitting(self._store)
            if last is not None and not last.over:
                self._outwait(last)
                continue
            if last is not None and last.ended is None:
                logger.warning(
                    "taking over from %s, which %s",
                    last.owner,
                    "is gone" if last.owner.alive_here is False else f"has been silent for {last.age_s:.0f} s",
                )
            owner = self._this_process(1 if last is None else last.owner.epoch + 1)
            try:
                self._store.create(_begun_key(owner.epoch), sealed.to_bytes(asdict(owner)))
            except AlreadyExistsError:
                continue  # another driver was faster: it is the last sitting now
            self._require_exclusive(owner)
            return owner

    def _require_exclusive(self, owner: Owner) -> None:
        """Make sure that what one driver created a second one cannot: there are servers that ignore the condition."""
        try:
            self._store.create(_begun_key(owner.epoch), sealed.to_bytes(asdict(owner)))
        except AlreadyExistsError:
            return
        raise StorageError(
            f"{self._store.locate()}: the server ignores If-None-Match and creates what is there already, so nothing "
            "would keep two drivers apart. Use S3, or a server that honours conditional writes."
        )

    def _outwait(self, last: Sitting) -> None:
        """Wait until a sitting is over.

        Raises:
            LeaseError: it is not: it gave a sign of life.
        """
        if last.seen_alive:
            raise _driven(self._store, last)
        logger.info(
            "%s gave no end and its last sign of life %.0f s ago: taken over unless it gives another",
            last.owner,
            last.age_s,
        )
        total = round(last.owner.expiry_s)
        with Progress("waiting for the last driver's lease to expire", "second") as show:
            while not last.over:
                show(Update(min(total, round(last.age_s)), total))
                time.sleep(min(1.0, last.owner.expiry_s / 10))
                now = read_sitting(self._store, last.owner.epoch)
                if now.heartbeats > last.heartbeats and now.ended is None:
                    raise _driven(self._store, now)
                last = now

    def _this_process(self, epoch: int) -> Owner:
        return Owner(
            epoch=epoch,
            purpose=self._purpose,
            host=socket.gethostname(),
            machine=machine_name(),
            pid=os.getpid(),
            process_started=process_started(os.getpid()) or 0.0,
            began=time.time(),
            heartbeat_s=self._heartbeat_s,
            expiry_s=self._expiry_s,
            about=self._about,
        )

    def _beat(self) -> None:
        self._count += 1
        self._beat_began = time.monotonic()
        heartbeat = {"count": self._count, "time": time.time(), "ended": self._ended}
        self._beats.write(_heartbeat_key(self._owner.epoch), json.dumps(heartbeat).encode())

    def _in_time(self) -> None:
        """A late heartbeat is not tried again: the next one is due, or the last one, which is tried for longer."""
        limit_s = self._patience_s if self._is_last else 0.0 if self._stopped.is_set() else self._heartbeat_s
        if time.monotonic() - self._beat_began > limit_s:
            raise StorageError("it was late")

    def _keep(self) -> None:
        fence = FencedStore(self._store, self._owner.epoch)
        while True:
            stopped = self._is_last = self._stopped.wait(self._heartbeat_s)
            try:
                fence.check()
                self._beat()
            except LeaseError as error:
                logger.error("%s", error)
                return
            except StorageError as error:
                logger.warning("no heartbeat could be written, the lease may be lost: %s", error)
            if stopped:
                return
