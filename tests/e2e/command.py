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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.storage.manifest import read_manifest, read_verified
from pipeline.storage.store import LocalStore

ROOT = Path(__file__).parents[2]


class Command:
    """``world-models`` in a process group of its own, both outputs in one file.

    Not in a pipe: Ray's processes would hold it open for a while after the command was killed.
    """

    def __init__(self, *arguments: str) -> None:
        self._file = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=self._file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> tuple[int, str]:
        """Wait for its end: exit code, and all it printed."""
        code = self.process.wait(timeout=280)
        return code, Path(self._file.name).read_text()

    def interrupt(self, number: signal.Signals, when: Callable[[], bool]) -> tuple[int, str]:
        """Send a signal to the command's main process once something is so, and wait for its end."""
        deadline = time.monotonic() + 200
        while not when():
            assert self.process.poll() is None, f"it ended before it could be interrupted: {self.finish()[1]}"
            assert time.monotonic() < deadline, "what the interruption waits for never came"
            time.sleep(0.01)
        os.kill(self.process.pid, number)
        return self.finish()


def run(*arguments: str) -> tuple[int, str]:
    """Run ``world-models`` to its end: exit code, and all it printed."""
    return Command(*arguments).finish()


def checkpointed(folder: Path, prefix: str, step: int) -> Callable[[], bool]:
    """Whether a stage has a checkpoint of this step or a later one."""
    records = folder / prefix / "checkpoints" / "records"
    return lambda: records.is_dir() and any(int(path.stem) >= step for path in records.glob("*.json"))


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a complete run that is promised to be the same: all bytes, and the history but for its clocks."""
    store = LocalStore(folder)
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
