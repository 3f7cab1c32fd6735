"""Copying of a run to another location."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from pipeline.base.errors import DamagedDataError, StorageError
from pipeline.base.progress import Progress, Update
from pipeline.storage import sealed_json, sessions
from pipeline.storage.layout import (
    CONFIG,
    REFERRERS,
    SESSIONS,
    TRACKERS,
    occupying_keys,
    own_keys,
    stage_of_manifest,
    stage_of_record,
)
from pipeline.storage.maintenance import map_in_threads
from pipeline.storage.manifest import Record, manifest_to_bytes, read_manifest, read_record, read_verified
from pipeline.storage.references import referred_records
from pipeline.storage.saved_config import require_run
from pipeline.storage.store import Store


def copy_run(source: Store, target: Store) -> int:
    """Copy a run and read every object back. The copy refers to no other run: it has all objects itself.

    Data is copied before records, records before manifests, and the config last, so that a partial copy is not a run.
    An interrupted copy continues.

    Args:
        source: Store of the run.
        target: Empty store, or one that holds an earlier or partial copy of the same run.

    Returns:
        Number of objects.

    Raises:
        StorageError: The source holds no run or has a driver, or the target holds other objects.
        DamagedDataError: An object of the copy differs from the source.
    """
    require_run(source)
    if source.locate() == target.locate():
        raise StorageError(f"{target.locate()} is the run itself: choose another place for the copy")
    last = sessions.last_session(source)
    if last is not None and not last.over:
        raise StorageError(
            f"{source.locate()} is in use by {last.owner}: a copy would not be a consistent snapshot. Stop it first."
        )
    elsewhere = referred_records(source)
    # Other runs and trackers know the source, not the copy.
    own = [key for key in own_keys(source) if not key.startswith((REFERRERS, TRACKERS))]
    keys = sorted([*own, *elsewhere], key=_copy_order)
    if strangers := {key for key in occupying_keys(target) if not key.startswith(REFERRERS)} - set(keys):
        raise StorageError(
            f"{target.locate()} holds other files, such as {target.locate(min(strangers))}: choose an empty place"
        )
    with Progress("copy", "object") as show:
        for order in sorted({_copy_order(key)[0] for key in keys}):
            batch = [key for key in keys if _copy_order(key)[0] == order]
            done = sum(_copy_order(key)[0] < order for key in keys)
            copied = map_in_threads(lambda key: _copy_object(source, target, key, elsewhere.get(key)), batch)
            for count, _ in enumerate(copied, done + 1):
                show(Update(count, len(keys)))
    if sessions.session_numbers(source) != ([] if last is None else [*range(1, last.owner.number + 1)]):
        raise StorageError(
            f"{source.locate()} was changed while it was copied: the copy is not a consistent snapshot. Copy it again."
        )
    if last is not None and last.ended is None:
        # The copy has no driver.
        sessions.end_session(target, last.owner.number, "copied")
    return len(keys)


def _copy_order(key: str) -> tuple[int, str]:
    """Sort key for copying: data, records, manifests, then the config."""
    order = 3 if key == CONFIG else 2 if stage_of_manifest(key) else 1 if stage_of_record(key) else 0
    return order, key


def _copy_object(source: Store, target: Store, key: str, elsewhere: Record | None) -> None:
    data = read_verified(source, elsewhere) if elsewhere is not None else _without_references(source, target, key)
    if target.exists(key):
        if target.read(key) == data:
            return
        if not key.startswith(SESSIONS):
            raise StorageError(
                f"{target.locate(key)} exists and is another than {source.locate(key)}: choose an empty place"
            )
    target.write(key, data)
    if hashlib.sha256(target.read(key)).digest() != hashlib.sha256(data).digest():
        raise DamagedDataError(f"{target.locate(key)} differs from the bytes that were written", resume_after="")


def _without_references(source: Store, target: Store, key: str) -> bytes:
    """Bytes of an object; a record or a manifest as it is where all objects lie in the run itself.

    The object of a record is verified in the target, where it was copied first.
    """
    if (stage := stage_of_record(key)) is not None:
        record = read_record(source, key)
        whole = replace(record, run="")
        read_verified(target, whole, stage)
        return sealed_json.to_bytes(asdict(whole)) if record.run else source.read(key)
    prefix = stage_of_manifest(key)
    manifest = read_manifest(source, prefix) if prefix is not None else None
    if manifest is None or not any(record.run for record in manifest.records.values()):
        return source.read(key)
    records = {name: replace(record, run="") for name, record in manifest.records.items()}
    return manifest_to_bytes(replace(manifest, records=records))
