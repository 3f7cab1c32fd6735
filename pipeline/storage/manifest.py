"""Records and manifests: what a run's readers trust.

A *record* commits one object: its key, size, SHA-256 and rows. A stage's *manifest* seals all its records, with the
part of the config they came from and the digests of the manifests upstream, and is written last. Both are create-only.
Whatever no record names does not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from pipeline.base.errors import AlreadyExistsError, DamagedDataError, StorageError
from pipeline.base.failpoints import failpoint
from pipeline.storage import sealed
from pipeline.storage.layout import (
    manifest_key,
    object_key,
    own_keys,
    record_key,
    records_prefix,
    stage_of,
    superseded_key,
)
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Record:
    """One committed object.

    Attributes:
        name: within its stage.
        key: of the object in the store.
        size_bytes, sha256: of its bytes.
        rows: that it holds, where that means something.
        session: of the session that committed it; 0 outside of one.
        info: what else is worth knowing without reading the object.
    """

    name: str
    key: str
    size_bytes: int
    sha256: str
    rows: int = 0
    session: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """One sealed stage.

    Attributes:
        stage: the stage's name.
        config: the identity keys it came from, dotted key to value.
        grown: the growable keys it was taken to, dotted key to value.
        upstream: prefix of each stage it read, to the digest of its manifest.
        records: name to record.
        info: what else is worth knowing (seconds, environment steps, versions); no part of the digest.
    """

    stage: str
    config: Mapping[str, Any]
    grown: Mapping[str, Any]
    upstream: Mapping[str, str]
    records: Mapping[str, Record]
    info: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides what a reader downstream sees."""
        content = {
            "stage": self.stage,
            "config": dict(self.config),
            "upstream": dict(self.upstream),
            "records": {name: record.sha256 for name, record in self.records.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_READERS = 16


def commit(
    store: Store, prefix: str, name: str, data: bytes, *, rows: int = 0, folder: str = "data", **info: Any
) -> Record:
    """Write an object under a key made unique by its content, then the record that commits it.

    A second commit of the same bytes under the same name is no error (a retry met its own work); of other bytes it is.

    Args:
        store, prefix: Store of the run, prefix of the stage.
        name: Name of the object within its stage.
        data: Bytes of the object.
        rows: Number of its rows, where that means something.
        folder: Folder of the object: ``data``, or ``files`` for what lies beside a dataset without being part of it.
        info: Further facts for the record.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    key = object_key(prefix, folder, name, sha256)
    record = Record(name, key, len(data), sha256, rows, store.session, info)
    store.write(key, data)
    failpoint("data-written")
    try:
        store.create(record_key(prefix, name), sealed.to_bytes(asdict(record)))
    except AlreadyExistsError:
        present = read_record(store, record_key(prefix, name))
        if present.sha256 != sha256:
            raise StorageError(
                f"{store.locate(record_key(prefix, name))} commits other bytes ({present.sha256[:12]}) than were "
                f"made now ({sha256[:12]}). The same config and seed give the same bytes on one kind of CPU with the "
                "same package versions; was this run begun on another machine? Both objects are kept. To go on with "
                f"the new one, remove {store.locate(record_key(prefix, name))} and run the same command again."
            ) from None
        return present
    failpoint("record-created")
    return record


def read_records(store: Store, prefix: str) -> dict[str, Record]:
    """All records of a stage, name to record, sorted by name."""
    # Several at a time: a bucket takes as long for one small object as for many.
    with ThreadPoolExecutor(_READERS) as threads:
        records = list(threads.map(partial(read_record, store), own_keys(store, records_prefix(prefix))))
    return {record.name: record for record in records}


def read_record(store: Store, key: str) -> Record:
    """One record, by its own key."""
    content = sealed.read(store, key, "a record")
    try:
        return Record(**content)
    except TypeError as error:
        raise sealed.damaged(store, key, "a record", error) from error


def read_verified(store: Store, record: Record, prefix: str | None = None) -> bytes:
    """An object's bytes, checked against its record.

    Raises:
        DamagedDataError: the object is missing, truncated or changed; the message names the file.
    """
    try:
        data = store.read(record.key)
    except FileNotFoundError:
        raise DamagedDataError(
            f"{store.locate(record.key)} is missing, though a record commits it. {_restore(store, record, prefix)}"
        ) from None
    if len(data) != record.size_bytes:
        raise DamagedDataError(
            f"{store.locate(record.key)} has {len(data)} bytes where {record.size_bytes} were committed. "
            f"{_restore(store, record, prefix)}"
        )
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedDataError(
            f"{store.locate(record.key)} does not have the SHA-256 that was committed: its bytes have changed. "
            f"{_restore(store, record, prefix)}"
        )
    return data


def _restore(store: Store, record: Record, prefix: str | None) -> str:
    prefix = prefix or stage_of(record.key) or ""
    return (
        f"Restore the file from a copy; or have it made anew: remove {store.locate(record_key(prefix, record.name))} "
        f"and {store.locate(manifest_key(prefix))}, then run the same command again."
    )


def read_manifest(store: Store, prefix: str) -> Manifest | None:
    """A stage's manifest; None where the stage is not complete."""
    key = manifest_key(prefix)
    try:
        content = sealed.read(store, key, "a manifest")
    except FileNotFoundError:
        return None
    try:
        del content["digest"]  # for other readers; it is worked out anew
        content["records"] = {name: Record(**record) for name, record in content["records"].items()}
        return Manifest(**content)
    except (KeyError, TypeError, AttributeError) as error:
        raise sealed.damaged(store, key, "a manifest", error) from error


def require_manifest(store: Store, prefix: str) -> Manifest:
    """The manifest of a stage that another one reads from."""
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise StorageError(
            f"{store.locate(manifest_key(prefix))} is missing: the stage that fills {prefix}/ is not complete. "
            "Run it first, or run the whole pipeline with `world-models run`."
        )
    return manifest


def require_records(store: Store, prefix: str, names: Collection[str]) -> None:
    """Refuse to seal a stage whose workers said that they committed what is not here.

    Raises:
        StorageError: records are missing.
    """
    missing = sorted(set(names) - read_records(store, prefix).keys())
    if missing:
        raise StorageError(
            f"{store.locate(prefix)} lacks {len(missing)} of {len(names)} records, {missing[0]} first, though workers "
            "committed them: does every node see this run directory at the same place? Use a bucket, or a folder that "
            "all of them share, and run the same command again."
        )


def newest(records: Mapping[str, Record], start: str, end: str = "") -> Record | None:
    """The record whose name begins and ends so and sorts last: names carry the generation they are of."""
    names = [name for name in records if name.startswith(start) and name.endswith(end)]
    return records[max(names)] if names else None


def outgrown(store: Store, manifest: Manifest) -> list[str]:
    """The prefixes that a stage read and that are no longer what it read."""
    current = {prefix: read_manifest(store, prefix) for prefix in manifest.upstream}
    return [p for p, now in current.items() if now is None or now.digest != manifest.upstream[p]]


def seal(store: Store, prefix: str, manifest: Manifest) -> None:
    """Write a stage's manifest, create-only."""
    store.create(manifest_key(prefix), sealed.to_bytes({**asdict(manifest), "digest": manifest.digest}))


def supersede(store: Store, prefix: str, manifest: Manifest) -> None:
    """Take the seal off a stage that has grown; the manifest is kept beside, under its digest."""
    store.write(superseded_key(prefix, manifest.digest), store.read(manifest_key(prefix)))
    failpoint("stage-superseded")
    store.delete(manifest_key(prefix))
