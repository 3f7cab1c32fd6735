"""A store on S3 behind a server that refuses for a moment, hangs or breaks off: what it does, and when it gives up."""

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
from pipeline.storage import s3, sealed
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

# What ends by itself, and how many requests in a row a store may meet it.
PASSING: dict[str, tuple[Fault, int]] = {
    "503": (SLOW_DOWN, 3),
    "500": (answer(500, "InternalError"), 3),
    "429": (answer(429, "TooManyRequests"), 3),
    "hang": (hang, 1),
    "request-lost": (drop_request, 3),
    "reply-lost": (drop_reply, 3),
    "slow": (delay(0.2), 1),
}
ENDLESS: dict[str, tuple[Fault, str]] = {
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
    """The same, but that it gives a server that hangs no more than two seconds."""
    return S3Store(store.locate(), read_timeout=2.0)


@pytest.fixture
def other(store: S3Store, client: Any) -> Callable[[bytes], object]:
    """Another writer, who takes the key "new" without going through the proxy."""
    return lambda data: client.put_object(Bucket=BUCKET, Key=f"{store.prefix}/new", Body=data)


# ---- what passes


@pytest.mark.parametrize("name", sorted(PASSING))
@pytest.mark.parametrize("call", sorted(CALLS))
def test_what_fails_for_a_moment_is_done_all_the_same(
    store: S3Store, impatient: S3Store, proxy: FaultProxy, client: Any, call: str, name: str
) -> None:
    fault, times = PASSING[name]
    proxy.fail(fault, everything, times)
    assert CALLS[call](impatient if fault is hang else store) == EXPECTED.get(call)
    assert len(proxy.faulty) == times
    keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=store.prefix).get("Contents", ())}
    expected = {"write": {"there", "new"}, "create": {"there", "new"}, "delete": set()}.get(call, {"there"})
    assert keys == {f"{store.prefix}/{key}" for key in expected}


@pytest.mark.parametrize("fault", [cut_body, cut_between_chunks, stall_in_body])
@pytest.mark.parametrize("call", ["read", "list"])
def test_a_body_that_is_cut_short_is_asked_for_again(
    impatient: S3Store, proxy: FaultProxy, call: str, fault: Fault
) -> None:
    proxy.fail(fault, only("GET"), 2)
    assert CALLS[call](impatient) == EXPECTED[call]
    assert proxy.count("GET") == 3


