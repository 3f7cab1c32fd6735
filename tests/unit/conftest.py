"""Fixtures of the tests that need no Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.metadata_server import AwsServer, GcpServer, MetadataServer


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsServer]:
    with AwsServer() as server:
        lead_to(server, monkeypatch)
        yield server


@pytest.fixture
def gcp(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcpServer]:
    with GcpServer() as server:
        lead_to(server, monkeypatch)
        yield server


def lead_to(server: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # The service is asked directly, regardless of the environment.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
