"""Commands whose output is no longer read: a reader that closes the pipe, a terminal that closes, a full disk."""

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
    """Start ``world-models`` as a disowned command of a shell. The descriptors of its outputs are closed here."""
    disowned = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-m", "pipeline", *arguments]
    process = subprocess.Popen(
        disowned, cwd=command.ROOT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
    )
    for descriptor in {stdout, stderr}:
        os.close(descriptor)
    return process


def test_run_continues_after_its_reader_closes_the_pipe(tmp_path: Path) -> None:
    """The same as ``2>&1 | head -3``."""
    folder = tmp_path / "run"
    reading, writing = os.pipe()
    process = start(
        "collect", command.counting_preset(tmp_path), "--run-dir", str(folder), stdout=writing, stderr=writing
    )
    with os.fdopen(reading) as lines:
        assert len([next(lines) for _ in range(3)]) == 3
    assert process.wait() == 0
    assert read_manifest(LocalStore(folder), "rollouts") is not None


def test_disowned_run_continues_after_its_terminal_closes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    terminal, command_side = pty.openpty()
    arguments = ("collect", command.counting_preset(tmp_path), "--run-dir", str(folder))
    process = start(*arguments, stdout=command_side, stderr=command_side)
    assert os.read(terminal, 1)
    os.close(terminal)
    assert process.wait() == 0
    assert read_manifest(LocalStore(folder), "rollouts") is not None


def test_complete_run_exits_without_error_if_nobody_reads_its_output(smoke_run: Path, tmp_path: Path) -> None:
    """The same as ``| true``."""
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
def test_printing_command_ends_by_sigpipe_if_nobody_reads_its_output(
    smoke_run: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Like other Unix filters: with the exit code of SIGPIPE and without a message."""
    reading, writing = os.pipe()
    os.close(reading)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    process = start(*(each.format(run=smoke_run) for each in arguments), stdout=writing, stderr=log)
    assert process.wait() == 128 + signal.SIGPIPE
    assert (tmp_path / "log").read_text() == ""


def test_printing_command_fails_if_its_output_is_full(smoke_run: Path, tmp_path: Path) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    process = start("status", str(smoke_run), stdout=os.open("/dev/full", os.O_WRONLY), stderr=log)
    assert process.wait() == 1
    assert (tmp_path / "log").read_text() == "world-models: cannot write to standard output: No space left on device\n"


def test_run_continues_if_its_log_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    full = os.open("/dev/full", os.O_WRONLY)
    process = start("collect", command.counting_preset(tmp_path), "--run-dir", str(folder), stdout=full, stderr=full)
    assert process.wait() == 0
    assert read_manifest(LocalStore(folder), "rollouts") is not None
