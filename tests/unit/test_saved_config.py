"""The config that a run keeps, read again."""

from __future__ import annotations

import pytest

from pipeline.base.errors import ConfigError, StorageError
from pipeline.config.presets import dump, load_config
from pipeline.storage.layout import CONFIG
from pipeline.storage.lease import Lease
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store


def test_it_comes_back_as_it_was_with_overrides(store: Store) -> None:
    config = load_config("smoke")
    store.write(CONFIG, dump(config).encode())
    assert saved_config(store) == config
    assert saved_config(store, ["seed=7"]) == config.model_copy(update={"seed": 7})


def test_a_run_of_another_format_is_refused_as_such_and_not_for_its_keys(store: Store) -> None:
    store.write(CONFIG, b"evaluate: {gif_seconds: 3}\n")
    with pytest.raises(StorageError, match=r"another format.*evaluate\.gif_seconds.*This version reads format"):
        saved_config(store)
    with Lease(store, "run", heartbeat_s=60.0, expiry_s=600.0, about={}):
        pass
    with pytest.raises(ConfigError, match=r"unknown key evaluate\.gif_seconds"):
        saved_config(store)
