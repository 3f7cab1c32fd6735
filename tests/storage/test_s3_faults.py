"""The S3 store with a faulty server: it retries after errors, hangs and lost replies, a limited number of times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, timedelta
from email.utils import format_datetime
from math import inf
from typing import Any

import pytest

from pipeline.base.errors import AlreadyExistsError, LeaseError, StorageError
from pipeline.storage import s3, sealed_json
from pipeline.storage.fence import fenced
from pipeline.storage.s3 import S3Store
from tests.conftest import BUCKET
from tests.storage.proxy import (
    Exchange,
    Fault,
    FaultProxy,
    after,
    answer,
    cut_between_chunks,
    cut_body,
    dated,
    delay,
    drop_reply,
    drop_request,
    everything,
    hang,
    only,
    page,
    stall_in_body,
)
from tests.unit.test_lease import HERE

SLOW_DOWN = answer(503, "SlowDown")
CONFLICT = answer(409, "ConditionalRequestConflict")

# Temporary faults, each with the number of consecutive requests that meet it.
TEMPORARY: dict[str, tuple[Fault, int]] = {
    "503": (SLOW_DOWN, 3),
    "500": (answer(500, "InternalError"), 3),
    "429": (answer(429, "TooManyRequests"), 3),
    "hang": (hang, 1),
    "request-lost": (drop_request, 3),
    "reply-lost": (drop_reply, 3),
    "slow": (delay(0.2), 1),
}
PERMANENT: dict[str, tuple[Fault, str]] = {
    "503": (SLOW_DOWN, "still fails after 4 tries (503"),
    "500": (answer(500, "InternalError"), "still fails after 4 tries (500"),
    "request-lost": (drop_request, "gives no valid response (ConnectionClosedError; 4 tries)"),
    "reply-lost": (drop_reply, "gives no valid response (ConnectionClosedError; 4 tries)"),
}
CALLS: dict[str, Callable[[S3Store], object]] = {
    "read": lambda store: store.read("there"),
    "write": lambda store: store.write("new", b"new"),
    "create": lambda store: store.create("new", b"new"),
    "delete": lambda store: store.delete("there"),
    "exists": lambda store: store.exists("there"),
    "list": lambda store: store.list(),
    "age_s": lambda store: store.age_s("there") >= 0,
}
EXPECTED: dict[str, object] = {"read": b"there", "exists": True, "list": ["there"], "age_s": True}


@pytest.fixture
def store(proxy: FaultProxy, s3_url: str, client: Any) -> S3Store:
    """A store behind the proxy, with one object."""
    store = S3Store(s3_url)
    client.put_object(Bucket=BUCKET, Key=f"{store.prefix}/there", Body=b"there")
    return store


@pytest.fixture
def impatient(store: S3Store) -> S3Store:
    """The same store, but with a read timeout of two seconds."""
    return S3Store(store.locate(), read_timeout=2.0)


@pytest.fixture
def other(store: S3Store, client: Any) -> Callable[[bytes], object]:
    """Another writer, which writes the key "new" without the proxy."""
    return lambda data: client.put_object(Bucket=BUCKET, Key=f"{store.prefix}/new", Body=data)


# ---- temporary faults


@pytest.mark.parametrize("name", sorted(TEMPORARY))
@pytest.mark.parametrize("call", sorted(CALLS))
def test_call_succeeds_after_temporary_faults(
    store: S3Store, impatient: S3Store, proxy: FaultProxy, client: Any, call: str, name: str
) -> None:
    fault, times = TEMPORARY[name]
    proxy.fail(fault, everything, times)
    assert CALLS[call](impatient if fault is hang else store) == EXPECTED.get(call)
    assert len(proxy.faulty) == times
    keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=store.prefix).get("Contents", ())}
    expected = {"write": {"there", "new"}, "create": {"there", "new"}, "delete": set()}.get(call, {"there"})
    assert keys == {f"{store.prefix}/{key}" for key in expected}


@pytest.mark.parametrize("fault", [cut_body, cut_between_chunks])
@pytest.mark.parametrize("call", ["read", "list"])
def test_truncated_body_is_requested_again(store: S3Store, proxy: FaultProxy, call: str, fault: Fault) -> None:
    proxy.fail(fault, only("GET"), 2)
    assert CALLS[call](store) == EXPECTED[call]
    assert proxy.count("GET") == 3


@pytest.mark.parametrize("call", ["read", "list"])
def test_stalled_body_is_requested_again(impatient: S3Store, proxy: FaultProxy, call: str) -> None:
    proxy.fail(stall_in_body, only("GET"), 2)
    assert CALLS[call](impatient) == EXPECTED[call]
    assert proxy.count("GET") >= 3, "a slow machine may exceed the short limit once more"


def test_timed_out_body_is_sent_again(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(answer(400, "RequestTimeout"), only("PUT"), 2)
    store.write("new", b"new")
    assert proxy.count("PUT") == 3


def test_sixteen_threads_survive_one_failure(store: S3Store, proxy: FaultProxy) -> None:
    for number in range(16):
        proxy.fail(answer(500, "InternalError"), only("PUT", f"/{number}"), 3)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: store.write(f"k/{number}", b"1"), range(16)))
    assert len(store.list("k/")) == 16


def test_waits_double_up_to_a_bound_and_vary(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(s3, "_LONGEST_WAIT_S", 10.0)
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setattr(time, "sleep", waits.append)
    proxy.fail(SLOW_DOWN, everything, 11)
    store.write("new", b"new")
    full = [min(0.1 * 2**number, 10.0) for number in range(11)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, full, strict=True))
    assert waits != full
    assert 20 < sum(waits) < 60


def test_long_retries_are_logged(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "6")
    proxy.fail(SLOW_DOWN, everything, 5)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        store.write("new", b"new")
    assert len(caplog.messages) == 2
    assert f"cannot write {store.locate('new')} (503 SlowDown); trying again in" in caplog.messages[0]


# ---- create


def test_create_succeeds_if_its_reply_is_lost(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(drop_reply, only("PUT"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"
    assert proxy.count("PUT") == 2, "the retry found the object"
    with pytest.raises(AlreadyExistsError):
        store.create("new", b"ours")


def test_create_succeeds_if_the_replies_to_its_retries_are_lost(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(drop_reply, only("PUT"), 2)
    proxy.fail(drop_reply, only("HEAD"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"


def test_create_with_a_lost_reply_fails_if_another_writer_was_first(
    store: S3Store, proxy: FaultProxy, other: Callable[[bytes], object]
) -> None:
    other(b"another's")
    proxy.fail(drop_reply, only("PUT"))
    with pytest.raises(AlreadyExistsError, match="new exists already"):
        store.create("new", b"ours")
    assert store.read("new") == b"another's"


def test_create_fails_if_another_writer_comes_before_its_retry(
    store: S3Store, proxy: FaultProxy, other: Callable[[bytes], object]
) -> None:
    proxy.fail(drop_request, only("PUT"))
    proxy.fail(after(lambda: other(b"another's")), only("PUT"))
    with pytest.raises(AlreadyExistsError, match="new exists already"):
        store.create("new", b"ours")
    assert store.read("new") == b"another's"


def test_create_of_the_same_bytes_by_another_store_fails(store: S3Store, proxy: FaultProxy) -> None:
    S3Store(store.locate()).create("new", b"the same")
    proxy.fail(drop_reply, only("PUT"))
    with pytest.raises(AlreadyExistsError):
        store.create("new", b"the same")


def test_create_retries_if_the_existing_object_disappears(
    store: S3Store, proxy: FaultProxy, client: Any, other: Callable[[bytes], object]
) -> None:
    other(b"another's")
    proxy.fail(after(lambda: client.delete_object(Bucket=BUCKET, Key=f"{store.prefix}/new")), only("HEAD"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"


def test_create_retries_after_a_conflicting_request(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(CONFLICT, only("PUT"))
    proxy.fail(answer(409, "OperationAborted"), only("PUT"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"
    assert proxy.count("PUT") == 3


# ---- permanent faults


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    assert type(caught.value) is StorageError
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(PERMANENT))
@pytest.mark.parametrize("call", sorted(CALLS))
def test_permanent_fault_is_an_error_after_the_allowed_tries(
    store: S3Store, proxy: FaultProxy, call: str, name: str
) -> None:
    fault, words = PERMANENT[name]
    proxy.fail(fault, everything, inf)
    message = _refusal(lambda: CALLS[call](store))
    assert words in message
    assert proxy.endpoint in message
    assert store.locate() in message
    assert "Completed work is saved. To resume, run the same command again." in message
    assert len(proxy.requests) == 4


def test_default_number_of_tries_is_twelve(store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    proxy.fail(SLOW_DOWN, everything, inf)
    assert "still fails after 12 tries (503 SlowDown)" in _refusal(lambda: store.write("new", b"new"))
    assert len(proxy.requests) == 12


@pytest.mark.parametrize("call", ["read", "create", "list"])
def test_hanging_server_is_an_error(
    impatient: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.fail(hang, everything, inf)
    assert "gives no valid response (ReadTimeoutError; 2 tries)" in _refusal(lambda: CALLS[call](impatient))
    assert len(proxy.requests) == 2


def test_bodies_always_truncated_are_an_error(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(cut_body, only("GET"), inf)
    message = _refusal(lambda: store.read("there"))
    assert f"{proxy.endpoint} gives no valid response" in message
    assert "4 tries" in message
    assert proxy.count("GET") == 4


@pytest.mark.parametrize("fault", [CONFLICT, answer(412, "PreconditionFailed")], ids=["409", "412"])
def test_create_with_endless_conflicts_is_an_error(store: S3Store, proxy: FaultProxy, fault: Fault) -> None:
    proxy.fail(fault, only("PUT"), inf)
    assert "still fails after 4 tries (4" in _refusal(lambda: store.create("new", b"ours"))
    assert proxy.count("PUT") == 4
    assert store.list() == ["there"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (answer(403, "AccessDenied"), "refuses the credentials (403"),
        (answer(400, "ExpiredToken"), "refuses the credentials (400"),
        (answer(501, "NotImplemented"), "refuses the request (501"),
        (answer(400, "InvalidArgument"), "(400"),
    ],
)
@pytest.mark.parametrize("call", sorted(CALLS))
def test_permanent_error_is_raised_without_retries(
    store: S3Store, proxy: FaultProxy, call: str, fault: Fault, words: str
) -> None:
    proxy.fail(fault, everything, inf)
    assert words in _refusal(lambda: CALLS[call](store))
    # After a HEAD refused without a reason, boto3 itself asks for the region of the bucket.
    assert len(proxy.requests) == len(set(proxy.requests))


def test_page_of_another_server_is_an_error(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(page("<html><p>Please log in<br></html>"), everything, inf)
    assert proxy.endpoint in _refusal(store.list)


# ---- ages


@pytest.mark.parametrize(("later_s", "age_s"), [(1000, 1000.0), (-5, 0.0)])
def test_age_depends_only_on_the_servers_clock(
    store: S3Store, proxy: FaultProxy, client: Any, later_s: int, age_s: float
) -> None:
    written = client.head_object(Bucket=BUCKET, Key=f"{store.prefix}/there")["LastModified"].astimezone(UTC)
    proxy.fail(dated(format_datetime(written + timedelta(seconds=later_s), usegmt=True)), only("HEAD"))
    assert store.age_s("there") == age_s


def test_response_without_a_date_gives_no_age(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(dated(None), only("HEAD"))
    assert "no date" in _refusal(lambda: store.age_s("there"))


def test_driver_cannot_write_if_it_loses_its_lease_between_tries(
    proxy: FaultProxy, s3_store: S3Store, client: Any
) -> None:
    held = fenced(s3_store, 1)
    held.write("k", b"1")

    def succeeded(exchange: Exchange) -> None:
        key = f"{s3_store.prefix}/sessions/000002/begun.json"
        client.put_object(Bucket=s3_store.bucket, Key=key, Body=sealed_json.to_bytes(asdict(replace(HERE, number=2))))
        answer(503, "SlowDown")(exchange)

    proxy.fail(succeeded, only("DELETE", "/k"))
    with pytest.raises(LeaseError, match="has lost"):
        held.delete("k")
    assert s3_store.read("k") == b"1"
