"""Files of file managers, network file systems and people in a run directory: they are left alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.layout import foreign_keys
from pipeline.storage.local import LocalStore
from tests.e2e import command

# macOS, its resource forks on foreign disks, NFS, Windows, an editor, Dropbox, a person
NAMES = (
    ".DS_Store", "._shard-00000.parquet.json", ".nfs000000000001f8ab00000001", "Thumbs.db", "notes.json~",
    "00000001-000001 (conflicted copy).json", "notes.txt",
)  # fmt: skip


def add_foreign_files(folder: Path) -> Iterator[Path]:
    """Files of these names in a run directory and everywhere below it."""
    for place in (folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir() and path.name != ".tmp")):
        for name in NAMES:
            (place / name).write_bytes(b"\0\0\0\1Bud1")
            yield place / name


@pytest.fixture
def cluttered_run(smoke_run: Path, tmp_path: Path) -> Path:
    """A run that is complete except for its evaluation, with foreign files in every folder."""
    folder = shutil.copytree(smoke_run, tmp_path / "run")
    (folder / "evaluation" / "MANIFEST.json").unlink()
    list(add_foreign_files(folder))
    return folder


def test_complete_run_has_no_foreign_names(smoke_run: Path) -> None:
    assert foreign_keys(LocalStore(smoke_run)) == []


def test_check_counts_foreign_files_and_no_command_changes_them(
    smoke_run: Path, cluttered_run: Path, tmp_path: Path
) -> None:
    foreign = {path: path.read_bytes() for path in cluttered_run.rglob("*") if path.name in NAMES}
    assert len(foreign) > 100
    code, output = command.run("status", str(cluttered_run))
    assert code == 0, output
    assert "generation 3 of 3" in output
    code, output = command.run("resume", str(cluttered_run))
    assert code == 0, output
    assert command.outcome(cluttered_run) == command.outcome(smoke_run)
    code, output = command.run("storage", "check", str(cluttered_run))
    assert code == 0, output
    assert ", 0 problems" in output
    assert f"{len(foreign)} foreign files, left alone, such as {cluttered_run}/.DS_Store" in output
    code, output = command.run("storage", "gc", str(cluttered_run), "--delete")
    assert code == 0, output
    assert {path: path.read_bytes() for path in foreign} == foreign
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / ".DS_Store").touch()
    code, output = command.run("storage", "copy", str(cluttered_run), str(tmp_path / "copy"))
    assert code == 0, output
    assert foreign_keys(LocalStore(tmp_path / "copy")) == [".DS_Store"]


def test_folder_with_only_system_files_is_empty(tmp_path: Path) -> None:
    for name in (".gitkeep", ".DS_Store", ".ipynb_checkpoints/run.ipynb", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    code, output = command.run("collect", "smoke", "--run-dir", str(tmp_path))
    assert code == 0, output
