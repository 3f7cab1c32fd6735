"""The lease of a run: drivers that may take it, and the fence against a driver that has lost it."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import psutil
import pytest

from pipeline.base.errors import AlreadyExistsError, LeaseError, StorageError
from pipeline.base.machine import machine_name, process_started, stop_grace_s
from pipeline.storage import lease, sealed_json, sessions
from pipeline.storage.fence import fenced
from pipeline.storage.lease import Lease
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import commit, read_records
from pipeline.storage.sessions import Owner, last_session
from pipeline.storage.store import Appendable, Store

HERE = Owner(
    number=1,
    purpose="run",
    host=socket.gethostname(),
    machine=machine_name(),
    pid=os.getpid(),
    process_started=process_started(os.getpid()) or 0.0,
    began=0.0,
    heartbeat_s=0.1,
    expiry_s=3.0,
)
ELSEWHERE = replace(HERE, host="far-away", machine="far-away boot pid", pid=7)


def new_lease(store: Store, **changes: Any) -> Lease:
    return Lease(store, **{"purpose": "run", "heartbeat_s": 0.1, "expiry_s": 3.0, "about": {}, **changes})


def put(store: Store, owner: Owner, **heartbeat: Any) -> None:
    """Write a session as its owner left it."""
    store.create(f"sessions/{owner.number:06d}/begun.json", sealed_json.to_bytes(asdict(owner)))
    if heartbeat:
        beat(store, owner, **heartbeat)


def beat(store: Store, owner: Owner, **heartbeat: Any) -> None:
    content = {"count": 1, "time": 0.0, "ended": None, "workers": 0, **heartbeat}
    store.write(f"sessions/{owner.number:06d}/heartbeat.json", json.dumps(content).encode())


def gone_process() -> Owner:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = process_started(process.pid) or time.time()
    process.wait()
    return replace(HERE, pid=process.pid, process_started=started)


def test_heartbeats_say_how_many_workers_are_ready(store: Store) -> None:
    with new_lease(store, count_workers=lambda: 7):
        session = last_session(store)
        assert session is not None and session.workers == 7


def test_sessions_are_numbered_and_record_their_end(store: Store) -> None:
    with new_lease(store, about={"cpu": "fast"}) as first:
        assert first.session == 1
    with pytest.raises(ZeroDivisionError), new_lease(store) as second:
        assert second.session == 2
        raise ZeroDivisionError
    assert sessions.session_numbers(store) == [1, 2]
    assert [sessions.read_session(store, number).ended for number in (1, 2)] == ["complete", "ZeroDivisionError"]
    owner = sessions.read_owner(store, 1)
    assert (owner.host, owner.pid, owner.about) == (socket.gethostname(), os.getpid(), {"cpu": "fast"})


def test_second_driver_is_refused_with_host_pid_and_age_of_the_owner(store: Store) -> None:
    with new_lease(store, heartbeat_s=10.0, expiry_s=600.0), pytest.raises(LeaseError) as refused, new_lease(store):
        pass
    assert socket.gethostname() in str(refused.value)
    assert f"pid {os.getpid()}" in str(refused.value)
    assert re.search(r"last sign of life was \d+ s ago", str(refused.value))
    with pytest.raises(LeaseError), new_lease(store, heartbeat_s=10.0, expiry_s=600.0):
        sessions.refuse_if_owned(store)


def test_dead_driver_on_this_host_is_replaced_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = replace(gone_process(), expiry_s=3600.0)
    put(store, dead, count=5)
    sessions.refuse_if_owned(store)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits for the expiry"))
    with new_lease(store) as held:
        assert held.session == 2


def test_reused_pid_is_not_taken_for_the_dead_driver(store: Store) -> None:
    put(store, replace(HERE, process_started=HERE.process_started - 1000, expiry_s=3600.0), count=1)
    with new_lease(store) as held:
        assert held.session == 2


@pytest.mark.parametrize("heartbeat", [{}, {"count": 5}], ids=["none", "some"])
def test_silent_driver_elsewhere_is_replaced_after_its_lease_expires(store: Store, heartbeat: dict[str, Any]) -> None:
    put(store, ELSEWHERE, **heartbeat)
    sessions.refuse_if_owned(store)  # it may be dead: only waiting shows this
    session = last_session(store)
    assert session is not None and not session.over
    with new_lease(store) as held:
        assert held.session == 2
    assert sessions.read_session(store, 1).age_s >= ELSEWHERE.expiry_s - 1  # S3 dates have whole seconds


def test_driver_elsewhere_with_a_new_heartbeat_keeps_its_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, replace(ELSEWHERE, expiry_s=3600.0), count=5)
    monkeypatch.setattr(time, "sleep", lambda _: beat(store, ELSEWHERE, count=6))
    with pytest.raises(LeaseError, match="far-away, pid 7"), new_lease(store):
        pass
    assert sessions.session_numbers(store) == [1]


@pytest.mark.parametrize("skew_s", [-86_400.0, 86_400.0])
def test_clock_of_the_owner_does_not_matter(store: Store, skew_s: float) -> None:
    """Only the store's clock counts: by the owner's clock, this heartbeat is a day old or from tomorrow."""
    put(store, replace(ELSEWHERE, began=time.time() + skew_s), count=5, time=time.time() + skew_s)
    session = last_session(store)
    assert session is not None and session.age_s < 2.5 and not session.over
    with new_lease(store) as held:
        assert held.session == 2


def test_ended_session_is_replaced_at_once_on_any_host(store: Store) -> None:
    put(store, replace(ELSEWHERE, expiry_s=3600.0), count=5, ended="complete")
    with new_lease(store) as held:
        assert held.session == 2


def test_exactly_one_of_many_concurrent_drivers_gets_the_run(store: Store) -> None:
    outcomes: list[str] = []
    done = threading.Event()

    def take() -> None:
        try:
            with new_lease(store, expiry_s=600.0):
                outcomes.append("taken")
                done.wait(30)
        except LeaseError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 600
    while len(outcomes) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["taken"]


def test_driver_without_its_lease_cannot_write(store: Store) -> None:
    first = fenced(store, 1)
    put(store, HERE, count=1)
    commit(first, "stage", "one.bin", b"one")
    before = {key: store.read(key) for key in store.list()}
    put(store, replace(ELSEWHERE, number=2))
    seals: list[Callable[[], object]] = [
        lambda: commit(first, "stage", "two.bin", b"two"),
        lambda: first.create("stage/MANIFEST.json", b"{}"),
        lambda: first.write("config.yaml", b""),
        lambda: first.delete("stage/records/one.bin.json"),
        lambda: first.delete(".tmp/tmpabc"),
    ]
    if isinstance(first, Appendable):
        seals.append(partial(first.append, "stage/metrics.jsonl", b"row", 0))
    for seal in seals:
        with pytest.raises(LeaseError, match=r"lost .* to `run` on far-away, pid 7"):
            seal()
    after = {key: store.read(key) for key in store.list()}
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys() == {"sessions/000002/begun.json"}
    assert read_records(first, "stage").keys() == {"one.bin"}, "it may still look"


def test_committed_records_hold_the_session_number(store: Store) -> None:
    with new_lease(store):
        pass
    with new_lease(store) as held:
        assert commit(held, "stage", "one.bin", b"one").session == 2
    assert read_records(store, "stage")["one.bin"].session == 2


def test_heartbeats_continue_after_temporary_store_failures(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: Queue[None] = Queue()

    def fails(*_: Any) -> None:
        failures.put(None)
        raise StorageError("the disk is away")

    with new_lease(local_store, heartbeat_s=0.02):
        _wait_for_heartbeats(local_store, 3)
        with monkeypatch.context() as patch:
            patch.setattr(type(local_store), "write", fails)
            for _ in range(3):
                failures.get(timeout=600)
        _wait_for_heartbeats(local_store, sessions.read_session(local_store, 1).heartbeats + 3)
    assert sessions.read_session(local_store, 1).ended == "complete"


class Gated(LocalStore):
    """A store on which the last heartbeat waits for a gate."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reached, self.gate = threading.Event(), threading.Event()

    def write(self, key: str, data: bytes) -> None:
        if key.endswith("heartbeat.json") and json.loads(data)["ended"] is not None:
            self.reached.set()
            self.gate.wait()
        super().write(key, data)


