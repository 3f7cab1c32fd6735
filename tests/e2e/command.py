"""Running the real command in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.presets import dump
from pipeline.storage.manifest import read_manifest, read_verified
from pipeline.storage.store import LocalStore, Store
from tests.counting import counting_config

ROOT = Path(__file__).parents[2]

_started: list[subprocess.Popen[str]] = []


class Command:
    """``world-models``, or another module, in a process group of its own, both outputs in one file.

    Not in a pipe: Ray's processes would hold it open for a while after the command was killed.
    """

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None, module: str = "pipeline") -> None:
        self._file = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=self._file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        _started.append(self.process)

    def output(self) -> str:
        """All it has printed so far."""
        return Path(self._file.name).read_text()

    def finish(self) -> tuple[int, str]:
        """Wait for its end: exit code, and all it printed."""
        code = self.process.wait(timeout=280)
        return code, self.output()

    def wait_until(self, when: Callable[[], object]) -> None:
        """Wait until something is so while the command runs."""
        deadline = time.monotonic() + 200
        while not when():
            assert self.process.poll() is None, f"it ended before: {self.finish()[1]}"
            assert time.monotonic() < deadline, "what is waited for never came"
            time.sleep(0.01)

    def interrupt(self, number: signal.Signals, when: Callable[[], object]) -> tuple[int, str]:
        """Send a signal to the command's main process once something is so, and wait for its end."""
        self.wait_until(when)
        os.kill(self.process.pid, number)
        return self.finish()


def kill_those_left() -> None:
    """End the commands that a test left running, one that failed halfway for instance."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run ``world-models`` to its end, with some more environment: exit code, and all it printed."""
    return Command(*arguments, environment=environment).finish()


def checkpointed(folder: Path, prefix: str, step: int) -> Callable[[], bool]:
    """Whether a stage has a checkpoint of this step or a later one."""
    records = folder / prefix / "checkpoints" / "records"
    return lambda: records.is_dir() and any(int(path.stem.partition("-")[0]) >= step for path in records.glob("*.json"))


def counting_preset(folder: Path, **changes: Any) -> str:
    """A YAML of a small run on the counting environment; ``__`` in a name stands for the dot of a key."""
    config = counting_config({key.replace("__", "."): value for key, value in changes.items()})
    path = folder / f"counting-{config.evolve.generations}.yaml"
    path.write_text(dump(config))
    return str(path)


def outcome(run: Path | Store) -> dict[str, Any]:
    """Everything of a complete run that is promised to be the same: all bytes, and the history but for its clocks."""
    store = LocalStore(run) if isinstance(run, Path) else run
    found: dict[str, Any] = {}
    for prefix in ("rollouts", "vae", "latents", "mdnrnn", "evolution", "evaluation"):
        manifest = read_manifest(store, prefix)
        assert manifest is not None, f"{prefix} is not complete"
        for name, record in manifest.records.items():
            data = read_verified(store, record)
            if name.startswith("history"):
                clocks = ("seconds", "time")
                found[f"{prefix}/{name}"] = [
                    {key: value for key, value in row.items() if key not in clocks} for row in json.loads(data)
                ]
            else:
                found[f"{prefix}/{name}"] = hashlib.sha256(data).hexdigest()
    return found


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder, with the SHA-256 of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
