"""Fixtures of what S3 alone promises: its server's own client, and a proxy in front that fails when it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.bench.s3_server import S3Server
from pipeline.storage import s3
from pipeline.storage.s3 import S3Store
from tests.storage.proxy import FaultProxy


@pytest.fixture
def s3_store(s3_url: str) -> S3Store:
    """An empty run directory on the S3 server."""
    return S3Store(s3_url)


@pytest.fixture
def client(s3_server: S3Server) -> Any:
    """A client that goes to the server itself, whatever stands in front of it."""
    return s3_server.client


@pytest.fixture(scope="session")
def session_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """One for all tests: a client is made for each endpoint, and that takes its time."""
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(session_proxy: FaultProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy in front of the server, which stores go through; they try four times and do not wait."""
    session_proxy.reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", session_proxy.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    monkeypatch.setattr(s3, "_LONGEST_WAIT_S", 0.0)
    return session_proxy
