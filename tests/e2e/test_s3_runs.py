"""Whole runs in a bucket of a real server: with a faulty proxy, and with kills during uploads."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.failpoints import VARIABLE
from pipeline.storage.copying import copy_run
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from pipeline.storage.run_dir import open_store
from tests.e2e import command
from tests.e2e.conftest import STRAIGHT
from tests.s3_server import S3Server
from tests.storage.proxy import Exchange, FaultProxy, answer, drop_reply, hang

UNTIL_KILLED = math.inf


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy that the command uses as its server; this process does not."""
    with FaultProxy(s3_server.endpoint) as made:
        yield made


def test_smoke_gives_the_same_bits_in_a_bucket_and_in_a_folder(s3_url: str, smoke_run: Path, tmp_path: Path) -> None:
    url = f"{s3_url}/smoke"
    code, output = command.run("run", "smoke", "--run-dir", url)
    assert code == 0, output
    assert f"report: {url}/report/index.html" in output
    store = open_store(url)
    assert command.outcome(store) == command.outcome(smoke_run)
    assert {key.split("/")[0] for key in store.list()} == {path.name for path in smoke_run.iterdir()} - {".tmp"}
    for arguments, said in (
        (("status", url), "generation 3 of 3"),
        (("storage", "check", url), ", 0 problems"),
        (("storage", "gc", url), "0 to remove"),
        (("resume", url), "report: complete, skipped"),
    ):
        code, output = command.run(*arguments)
        assert code == 0, output
        assert said in output
    code, output = command.run("storage", "copy", url, str(tmp_path / "copy"))
    assert code == 0, output
    assert command.outcome(tmp_path / "copy") == command.outcome(smoke_run)


def test_run_begun_in_a_folder_resumes_in_a_bucket(s3_url: str, straight: dict[str, Any], tmp_path: Path) -> None:
    folder, preset = tmp_path / "run", command.counting_preset(tmp_path, **STRAIGHT)
    code, output = command.run("run", preset, "--run-dir", str(folder), environment={VARIABLE: "checkpoint-recorded@1"})
    assert code == -signal.SIGKILL, output
    store = open_store(f"{s3_url}/moved")
    copy_run(LocalStore(folder), store)
    shutil.rmtree(folder)
    code, output = command.run("resume", f"{s3_url}/moved")
    assert code == 0, output
    assert command.outcome(store) == straight


def test_killed_ray_driver_in_a_bucket_resumes_with_the_same_bits(
    s3_url: str, straight: dict[str, Any], tmp_path: Path
) -> None:
    """Kills in collect, in training and in evolve: each session resumes where the one before died."""
    url = f"{s3_url}/run"
    arguments: tuple[str, ...] = ("run", command.counting_preset(tmp_path, **STRAIGHT), "--run-dir", url)
    store = open_store(url)
    code, output = command.frozen(arguments, "ray", "record-created@1").interrupt(signal.SIGKILL, lambda: True)
    assert code == -signal.SIGKILL, output
    assert store.list("rollouts/data/") and not store.exists("rollouts/MANIFEST.json")
    code, output = command.frozen(arguments, "ray", "checkpoint-recorded@1").interrupt(signal.SIGKILL, lambda: True)
    assert code == -signal.SIGKILL, output
    assert store.list("vae/checkpoints/records/") and not store.exists("vae/MANIFEST.json")
    arguments += ("-o", "execution.executor=ray", "-o", "execution.workers=1")
    code, output = command.run(*arguments, environment={VARIABLE: "search-updated@2"})
    assert code == -signal.SIGKILL, output
    assert store.list("evolution/checkpoints/records/") and not store.exists("evolution/MANIFEST.json")
    code, output = command.run(*arguments)
    assert code == 0, output
    assert "evolve: resuming after generation 1" in output
    assert command.outcome(store) == straight
    assert check_run(store).problems == []


# In the order of the stages.
UPLOADS = {
    "a shard": "/rollouts/data/",
    "a record": "/rollouts/records/",
    "a training checkpoint": "/vae/checkpoints/data/",
    "a manifest": "/mdnrnn/MANIFEST.json",
    "the record of a checkpoint": "/evolution/checkpoints/records/",
}


def test_sigkill_during_uploads_changes_no_result(
    proxy: FaultProxy, s3_url: str, straight: dict[str, Any], tmp_path: Path
) -> None:
    """The driver is killed while it waits for the reply to an upload, which reached the server or did not."""
    url = f"{s3_url}/run"
    arguments = ("run", command.counting_preset(tmp_path, **STRAIGHT), "--run-dir", url)
    store = open_store(url)
    for part in UPLOADS.values():
        for arrived in (False, True):
            reached = threading.Event()

            def fault(exchange: Exchange, arrived: bool = arrived, reached: threading.Event = reached) -> None:
                if arrived:
                    exchange.forward()
                reached.set()
                hang(exchange)

            def is_target(method: str, path: str, part: str = part) -> bool:
                return method == "PUT" and part in path

            proxy.reset()
            proxy.fail(fault, is_target, UNTIL_KILLED)
            process = command.Command(*arguments, environment={"AWS_ENDPOINT_URL_S3": proxy.endpoint})
            code, output = process.interrupt(signal.SIGKILL, reached.is_set)
            assert code == -signal.SIGKILL, output
            assert check_run(store).problems == [], f"{part}, arrived: {arrived}"
    code, output = command.run(*arguments)
    assert code == 0, output
    assert command.outcome(store) == straight


FAULTS = {
    "503 for every third request": (answer(503, "SlowDown"), 3),
    "the reply to every fifth write is lost": (drop_reply, 5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_occasional_server_failures_change_no_result(
    proxy: FaultProxy, s3_url: str, straight: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    what, period = FAULTS[fault]
    requests = 0

    def sometimes(method: str, path: str) -> bool:
        nonlocal requests
        if what is drop_reply and method != "PUT":
            return False
        requests += 1
        return requests % period == 0

    proxy.fail(what, sometimes, UNTIL_KILLED)
    url = f"{s3_url}/run"
    arguments = ("run", command.counting_preset(tmp_path, **STRAIGHT), "--run-dir", url)
    code, output = command.run(*arguments, environment={"AWS_ENDPOINT_URL_S3": proxy.endpoint})
    assert code == 0, output
    assert requests > 10 * period
    store = open_store(url)
    assert command.outcome(store) == straight
    assert check_run(store).problems == []


@pytest.mark.parametrize(
    ("changes", "bucket", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, None, "AWS_ACCESS_KEY_ID"),
        ({}, "there-is-none", "there-is-none"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "2"}, None, "http://127.0.0.1:9"),
    ],
    ids=["secret", "key", "bucket", "endpoint"],
)
def test_unavailable_bucket_is_reported_before_the_run_begins(
    s3_url: str, changes: dict[str, str], bucket: str | None, said: str
) -> None:
    url = f"s3://{bucket}/run" if bucket else s3_url
    code, output = command.run("run", "smoke", "--run-dir", url, environment=changes)
    assert code == 1, output
    assert said in output
    assert "Traceback" not in output
    assert "collect: begins" not in output
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in output
    assert open_store(s3_url).list() == []
