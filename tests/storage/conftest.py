"""Fixtures for the S3 tests: the server's own client, and a proxy in front of the server that fails on request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.storage import s3
from pipeline.storage.s3 import S3Store
from tests.s3_server import S3Server
from tests.storage.proxy import FaultProxy


@pytest.fixture
def s3_store(s3_url: str) -> S3Store:
    """An empty run directory on the S3 server."""
    return S3Store(s3_url)


@pytest.fixture
def client(s3_server: S3Server) -> Any:
    """A client that connects to the server directly, without the proxy."""
    return s3_server.client


@pytest.fixture(scope="session")
def session_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """One proxy for all tests: the store makes a client for each endpoint, which is slow."""
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(session_proxy: FaultProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy between the stores and the server. Stores try four times and do not wait."""
    session_proxy.reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", session_proxy.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    monkeypatch.setattr(s3, "_LONGEST_WAIT_S", 0.0)
    return session_proxy
