"""Running the real command in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.base.failpoints import VARIABLE, WORKER_VARIABLE
from pipeline.config.presets import dump
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import read_manifest, read_verified
from pipeline.storage.store import Store
from tests.counting import counting_config
from tests.e2e.forked import ForkedProcess

ROOT = Path(__file__).parents[2]

_started: list[subprocess.Popen[str] | ForkedProcess] = []

# Longer than any command takes: it catches hanging ones.
_HANGS_S = 600.0

# Variables that are read when a command runs. Others may be read during its imports.
_READ_LATE = re.compile(r"AWS_\w+|CUDA_VISIBLE_DEVICES|RAY_ADDRESS|WORLD_MODELS_\w+")


class Command:
    """``world-models`` or another module in a new process group, with both outputs in one file.

    Not in a pipe: Ray's processes would hold it open for a while after the command was killed.

    Args:
        arguments: Arguments of its command line.
        environment: Variables to set in addition to this process's.
        module: Module to run, as by ``python -m``.
        from_scratch: Whether a new interpreter runs it. Otherwise it is forked from a process that has imported
            everything, unless imports read a variable of ``environment``. Forks share their hash seed. A reference
            run is therefore started from scratch, which reveals a result that depends on the order of a set.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        module: str = "pipeline",
        from_scratch: bool = False,
    ) -> None:
        self._file = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        changes = environment or {}
        whole = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
        self.process: subprocess.Popen[str] | ForkedProcess
        if from_scratch or module != "pipeline" or not all(map(_READ_LATE.fullmatch, changes)):
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=whole,
                stdout=self._file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        else:
            self.process = ForkedProcess(arguments, whole, ROOT, self._file.name)
        _started.append(self.process)

    def output(self) -> str:
        """All output so far."""
        return Path(self._file.name).read_text()

    def finish(self) -> tuple[int, str]:
        """Wait for the command's end; returns its exit code and all its output."""
        code = self.process.wait(timeout=_HANGS_S)
        return code, self.output()

    def wait_until(self, when: Callable[[], object]) -> None:
        """Wait until a condition holds while the command runs."""
        deadline = time.monotonic() + _HANGS_S
        while not when():
            assert self.process.poll() is None, f"it ended before: {self.finish()[1]}"
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.1)  # listing all processes is slow

    def interrupt(self, number: signal.Signals, when: Callable[[], object]) -> tuple[int, str]:
        """Send a signal to the command's main process once a condition holds, and wait for its end.

        Its frozen descendants are killed after that: they would not notice the end of their Ray.
        """
        self.wait_until(when)
        frozen = frozen_below(self.process.pid)
        os.kill(self.process.pid, number)
        ended = self.finish()
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return ended

    def wait_until_frozen(self) -> None:
        """Wait until the command's own process has stopped at a failpoint."""
        self.wait_until(self.is_frozen)

    def is_frozen(self) -> bool:
        """Whether the command's own process has stopped at a failpoint."""
        return _is_frozen(self.process.pid)

    def unfreeze(self) -> None:
        """Resume a frozen command."""
        os.kill(self.process.pid, signal.SIGCONT)


def has_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal is pending for a process; a frozen one receives it only after it resumes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(int(mask, 16) >> (number - 1) & 1 for mask in re.findall(r"^(?:SigPnd|ShdPnd):\s+(\w+)", status, re.M))


def texts(folders: Sequence[Path], pattern: str = "*") -> dict[Path, str]:
    """The texts of the files below some folders, without files that vanish meanwhile."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob(pattern)):
        with suppress(FileNotFoundError):
            if path.is_file():
                found[path] = path.read_text(errors="replace")
    return found


def frozen(arguments: Sequence[str], executor: str, failpoint: str) -> Command:
    """A command frozen at a failpoint: in its own process, or with Ray in one of its workers."""
    variable = WORKER_VARIABLE if executor == "ray" else VARIABLE
    on = ("-o", f"execution.executor={executor}", "-o", "execution.workers=1")
    driver = Command(*arguments, *on, environment={variable: f"{failpoint}:freeze"})
    if executor == "ray":
        driver.wait_until(lambda: frozen_below(driver.process.pid))
    else:
        driver.wait_until_frozen()
    return driver


def frozen_below(pid: int) -> list[psutil.Process]:
    """The descendants of a process that are stopped, for example at a failpoint."""
    with suppress(psutil.NoSuchProcess):
        return [process for process in psutil.Process(pid).children(recursive=True) if _is_frozen(process.pid)]
    return []


def _is_frozen(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def kill_leftover_commands() -> None:
    """End the commands that a test left running, for example a test that failed."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            with suppress(ProcessLookupError):  # of a fork that has not left this process group yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()


def run(*arguments: str, environment: Mapping[str, str] | None = None, from_scratch: bool = False) -> tuple[int, str]:
    """Run ``world-models`` to its end, see ``Command``; returns its exit code and all its output."""
    return Command(*arguments, environment=environment, from_scratch=from_scratch).finish()


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


def uninterrupted(folder: Path, **changes: Any) -> Path:
    """The run directory of a small uninterrupted run, started from scratch; see ``counting_preset``."""
    code, output = run("run", counting_preset(folder, **changes), "--run-dir", str(folder / "run"), from_scratch=True)
    assert code == 0, output
    return folder / "run"


def outcome(run: Path | Store) -> dict[str, Any]:
    """The reproducible parts of a complete run: hashes of all objects, and the history without its times."""
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
