"""Small JSON objects with the version of the run format and their own checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import DamagedDataError, StorageError
from pipeline.storage.layout import SESSIONS, manifest_key, stage_of_record
from pipeline.storage.store import Store

# Version of the run directory: its names, its JSON, and the columns of its Parquet files.
FORMAT_VERSION = 3


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Serialise content with the format version and a checksum."""
    versioned = {"format_version": FORMAT_VERSION, **content}
    return json.dumps({**versioned, "checksum": checksum(versioned)}, indent=1).encode()


def read(store: Store, key: str, what: str) -> dict[str, Any]:
    """Read content that ``to_bytes`` wrote, without the version and the checksum.

    Args:
        store: Store of the run.
        key: Key of the object.
        what: Expected kind of object, for messages: "a manifest".

    Raises:
        FileNotFoundError: There is no object.
        DamagedDataError: The object is not valid or was changed.
        StorageError: The object has a format that this version does not read.
    """
    try:
        content = json.loads(store.read(key))
        found = content.pop("checksum", None)
        version = content.pop("format_version", None)
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(store, key, what, error) from error
    if version != FORMAT_VERSION:
        format_found = "no run format" if version is None else f"run format {version}"
        raise StorageError(
            f"{store.locate(key)} has {format_found}; this version reads format {FORMAT_VERSION}. "
            "Use the version that wrote the run, or choose a new --run-dir."
        )
    if found != checksum({"format_version": version, **content}):
        raise DamagedDataError(
            f"{store.locate(key)} does not match its own checksum: it was changed", resume_after=remedy(store, key)
        )
    return dict(content)


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the content, independent of key order and layout."""
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def damaged(store: Store, key: str, what: str, error: Exception) -> DamagedDataError:
    """Error for an invalid object, with advice.

    Args:
        store: Store of the run.
        key: Key of the object.
        what: Expected kind of object: "a manifest".
        error: Cause.
    """
    return DamagedDataError(f"{store.locate(key)} is not {what}: {error!r}", resume_after=remedy(store, key))


def remedy(store: Store, key: str) -> str:
    """Imperative clause on how to replace a damaged small object."""
    if key.startswith(SESSIONS):
        return "restore it from a copy or, if the run has no driver, remove it"
    prefix = stage_of_record(key)
    sealed = prefix is not None and store.exists(manifest_key(prefix))
    manifest = f" and {store.locate(manifest_key(prefix))}" if prefix is not None and sealed else ""
    return f"restore it from a copy, or remove {store.locate(key)}{manifest} to recompute it"