@pytest.mark.parametrize("how", ["complete", "ZeroDivisionError", "interrupted"])
def test_last_heartbeat_waits_for_a_slow_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Without that heartbeat, a successor on another machine would wait until the lease expires."""
    monkeypatch.setattr(lease, "_SLOW_S", 0.01)
    monkeypatch.setattr(lease, "stop_grace_s", lambda: 1800.0)
    store = Gated(tmp_path)

    def open_after_the_message() -> None:
        while "is slow to release the lease" not in caplog.text:
            time.sleep(0.01)
        store.gate.set()

    with caplog.at_level(logging.WARNING):
        opening = threading.Thread(target=open_after_the_message)
        opening.start()
        with suppress(ZeroDivisionError, KeyboardInterrupt), new_lease(store):
            if how == "ZeroDivisionError":
                raise ZeroDivisionError
            if how == "interrupted":
                raise KeyboardInterrupt
        opening.join()
    assert sessions.read_session(store, 1).ended == how


@pytest.mark.parametrize(
    ("environment", "grace_s"),
    [
        ({}, 10.0),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, 3.0),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_JOB_STOP_WAIT_TIME_S": "24"}, 24.0),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_JOB_STOP_WAIT_TIME_S": "soon"}, 3.0),
    ],
)
def test_stop_waits_for_a_hanging_store_only_until_the_kill(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    grace_s: float,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert stop_grace_s() == grace_s
    store = Gated(tmp_path)
    waited: list[float] = []
    held = new_lease(store)
    with pytest.raises(KeyboardInterrupt), held:
        monkeypatch.setattr(held._thread, "join", waited.append)
        raise KeyboardInterrupt
    assert store.reached.wait(600) and sessions.read_session(store, 1).ended is None
    assert sum(waited) == pytest.approx(grace_s / 3)
    store.gate.set()


class Retrying(LocalStore):
    """A store that retries writes as long as allowed, like S3. Only the last heartbeat succeeds."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.trying = threading.Event()

    def write(self, key: str, data: bytes) -> None:
        beat = json.loads(data)
        while key.endswith("heartbeat.json") and beat["count"] > 1 and beat["ended"] is None:
            self.trying.set()
            self.require_allowed()
            time.sleep(0.01)
        super().write(key, data)


