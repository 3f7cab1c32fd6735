"""Uninterrupted reference runs, made once for all processes of pytest-xdist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.e2e import command


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of pytest-xdist share."""
    mine = tmp_path_factory.getbasetemp()
    return mine if worker_id == "master" else mine.parent


@pytest.fixture(scope="session")
def smoke_run(shared: Path) -> Path:
    """The run directory of a complete smoke run, in one process. Copy it before changing anything in it."""
    folder = shared / "smoke" / "run"
    with FileLock(shared / "smoke.lock"):
        if not (folder / "report" / "MANIFEST.json").exists():
            code, output = command.run("run", "smoke", "--run-dir", str(folder), from_scratch=True)
            assert code == 0, output
    return folder


# Enough epochs to stop a training in the middle.
STRAIGHT: dict[str, Any] = {"vae__epochs": 4}


@pytest.fixture(scope="session")
def straight(shared: Path) -> dict[str, Any]:
    """The outcome of a small uninterrupted run; see ``STRAIGHT``."""
    folder = shared / "straight"
    folder.mkdir(exist_ok=True)
    with FileLock(shared / "straight.lock"):
        if not (folder / "run" / "report" / "MANIFEST.json").exists():
            command.uninterrupted(folder, **STRAIGHT)
    return command.outcome(folder / "run")
