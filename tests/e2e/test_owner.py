"""Real drivers of one run: two at once, a dead one, a frozen one that resumes, one with a wrong clock."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.base.failpoints import VARIABLE
from pipeline.base.machine import process_started
from pipeline.storage import sealed_json, sessions
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_records
from tests.e2e import command
from tests.e2e.conftest import STRAIGHT
from tests.storage.proxy import wait_until

# Runs until it is stopped.
ENDLESS = ("-o", "evolve.generations=100000")
PATIENCE = ("-o", "storage.heartbeat_s=0.5", "-o", "storage.lease_expiry_s=4")


def test_second_driver_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    folder, preset = tmp_path / "run", command.counting_preset(tmp_path)
    arguments = ("run", preset, "--run-dir", str(folder), *ENDLESS)
    first = command.Command(*arguments)
    first.wait_until(command.checkpointed(folder, "evolution", 1))
    for attempt in (arguments, ("resume", str(folder)), ("storage", "gc", str(folder), "--delete")):
        code, output = command.run(*attempt)
        assert code == 1, output
        assert f"{folder} is in use by `run` on {socket.gethostname()}, pid {first.process.pid}" in output
        assert "whose last sign of life was" in output
        assert "Traceback" not in output
    code, output = command.run("status", str(folder))
    assert f"driver: `run` on {socket.gethostname()}, pid {first.process.pid} (session 1), alive" in output
    assert sessions.session_numbers(LocalStore(folder)) == [1], "the refused drivers began no session"

    first.interrupt(signal.SIGKILL, lambda: True)
    code, output = command.run("status", str(folder))
    assert "which died; last sign of life" in output
    # The lease would have expired a minute later.
    code, output = command.run(*arguments, "-o", "evolve.max_seconds=0.001")
    assert code == 3, output
    assert "which is gone" in output
    assert "waiting" not in output


@pytest.mark.parametrize("executor", ["in-process", "ray"])
def test_driver_with_an_expired_lease_is_replaced_and_seals_nothing_more(
    tmp_path: Path, straight: dict[str, Any], executor: str
) -> None:
    """The whole driver is frozen, but not its training worker on Ray: the lease must fence off both."""
    preset, folder = command.counting_preset(tmp_path, **STRAIGHT), tmp_path / "run"
    arguments = ("run", preset, "--run-dir", str(folder), *PATIENCE)
    first = command.frozen(arguments, executor, "checkpoint-recorded@3")
    os.kill(first.process.pid, signal.SIGSTOP)
    first.wait_until(
        lambda: sessions.read_session(LocalStore(folder), 1).age_s > 2
    )  # otherwise the second driver sees a recent heartbeat
    second = command.Command(*arguments)
    second.wait_until(lambda: sessions.session_numbers(LocalStore(folder)) == [1, 2])
    for training in command.frozen_below(first.process.pid):
        training.resume()
    code, output = second.finish()
    assert code == 0, output
    assert "taking over from `run` on" in output
    assert "has been silent for" in output
    after = command.files(folder)

    os.kill(first.process.pid, signal.SIGCONT)
    code, output = first.finish()
    assert code == 1, output
    assert f"this driver has lost {folder} to `run` on {socket.gethostname()}, pid {second.process.pid}" in output
    assert "Traceback" not in output
    last_heartbeat = "sessions/000001/heartbeat.json"  # its own, which nobody reads any more
    changed = {name for name, digest in command.files(folder).items() if after.get(name) != digest}
    assert changed <= {last_heartbeat}
    assert command.outcome(folder) == straight
    assert read_records(LocalStore(folder), "vae")["vae.safetensors"].session == 2


@pytest.mark.parametrize("offset", ["+2d", "-2d"])
def test_lease_does_not_depend_on_the_drivers_clock(tmp_path: Path, offset: str) -> None:
    library = resources.files("libfaketime") / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    wrong_clock = {"LD_PRELOAD": str(library), "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}
    folder, preset = tmp_path / "run", command.counting_preset(tmp_path)
    arguments = ("run", preset, "--run-dir", str(folder))
    first = command.Command(*arguments, *ENDLESS, environment=wrong_clock)
    first.wait_until(command.checkpointed(folder, "evolution", 1))
    owner = sessions.read_owner(LocalStore(folder), 1)
    assert abs(owner.began - (folder / "config.yaml").stat().st_mtime) > 100_000, "its clock is not wrong"
    code, output = command.run(*arguments)
    assert code == 1, output
    assert "is in use by" in output
    first.interrupt(signal.SIGKILL, lambda: True)
    # From another host, only the heartbeats show whether the driver is alive.
    _as_if_elsewhere(folder)
    code, output = command.run(*arguments, *ENDLESS, "-o", "evolve.max_seconds=0.001", environment=wrong_clock)
    assert code == 3, output
    assert "has been silent for" in output


def _as_if_elsewhere(folder: Path) -> None:
    """Rewrite the owner of the first session: a process on an unknown machine whose lease expires soon."""
    owner = replace(sessions.read_owner(LocalStore(folder), 1), host="far-away", machine="far-away", expiry_s=3.0)
    (folder / "sessions" / "000001" / "begun.json").write_bytes(sealed_json.to_bytes(asdict(owner)))


@pytest.mark.parametrize("executor", ["in-process", "ray"])
def test_sigterm_releases_the_lease_and_shows_the_resume_command(tmp_path: Path, executor: str) -> None:
    folder, preset = tmp_path / "run", command.counting_preset(tmp_path)
    arguments = ("run", preset, "--run-dir", str(folder), *ENDLESS, "-o", f"execution.executor={executor}")
    process = command.Command(*arguments, "-o", "execution.niceness=7", "-o", "execution.workers=1")
    process.wait_until(command.checkpointed(folder, "evolution", 2))
    if executor == "ray":
        seen: set[int] = set()

        def has_workers() -> bool:
            seen.update(_niceness_of_workers(process.process.pid))
            return bool(seen)

        process.wait_until(has_workers)
        assert seen == {7}
    code, output = process.interrupt(signal.SIGTERM, lambda: True)
    assert code == 143, output
    assert "terminated. Completed work is saved" in output
    assert f"world-models run {preset}" in output
    assert f"world-models resume {folder}" in output
    assert "Traceback" not in output
    assert "SIGTERM received" not in output, "Ray's handler is gone"
    assert sessions.read_session(LocalStore(folder), 1).ended == "interrupted"


def _niceness_of_workers(pid: int) -> Iterator[int]:
    """The nice values of Ray workers below a process; none for one that is changing its title."""
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(word.startswith("ray::RolloutWorker") for word in process.cmdline()[:1]):
                yield process.nice()


STOPPED_WHILE_RAY_STARTS = """
import contextlib, os, psutil, signal, sys
import ray._private.worker
from pipeline.cli import main as cli

