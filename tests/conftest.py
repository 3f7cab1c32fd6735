"""Fixtures for tests of every kind."""

from __future__ import annotations

import os

# For every Ray that a test starts: at Ray's default, nice 15, one busy program starves its workers.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name
# The same settings as the command makes for a local Ray, before Ray is imported.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
# Ray starts no process before it is needed.
os.environ |= {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
# Ray kills workers where another program has taken the memory.
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 - its name
# Before torch is imported: waiting OpenMP threads sleep. By default they spin, and two of them occupy both cores while
# another test needs one.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from pipeline.base.threads import num_threads
from pipeline.config.schema import RunConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.storage.local import LocalStore
from pipeline.storage.s3 import S3Store
from pipeline.storage.store import Store
from tests.counting import counting_config
from tests.crashes import pytest_runtest_protocol, pytest_runtest_setup  # noqa: F401 - hooks
from tests.e2e import command
from tests.leftover_patches import leave_no_patch  # noqa: F401 - a fixture
from tests.s3_server import S3Server

BUCKET = "runs"

# Kind of store to a function that makes an empty one for a test. Add new kinds here: all run the same contract.
STORES: dict[str, Callable[[pytest.FixtureRequest], Store]] = {
    "local": lambda request: LocalStore(request.getfixturevalue("tmp_path") / "run"),
    "s3": lambda request: S3Store(request.getfixturevalue("s3_url")),
}


# The duration of an example depends on the machine.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


def pytest_configure() -> None:
    """Handle Ctrl-C also for tests in the background: a shell may let them, and so all tested commands, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def kill_leftover_commands_after_each_test() -> Iterator[None]:
    """End the commands that a test left running, even if it failed."""
    yield
    command.kill_leftover_commands()


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest) -> Store:
    """An empty run directory, on every kind of store."""
    return STORES[request.param](request)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with an empty bucket, for all tests."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty run directory on the S3 server. The AWS environment variables lead only to that server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


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