def test_running_heartbeat_does_not_shorten_the_wait_for_the_last_one(tmp_path: Path) -> None:
    store = Retrying(tmp_path)
    with new_lease(store, heartbeat_s=100.0, expiry_s=600.0) as held:
        assert held.session == 1
    assert sessions.read_session(store, 1).ended == "complete"
    with new_lease(store, heartbeat_s=0.01, expiry_s=600.0):
        store.trying.wait(600)  # each of these is late at once, and dropped
    assert sessions.read_session(store, 2).ended == "complete"


def _wait_for_heartbeats(store: Store, count: int) -> None:
    deadline = time.monotonic() + 30
    while sessions.read_session(store, 1).heartbeats < count:
        assert time.monotonic() < deadline, "the heartbeats stopped"
        time.sleep(0.01)


def test_changed_session_start_is_damaged_data(store: Store) -> None:
    put(store, HERE, count=1)
    key = "sessions/000001/begun.json"
    store.write(key, store.read(key).replace(b'"pid"', b'"pit"'))
    with pytest.raises(StorageError, match=r"begun\.json"), new_lease(store):
        pass


def test_lease_is_taken_by_an_exclusive_create(store: Store) -> None:
    put(store, HERE)
    with pytest.raises(AlreadyExistsError):
        put(store, HERE)


def test_store_without_exclusive_creates_is_refused(local_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "create", LocalStore.write)
    with pytest.raises(StorageError, match="ignores If-None-Match"), new_lease(local_store):
        pass


def test_process_start_does_not_depend_on_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "boot_time", lambda: 1.0)
    assert HERE.alive_here
    assert not replace(HERE, process_started=HERE.process_started + 1).alive_here