connect = ray._private.worker.connect

def stopped(*arguments, **named):  # Ray has set its own handler by now
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # Except Ray's agents, which check for their node once a minute.
            if not any("gent" in word for word in child.cmdline()[:3]):
                print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    return connect(*arguments, **named)

ray._private.worker.connect = stopped
sys.argv = ["world-models", *sys.argv[1:]]
cli.entry()
"""


def test_sigterm_during_ray_startup_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("run", command.counting_preset(tmp_path), "--run-dir", str(folder), "-o", "execution.executor=ray")
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    # The output goes to files: Ray's agents hold a pipe open for a minute.
    with (tmp_path / "pids").open("w") as pids_file, (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-c", STOPPED_WHILE_RAY_STARTS, *arguments],
            cwd=command.ROOT, env=environment, check=False, stdout=pids_file, stderr=log,
        )  # fmt: skip
    output = (tmp_path / "log").read_text()
    assert done.returncode == 143, output
    assert "terminated. Completed work is saved" in output
    assert "Traceback" not in output
    assert not folder.exists()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) > 2, "Ray's processes were there"
    wait_until(lambda: all(process_started(pid) is None for pid in pids))


def test_config_written_by_another_driver_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / "other").mkdir()
    preset, other = command.counting_preset(tmp_path), command.counting_preset(tmp_path / "other", seed=2)
    code, output = command.run("collect", preset, "--run-dir", str(folder))
    assert code == 0, output
    config = (folder / "config.yaml").read_bytes()
    _as_if_elsewhere(folder)
    for path in folder.iterdir():
        if path.name != "sessions":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "sessions" / "000001" / "heartbeat.json").unlink()
    # The other driver's last write comes after this one has waited and taken the lease.
    waiting = command.Command("run", other, "--run-dir", str(folder), environment={VARIABLE: "session-begun@1:freeze"})
    waiting.wait_until_frozen()
    assert sessions.session_numbers(LocalStore(folder)) == [1, 2]
    (folder / "config.yaml").write_bytes(config)
    waiting.unfreeze()
    code, output = waiting.finish()
    assert code == 2, output
    assert "seed: 1 -> 2" in output
    assert (folder / "config.yaml").read_bytes() == config
