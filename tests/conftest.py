"""Fixtures that tests of every kind share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.executor import InProcessExecutor
from pipeline.storage.store import LocalStore, Store
from pipeline.threads import num_threads
from tests.counting import counting_config

# Kind of store to what makes one below a test's own folder. A new kind of store runs the same contract from here.
STORES: dict[str, Callable[[Path], Store]] = {
    "local": lambda folder: LocalStore(folder / "run"),
}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty run directory, on every kind of store."""
    return STORES[request.param](tmp_path)


@pytest.fixture
def local_store(tmp_path: Path) -> LocalStore:
    """An empty run directory on the local disk, for tests that look at its files."""
    return LocalStore(tmp_path / "run")


@pytest.fixture
def smoke_config() -> RunConfig:
    """A tiny run on the counting environment."""
    return counting_config()


@pytest.fixture
def executor() -> InProcessExecutor:
    return InProcessExecutor()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that compare bits, and for small networks: one thread."""
    import torch  # noqa: F401 - so that its threads are set too

    with num_threads(1):
        yield
