"""Errors about S3 settings, credentials and the network: each names its cause and a remedy."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import botocore.auth
import pytest

from pipeline.base.errors import ConfigError, StorageError
from pipeline.storage import s3_client
from pipeline.storage.s3 import S3Store
from tests.s3_server import S3Server

CALLS: dict[str, Callable[[S3Store], object]] = {
    "read": lambda store: store.read("a/k"),
    "write": lambda store: store.write("a/k", b"1"),
    "create": lambda store: store.create("a/k", b"1"),
    "delete": lambda store: store.delete("a/k"),
    "exists": lambda store: store.exists("a/k"),
    "list": lambda store: store.list("a/"),
    "age_s": lambda store: store.age_s("a/k"),
}


@pytest.fixture(params=sorted(CALLS))
def call(request: pytest.FixtureRequest) -> Callable[[S3Store], object]:
    """Each method of the store that sends a request."""
    return CALLS[request.param]


def _refusal(store: S3Store, call: Callable[[S3Store], object]) -> str:
    with pytest.raises(StorageError) as caught:
        call(store)
    assert type(caught.value) is StorageError
    return str(caught.value)


def test_missing_credentials_are_named(
    s3_store: S3Store, call: Callable[[S3Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    message = _refusal(s3_store, call)
    assert "there are no AWS credentials to use" in message
    assert "AWS_ACCESS_KEY_ID" in message


def test_missing_secret_key_is_named(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "missing: AWS_SECRET_ACCESS_KEY" in _refusal(s3_store, CALLS["read"])


def test_missing_profile_is_named(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in _refusal(s3_store, CALLS["read"])


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused_without_showing_them(
    s3_server: S3Server,
    s3_store: S3Store,
    call: Callable[[S3Store], object],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv(name, "wrong-and-secret")
    message = _refusal(s3_store, call)
    assert "refuses the credentials (403" in message
    assert s3_server.endpoint in message
    assert "wrong-and-secret" not in message
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in message


def test_missing_bucket_is_named(s3_server: S3Server, s3_url: str, call: Callable[[S3Store], object]) -> None:
    message = _refusal(S3Store("s3://no-such-bucket/x"), call)
    assert f"there is no bucket no-such-bucket at {s3_server.endpoint}" in message


def test_unreachable_endpoint_is_named_after_all_tries(
    s3_store: S3Store, call: Callable[[S3Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        message = _refusal(s3_store, call)
    assert f"{endpoint} refuses connections: no server listens there (EndpointConnectionError; 2 tries)" in message
    assert "Completed work is saved" in message
    assert "To resume, run the same command again" in message


TROUBLES = {
    "a name that nobody has": ({"AWS_ENDPOINT_URL_S3": "http://nobody.invalid"}, "no machine has this name"),
    "TLS where there is none": ({"AWS_ENDPOINT_URL_S3": "https://{host}"}, "does not speak TLS"),
    "a secret with a line end": ({"AWS_ACCESS_KEY_ID": "key\n"}, "for spaces and line ends"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_permanent_network_error_is_named_without_retries(
    s3_server: S3Server, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    changes, said = TROUBLES[trouble]
    waits: list[float] = []
    monkeypatch.setattr("pipeline.storage.s3.time", SimpleNamespace(sleep=waits.append))
    getaddrinfo = socket.getaddrinfo

    def resolve(host: str, *how: Any, **more: Any) -> Any:  # without asking a name server
        if host == "nobody.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *how, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for name, value in changes.items():
        monkeypatch.setenv(name, value.format(host=s3_server.endpoint.removeprefix("http://")))
    message = _refusal(s3_store, CALLS["read"])
    assert said in message
    assert "tries" not in message and waits == []


def test_unreachable_proxy_is_named(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.example.com")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    message = _refusal(s3_store, CALLS["read"])
    assert "is not reached through the proxy" in message
    assert "HTTP_PROXY" in message


@pytest.mark.parametrize("hours", [-2, 2])
def test_wrong_clock_is_named(
    s3_store: S3Store, call: Callable[[S3Store], object], monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    true_datetime, true_time = botocore.auth.get_current_datetime, time.time
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: true_datetime() + timedelta(hours=hours))
    monkeypatch.setattr("pipeline.storage.s3_errors.time", SimpleNamespace(time=lambda: true_time() + 3600 * hours))
    message = _refusal(s3_store, call)
    assert "the clock of this machine is 7" in message
    assert "set the clock, then run the same command again" in message


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://me:hunter2@", "http://me:hunter2@host name"])
def test_invalid_endpoint_url_is_refused_without_its_password(
    s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(ConfigError, match="AWS") as caught:
        s3_store.read("k")
    assert "hunter2" not in str(caught.value)


def test_password_in_the_endpoint_is_never_shown(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://me:hunter2@127.0.0.1:{nobody.getsockname()[1]}")
        assert "hunter2" not in _refusal(s3_store, CALLS["read"])


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_invalid_number_of_tries_is_refused(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", value)
    with pytest.raises(ConfigError, match=f"AWS_MAX_ATTEMPTS={value}"):
        s3_store.read("k")


def test_plain_http_to_another_machine_gives_one_warning(
    s3_server: S3Server, s3_store: S3Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    getaddrinfo = socket.getaddrinfo

    def elsewhere(host: Any, *arguments: Any, **named: Any) -> Any:
        return getaddrinfo("127.0.0.1" if host == "objects.example" else host, *arguments, **named)

    s3_client._warn_of_plain_http.cache_clear()
    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    with caplog.at_level(logging.WARNING):
        s3_store.write("k", b"1")
        assert caplog.messages == [], "traffic to this machine needs no warning"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint.replace("127.0.0.1", "objects.example"))
        assert s3_store.read("k") == b"1"
        assert S3Store(s3_store.locate(), read_timeout=20).read("k") == b"1"
    assert len(caplog.messages) == 1
    assert "http://objects.example" in caplog.messages[0]
    assert "IS NOT ENCRYPTED" in caplog.messages[0]


def test_checksums_are_sent_only_if_the_environment_requests_them(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_client.shared_client(10, 30).meta.config.request_checksum_calculation == "when_required"
    assert s3_client.shared_client(10, 30).meta.config.response_checksum_validation == "when_required"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_supported")
    assert s3_client.shared_client(10, 30).meta.config.request_checksum_calculation == "when_supported"
    assert s3_client.shared_client(10, 30).meta.config.response_checksum_validation == "when_supported"
