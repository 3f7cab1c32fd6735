"""One uninterrupted smoke run that the others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from tests.e2e import command


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The run directory of a complete smoke run, in one process. Copy it before changing anything in it.

    One for all processes of pytest-xdist: the first that wants it makes it.
    """
    mine = tmp_path_factory.getbasetemp()
    shared = mine if worker_id == "master" else mine.parent
    folder = shared / "smoke" / "run"
    with FileLock(shared / "smoke.lock"):
        if not (folder / "report" / "MANIFEST.json").exists():
            code, output = command.run("run", "smoke", "--run-dir", str(folder), from_scratch=True)
            assert code == 0, output
    return folder
