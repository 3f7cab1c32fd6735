"""The resolved config that is saved in the run directory."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.base.errors import DamagedDataError
from pipeline.config import presets, yaml_text
from pipeline.config.schema import RunConfig
from pipeline.storage.layout import CONFIG
from pipeline.storage.store import Store


def saved_config(store: Store, overrides: Iterable[str] = ()) -> RunConfig:
    """Read the config of a run.

    Args:
        store: Store of the run.
        overrides: Overrides "key=value", as for ``load_config``.

    Raises:
        ConfigError: The config was changed by hand, or an override is invalid.
        DamagedDataError: The file does not hold a config.
    """
    where = store.locate(CONFIG)
    document = yaml_text.parse(store.read(CONFIG).decode(), where)
    if not isinstance(document.values, dict):
        raise DamagedDataError(f"{where} does not hold a config: restore it from a copy")
    return presets.with_overrides(document, overrides, where)
