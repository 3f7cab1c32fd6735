"""The config that a run saves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.agent import Agent
from pipeline.base.errors import StorageError
from pipeline.config.presets import dump, load_config
from pipeline.storage.layout import CONFIG
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store


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
