"""Lease of a run: a run has one driver at a time, and a driver that lost its lease writes nothing more.

The driver and its workers, on any machine, write through a fenced store, which refuses every change after a later
session has begun. No decision depends on the clock of a driver: the store's own clock measures the age of a heartbeat.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any

from pipeline.base.errors import AlreadyExistsError, LeaseError, StorageError
from pipeline.base.failpoints import failpoint
from pipeline.base.machine import machine_name, process_started, stop_grace_s
from pipeline.base.progress import Progress, Update
from pipeline.storage import sealed_json
from pipeline.storage.fence import Fence, fenced
from pipeline.storage.layout import HEARTBEAT, SESSION_BEGUN, session_key
from pipeline.storage.sessions import Owner, Session, last_session, owned_error, read_session
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


# Time limit of the last heartbeat, which lets the next driver begin at once. After a stop signal the limit is a third
# of the time until the process is killed.
_LAST_HEARTBEAT_S = 30.0


_SLOW_S = 1.0  # time after which a warning names the reason for the wait


class Lease:
    """Lease of this process on a run: a context manager that takes it on entry and releases it on exit.

    Args:
        store: Store of the run.
        purpose: Command that needs the run, for the error message of other drivers.
        heartbeat_s: Seconds between heartbeats.
        expiry_s: Seconds without a heartbeat after which another driver may take over.
        about: Further facts about the session, see ``Owner``.
        count_workers: Function that returns the number of workers that are ready, for display by other commands.
    """

    def __init__(
        self,
        store: Store,
        purpose: str,
        *,
        heartbeat_s: float,
        expiry_s: float,
        about: Mapping[str, Any],
        count_workers: Callable[[], int] = lambda: 0,
    ) -> None:
        self._store = store
        self._heartbeat_store = store.guarded(self._refuse_if_late)
        self._purpose = purpose
        self._heartbeat_s, self._expiry_s = heartbeat_s, expiry_s
        self._limit_s = heartbeat_s
        self._is_last = False
        self._about = about
        self._count_workers = count_workers
        self._stopped = threading.Event()
        self._ended: str | None = None
        self._count = 0

    def __enter__(self) -> Store:
        """Take the lease; if the last owner is silent and may be dead, wait until its lease expires.

        Raises:
            LeaseError: Another driver has the run and is alive.
        """
        self._owner = self._take()
        failpoint("session-begun")
        self._beat()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="heartbeat", daemon=True)
        self._thread.start()
        return fenced(self._store, self._owner.number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._ended = "complete" if kind is None else "interrupted" if interrupted else kind.__name__
        self._limit_s = stop_grace_s() / 3 if interrupted else _LAST_HEARTBEAT_S
        self._stopped.set()
        self._thread.join(min(_SLOW_S, self._limit_s))
        if self._thread.is_alive() and self._limit_s > _SLOW_S:
            logger.warning(
                "%s is slow to release the lease: waiting at most %.0f s; after that, the next driver has to wait "
                "until the lease expires",
                self._store.locate(), self._limit_s,
            )  # fmt: skip
            self._thread.join(max(0.0, self._limit_s - _SLOW_S))

    def _take(self) -> Owner:
        while True:
            last = last_session(self._store)
            if last is not None and not last.over:
                self._wait_until_over(last)
                continue
            if last is not None and last.ended is None:
                logger.warning(
                    "taking over from %s, which %s",
                    last.owner,
                    "is gone" if last.owner.alive_here is False else f"has been silent for {last.age_s:.0f} s",
                )
            owner = self._this_process(1 if last is None else last.owner.number + 1)
            try:
                self._store.create(session_key(owner.number, SESSION_BEGUN), sealed_json.to_bytes(asdict(owner)))
            except AlreadyExistsError:
                continue  # another driver was faster and has the last session now
            self._require_exclusive(owner)
            return owner

    def _require_exclusive(self, owner: Owner) -> None:
        """Check that a second create of the same key fails: some servers ignore the condition."""
        try:
            self._store.create(session_key(owner.number, SESSION_BEGUN), sealed_json.to_bytes(asdict(owner)))
        except AlreadyExistsError:
            return
        raise StorageError(
            f"{self._store.locate()}: the server ignores If-None-Match and overwrites existing objects, so two drivers "
            "could write to one run. Use S3, or a server that honours conditional writes."
        )

    def _wait_until_over(self, last: Session) -> None:
        """Wait until a session is over.

        Raises:
            LeaseError: The session gave a sign of life.
        """
        if last.seen_alive:
            raise owned_error(self._store, last)
        logger.info(
            "%s has not ended, and its last sign of life was %.0f s ago: taking over when the lease expires, unless "
            "there is another sign of life",
            last.owner,
            last.age_s,
        )
        total = round(last.owner.expiry_s)
        with Progress("waiting for the last driver's lease to expire", "second") as show:
            while not last.over:
                show(Update(min(total, round(last.age_s)), total))
                time.sleep(min(1.0, last.owner.expiry_s / 10))
                now = read_session(self._store, last.owner.number)
                if now.heartbeats > last.heartbeats and now.ended is None:
                    raise owned_error(self._store, now)
                last = now

    def _this_process(self, number: int) -> Owner:
        return Owner(
            number=number,
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
        heartbeat = {"count": self._count, "time": time.time(), "ended": self._ended, "workers": self._count_workers()}
        self._heartbeat_store.write(session_key(self._owner.number, HEARTBEAT), json.dumps(heartbeat).encode())

    def _refuse_if_late(self) -> None:
        """Refuse to write a late heartbeat: the next one is due. The first and the last one have longer limits.

        Raises:
            StorageError: The heartbeat is late.
        """
        if self._is_last:
            limit_s = self._limit_s
        elif self._count == 1:  # nothing else is due yet
            limit_s = self._expiry_s
        else:
            limit_s = 0.0 if self._stopped.is_set() else self._heartbeat_s
        if time.monotonic() - self._beat_began > limit_s:
            raise StorageError("the heartbeat was late")

    def _beat_until_stopped(self) -> None:
        fence = Fence(self._store, self._owner.number)
        while True:
            stopped = self._is_last = self._stopped.wait(self._heartbeat_s)
            try:
                fence.check()
                self._beat()
            except LeaseError as error:
                logger.error("%s", error)
                return
            except StorageError as error:
                if self._stopped.is_set() and not stopped:
                    continue  # the last heartbeat is due instead
                logger.warning("cannot write a heartbeat, the lease may be lost: %s", error)
            if stopped:
                return
