"""The config that a run saves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.agent import Agent
from pipeline.base.errors import StorageError
from pipeline.config.presets import dump, load_config
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore
from pipeline.storage.saved_config import require_run, saved_config
from pipeline.storage.store import Store
from pipeline.view.runs import Runs


def test_saved_config_is_read_back_with_overrides(store: Store) -> None:
    config = load_config("smoke")
    store.write(CONFIG, dump(config).encode())
    assert saved_config(store) == config
    assert saved_config(store, ["seed=7"]) == config.model_copy(update={"seed": 7})


def test_missing_run_is_named_by_every_reader_of_its_config(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"holds no run: there is no config\.yaml"):
        saved_config(store)
    with pytest.raises(StorageError, match="nowhere holds no run"):
        Agent.load(tmp_path / "nowhere")


def test_runs_beside_or_inside_a_folder_without_a_run_are_named(tmp_path: Path) -> None:
    for name in ("smoke", "a", "b", "c"):
        LocalStore(tmp_path / name).write(CONFIG, dump(load_config("smoke")).encode())
    for read in (saved_config, require_run, lambda store: Runs(store.locate())):
        with pytest.raises(StorageError, match=rf"Did you mean {tmp_path}/smoke\?"):
            read(LocalStore(tmp_path / "smokey"))
        with pytest.raises(
            StorageError, match=rf"one of its folders: {tmp_path}/a, {tmp_path}/b, {tmp_path}/c, \.\.\."
        ):
            read(LocalStore(tmp_path))
    with pytest.raises(StorageError, match="Start one with `world-models run`"):
        saved_config(LocalStore(tmp_path / "other"))
