"""One uninterrupted smoke run that the others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import command


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a complete smoke run, in one process. Copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    code, output = command.run("run", "smoke", "--run-dir", str(folder), from_scratch=True)
    assert code == 0, output
    return folder