def test_a_body_that_did_not_arrive_in_time_is_sent_again(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(answer(400, "RequestTimeout"), only("PUT"), 2)
    store.write("new", b"new")
    assert proxy.count("PUT") == 3


def test_sixteen_threads_outlast_a_failure_together(store: S3Store, proxy: FaultProxy) -> None:
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


def test_it_says_that_it_is_trying_once_that_takes_long(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "6")
    proxy.fail(SLOW_DOWN, everything, 5)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        store.write("new", b"new")
    assert len(caplog.messages) == 2
    assert f"cannot write {store.locate('new')} (503 SlowDown); trying again in" in caplog.messages[0]


# ---- create


def test_a_create_whose_answer_is_lost_has_made_the_object(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(drop_reply, only("PUT"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"
    assert proxy.count("PUT") == 2, "the repetition met the object"
    with pytest.raises(AlreadyExistsError):
        store.create("new", b"ours")


def test_a_create_is_ours_even_if_the_answers_to_its_repetitions_are_lost_too(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.fail(drop_reply, only("PUT"), 2)
    proxy.fail(drop_reply, only("HEAD"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"


def test_a_create_whose_answer_is_lost_is_no_success_where_another_writer_was_faster(
    store: S3Store, proxy: FaultProxy, other: Callable[[bytes], object]
) -> None:
    other(b"another's")
    proxy.fail(drop_reply, only("PUT"))
    with pytest.raises(AlreadyExistsError, match="new exists already"):
        store.create("new", b"ours")
    assert store.read("new") == b"another's"


def test_a_create_that_never_arrived_is_no_success_where_another_writer_came_in_between(
    store: S3Store, proxy: FaultProxy, other: Callable[[bytes], object]
) -> None:
    proxy.fail(drop_request, only("PUT"))
    proxy.fail(after(lambda: other(b"another's")), only("PUT"))
    with pytest.raises(AlreadyExistsError, match="new exists already"):
        store.create("new", b"ours")
    assert store.read("new") == b"another's"


def test_two_stores_that_create_the_same_bytes_are_told_apart(store: S3Store, proxy: FaultProxy) -> None:
    S3Store(store.locate()).create("new", b"the same")
    proxy.fail(drop_reply, only("PUT"))
    with pytest.raises(AlreadyExistsError):
        store.create("new", b"the same")


def test_a_create_tries_again_where_what_was_in_the_way_is_gone(
    store: S3Store, proxy: FaultProxy, client: Any, other: Callable[[bytes], object]
) -> None:
    other(b"another's")
    proxy.fail(after(lambda: client.delete_object(Bucket=BUCKET, Key=f"{store.prefix}/new")), only("HEAD"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"


def test_a_create_that_crosses_another_request_tries_again(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(CONFLICT, only("PUT"))
    proxy.fail(answer(409, "OperationAborted"), only("PUT"))
    store.create("new", b"ours")
    assert store.read("new") == b"ours"
    assert proxy.count("PUT") == 3


# ---- what does not pass


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    assert type(caught.value) is StorageError
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(ENDLESS))
@pytest.mark.parametrize("call", sorted(CALLS))
def test_what_never_ends_is_an_error_after_as_many_requests_as_are_allowed(
    store: S3Store, proxy: FaultProxy, call: str, name: str
) -> None:
    fault, words = ENDLESS[name]
    proxy.fail(fault, everything, inf)
    message = _refusal(lambda: CALLS[call](store))
    assert words in message
    assert proxy.endpoint in message
    assert store.locate() in message
    assert "Completed work is saved: run the same command again to resume." in message
    assert len(proxy.requests) == 4


def test_without_a_word_from_the_environment_it_tries_twelve_times(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    proxy.fail(SLOW_DOWN, everything, inf)
    assert "still fails after 12 tries (503 SlowDown)" in _refusal(lambda: store.write("new", b"new"))
    assert len(proxy.requests) == 12


@pytest.mark.parametrize("call", ["read", "create", "list"])
def test_a_server_that_always_hangs_is_an_error(
    impatient: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.fail(hang, everything, inf)
    assert "gives no valid response (ReadTimeoutError; 2 tries)" in _refusal(lambda: CALLS[call](impatient))
    assert len(proxy.requests) == 2


def test_bodies_that_are_always_cut_short_are_an_error(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(cut_body, only("GET"), inf)
    message = _refusal(lambda: store.read("there"))
    assert f"{proxy.endpoint} gives no valid response" in message
    assert "4 tries" in message
    assert proxy.count("GET") == 4


@pytest.mark.parametrize("fault", [CONFLICT, answer(412, "PreconditionFailed")], ids=["409", "412"])
def test_a_create_that_is_always_crossed_is_an_error(store: S3Store, proxy: FaultProxy, fault: Fault) -> None:
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
def test_what_another_try_cannot_mend_is_an_error_at_once(
    store: S3Store, proxy: FaultProxy, call: str, fault: Fault, words: str
) -> None:
    proxy.fail(fault, everything, inf)
    assert words in _refusal(lambda: CALLS[call](store))
    # To a HEAD that was refused without a reason boto3 looks for the region of the bucket, by itself.
    assert len(proxy.requests) == len(set(proxy.requests))


def test_a_page_that_is_none_of_s3s_is_an_error(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(page("<html><p>Please log in<br></html>"), everything, inf)
    assert proxy.endpoint in _refusal(store.list)


# ---- ages


@pytest.mark.parametrize(("later_s", "age_s"), [(1000, 1000.0), (-5, 0.0)])
def test_an_age_is_told_by_the_servers_clock_alone(
    store: S3Store, proxy: FaultProxy, client: Any, later_s: int, age_s: float
) -> None:
    written = client.head_object(Bucket=BUCKET, Key=f"{store.prefix}/there")["LastModified"].astimezone(UTC)
    proxy.fail(dated(format_datetime(written + timedelta(seconds=later_s), usegmt=True)), only("HEAD"))
    assert store.age_s("there") == age_s


def test_an_answer_without_a_date_is_no_age(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail(dated(None), only("HEAD"))
    assert "no date" in _refusal(lambda: store.age_s("there"))


def test_a_driver_that_loses_its_lease_while_it_tries_again_does_not_get_through(
    proxy: FaultProxy, s3_store: S3Store, client: Any
) -> None:
    held = fenced(s3_store, 1)
    held.write("k", b"1")

    def succeeded(exchange: Exchange) -> None:
        key = f"{s3_store.prefix}/sessions/000002/begun.json"
        client.put_object(Bucket=s3_store.bucket, Key=key, Body=sealed.to_bytes(asdict(replace(HERE, number=2))))
        answer(503, "SlowDown")(exchange)

    proxy.fail(succeeded, only("DELETE", "/k"))
    with pytest.raises(LeaseError, match="has lost"):
        held.delete("k")
    assert s3_store.read("k") == b"1"
