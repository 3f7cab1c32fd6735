"""Commands whose output nobody takes any more: a reader that has enough, a terminal that closes."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest
from tests.e2e import command


def start(*arguments: str, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """``world-models`` as a shell has it once it is disowned; its outputs are descriptors, which are closed here."""
    disowned = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-m", "pipeline", *arguments]
    process = subprocess.Popen(
        disowned, cwd=command.ROOT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
    )
    for descriptor in {stdout, stderr}:
        os.close(descriptor)
    return process


def test_a_reader_that_has_read_enough_does_not_end_a_run(tmp_path: Path) -> None:
    """As by ``2>&1 | head -3``."""
    folder = tmp_path / "run"
    reading, writing = os.pipe()
    process = start(
        "collect", command.counting_preset(tmp_path), "--run-dir", str(folder), stdout=writing, stderr=writing
    )
    with os.fdopen(reading) as lines:
        assert len([next(lines) for _ in range(3)]) == 3
    assert process.wait() == 0
    assert read_manifest(LocalStore(folder), "rollouts") is not None


def test_a_terminal_that_closes_does_not_end_a_disowned_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()
    arguments = ("collect", command.counting_preset(tmp_path), "--run-dir", str(folder))
    process = start(*arguments, stdout=theirs, stderr=theirs)
    assert os.read(ours, 1)
    os.close(ours)
    assert process.wait() == 0
    assert read_manifest(LocalStore(folder), "rollouts") is not None


def test_a_run_that_is_complete_says_so_to_nobody(smoke_run: Path, tmp_path: Path) -> None:
    """As by ``| true``."""
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    reading, writing = os.pipe()
    os.close(reading)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    process = start("run", "smoke", "--run-dir", str(folder), stdout=writing, stderr=log)
    assert process.wait() == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "arguments", [("plan", "smoke", "--steps-per-s", "1000", "500", "--json"), ("status", "{run}")]
)
def test_what_is_made_for_its_reader_ends_with_it(smoke_run: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """As other Unix filters do: by the code of SIGPIPE, without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    process = start(*(each.format(run=smoke_run) for each in arguments), stdout=writing, stderr=log)
    assert process.wait() == 128 + signal.SIGPIPE
    assert (tmp_path / "log").read_text() == ""


def test_what_is_made_for_its_reader_and_finds_no_room_is_an_error(smoke_run: Path, tmp_path: Path) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    process = start("status", str(smoke_run), stdout=os.open("/dev/full", os.O_WRONLY), stderr=log)
    assert process.wait() == 1
    assert (tmp_path / "log").read_text() == "world-models: cannot write to standard output: No space left on device\n"


def test_a_log_that_finds_no_room_does_not_end_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    full = os.open("/dev/full", os.O_WRONLY)
    process = start("collect", command.counting_preset(tmp_path), "--run-dir", str(folder), stdout=full, stderr=full)
    assert process.wait() == 0
    assert read_manifest(LocalStore(folder), "rollouts") is not None
