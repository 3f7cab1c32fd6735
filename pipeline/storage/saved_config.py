"""The resolved config that a run keeps in its directory."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.base.errors import ConfigError, DamagedDataError, StorageError
from pipeline.config import presets, yaml_text
from pipeline.config.schema import RunConfig
from pipeline.storage.layout import CONFIG, SESSIONS
from pipeline.storage.sealed import FORMAT_VERSION, OTHER_VERSION
from pipeline.storage.store import Store


def saved_config(store: Store, overrides: Iterable[str] = ()) -> RunConfig:
    """Read it, with overrides as ``load_config`` takes them.

    Raises:
        ConfigError: it was changed by hand, or an override is wrong.
        StorageError: the run is of another format.
    """
    where = store.locate(CONFIG)
    document = yaml_text.parse(store.read(CONFIG).decode(), where)
    if not isinstance(document.values, dict):
        raise DamagedDataError(f"{where} holds no config: restore it from a copy")
    try:
        return presets.with_overrides(document, overrides, where)
    except ConfigError as error:
        if store.list(SESSIONS):
            raise
        # Keys had other names in other formats: to mend them by hand would be of no use.
        raise StorageError(
            f"{store.locate()} holds a run of another format: it has no {SESSIONS}, and its config has other keys "
            f"({error}). This version reads format {FORMAT_VERSION}. {OTHER_VERSION}"
        ) from error
