"""The resolved config that is saved in the run directory."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from pipeline.base.errors import DamagedDataError, StorageError
from pipeline.config import presets, yaml_text
from pipeline.config.schema import RunConfig
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore
from pipeline.storage.store import Store

_SHOWN = 3  # runs in a message


def saved_config(store: Store, overrides: Iterable[str] = ()) -> RunConfig:
    """Read the config of a run.

    Args:
        store: Store of the run.
        overrides: Overrides "key=value", as for ``load_config``.

    Raises:
        ConfigError: The config was changed by hand, or an override is invalid.
        DamagedDataError: The file does not hold a config.
        StorageError: The store holds no run.
    """
    where = store.locate(CONFIG)
    try:
        text = store.read(CONFIG).decode()
    except FileNotFoundError as error:
        raise _no_run(store) from error
    document = yaml_text.parse(text, where)
    if not isinstance(document.values, dict):
        raise DamagedDataError(f"{where} does not hold a config: restore it from a copy")
    return presets.with_overrides(document, overrides, where)


def require_run(store: Store) -> None:
    """Check that a store holds a run, for callers that do not read its config.

    Raises:
        StorageError: The store has no config.
    """
    if not store.exists(CONFIG):
        raise _no_run(store)


def _no_run(store: Store) -> StorageError:
    return StorageError(
        f"{store.locate()} holds no run: there is no {CONFIG}. "
        f"{runs_hint(store) or 'Start one with `world-models run`.'}"
    )


def runs_hint(store: Store) -> str:
    """Sentence on runs in a folder that holds none itself, or on one next to it; empty if there are none."""
    if not isinstance(store, LocalStore):
        return ""
    if inside := _runs_in(store.root):
        shown = ", ".join(str(path) for path in inside[:_SHOWN])
        return f"Name one of its folders: {shown}{', ...' if len(inside) > _SHOWN else ''}"
    neighbours = {path.name: path for path in _runs_in(store.root.parent)}
    close = difflib.get_close_matches(store.root.name, neighbours, n=1)
    return f"Did you mean {neighbours[close[0]]}?" if close else ""


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
