"""The config that a run saves."""

from __future__ import annotations

from pipeline.config.presets import dump, load_config
from pipeline.storage.layout import CONFIG
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store


def test_saved_config_is_read_back_with_overrides(store: Store) -> None:
    config = load_config("smoke")
    store.write(CONFIG, dump(config).encode())
    assert saved_config(store) == config
    assert saved_config(store, ["seed=7"]) == config.model_copy(update={"seed": 7})
