"""A disk that fills up, or turns read-only, under a running driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.failpoints import VARIABLE
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from tests.e2e import command
from tests.e2e.conftest import STRAIGHT


def _mount(*arguments: str) -> bool:
    return shutil.which("mount") is not None and subprocess.run(["mount", *arguments], check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=600m", "tmpfs", str(folder)):
        pytest.skip("mounting a disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"\0" * 2**16)
        except OSError:
            os.fsync(ballast.fileno())


def read_only(disk: Path) -> None:
    assert _mount("-o", "remount,ro", str(disk))


def repair(disk: Path) -> None:
    assert _mount("-o", "remount,rw", str(disk))
    (disk / "ballast").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("break_it", "where", "said"),
    [
        # Half of a checkpoint is written: the other half does not fit.
        (fill, "object-half-written@30", "No space left on device"),
        # No file is open at this failpoint; an open file would prevent the remount.
        (read_only, "checkpoint-recorded@3", "Read-only file system"),
    ],
    ids=["full", "ro"],
)
def test_full_disk_ends_the_driver_and_loses_no_data(
    disk: Path, tmp_path: Path, straight: dict[str, Any], break_it: Callable[[Path], None], where: str, said: str
) -> None:
    preset, folder = command.counting_preset(tmp_path, **STRAIGHT), disk / "run"
    # Heartbeats would pass the failpoint as well, and have a file open.
    no_heartbeats = ("-o", "storage.heartbeat_s=1e6", "-o", "storage.lease_expiry_s=1e7")
    arguments = ("run", preset, "--run-dir", str(folder), *no_heartbeats)
    driver = command.Command(*arguments, environment={VARIABLE: f"{where}:freeze"})
    driver.wait_until_frozen()
    assert command.checkpointed(folder, "vae", 1)() and not (folder / "vae" / "MANIFEST.json").exists()
    break_it(disk)
    driver.unfreeze()
    code, output = driver.finish()
    assert code == 1, output
    assert f"cannot write {folder}" in output
    assert said in output
    assert "Completed work is saved" in output
    assert "Traceback" not in output
    assert check_run(LocalStore(folder)).problems == []
    latest = Checkpoints(LocalStore(folder), "vae").latest()
    assert latest is not None and latest[0] >= 1
    repair(disk)
    code, output = command.run(*arguments)
    assert code == 0, output
    assert "train-vae: resuming at step" in output
    assert command.outcome(folder) == straight
