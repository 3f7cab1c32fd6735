"""Records and manifests, which define the contents of a run.

A *record* commits one object: its key, size, SHA-256 and rows. A stage's *manifest* seals all its records, with the
part of the config that produced them and the digests of the upstream manifests, and is written last. Both are
create-only. Readers ignore data that no record names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from pipeline.base.errors import AlreadyExistsError, DamagedDataError, StorageError
from pipeline.base.failpoints import failpoint
from pipeline.storage import sealed_json
from pipeline.storage.layout import (
    DATA,
    manifest_key,
    object_key,
    own_keys,
    record_key,
    records_prefix,
    stage_of,
    superseded_key,
)
from pipeline.storage.run_dir import absolute_run, open_other
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Record:
    """One committed object.

    Attributes:
        name: Name of the object, unique within its stage.
        key: Key of the object in the store.
        size_bytes: Size of the object in bytes.
        sha256: SHA-256 (hex) of the object.
        rows: Number of rows; 0 for objects without rows.
        session: Number of the session that committed the object; 0 outside a session.
        info: Further facts that readers need without reading the object.
        run: Location of the run that holds the object, see ``relative_run``; empty for the record's own run.
    """

    name: str
    key: str
    size_bytes: int
    sha256: str
    rows: int = 0
    session: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""


@dataclass(frozen=True)
class Manifest:
    """One sealed stage.

    Attributes:
        stage: Name of the stage.
        config: Identity keys of the stage, by dotted key, see ``Stage.identity``.
        grown: Growable keys of the stage, dotted key to the value it reached.
        upstream: Manifest digest of each stage that it read, by prefix.
        records: Records of the stage by name.
        info: Further facts (seconds, environment steps, versions); not part of the digest.
    """

    stage: str
    config: Mapping[str, Any]
    grown: Mapping[str, Any]
    upstream: Mapping[str, str]
    records: Mapping[str, Record]
    info: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over stage, config, upstream digests and record checksums; downstream stages depend on it."""
        content = {
            "stage": self.stage,
            "config": dict(self.config),
            "upstream": dict(self.upstream),
            "records": {name: record.sha256 for name, record in self.records.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_READERS = 16


def commit(
    store: Store, prefix: str, name: str, data: bytes, *, rows: int = 0, folder: str = DATA, **info: Any
) -> Record:
    """Write an object under a key made unique by its content, then the record that commits it.

    A second commit of the same bytes under the same name succeeds, as a retry finds its own work; other bytes fail.

    Args:
        store: Store of the run.
        prefix: Prefix of the stage.
        name: Name of the object, unique within its stage.
        data: Bytes of the object.
        rows: Number of rows; 0 for objects without rows.
        folder: Folder of the object: ``DATA``, or ``FILES`` for objects that accompany a dataset.
        **info: Further facts for the record.

    Returns:
        Record of the object.

    Raises:
        StorageError: A record of this name commits other bytes.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    key = object_key(prefix, folder, name, sha256)
    record = Record(name, key, len(data), sha256, rows, store.session, info)
    store.write(key, data)
    failpoint("data-written")
    try:
        store.create(record_key(prefix, name), sealed_json.to_bytes(asdict(record)))
    except AlreadyExistsError:
        present = read_record(store, record_key(prefix, name))
        if present.sha256 != sha256:
            raise StorageError(
                f"{store.locate(record_key(prefix, name))} holds other bytes ({present.sha256[:12]}) than the ones "
                f"just computed ({sha256[:12]}). The same config and seed give the same bytes on one kind of CPU with "
                "the same package versions; was this run started on another machine? Both objects are kept",
                resume_after=f"to keep the new one, remove {store.locate(record_key(prefix, name))}",
            ) from None
        return present
    failpoint("record-created")
    return record


def read_records(store: Store, prefix: str) -> dict[str, Record]:
    """All records of a stage by name, sorted by name."""
    # In parallel: a bucket takes as long for one small object as for many at once.
    with ThreadPoolExecutor(_READERS) as threads:
        records = list(threads.map(partial(read_record, store), own_keys(store, records_prefix(prefix))))
    return {record.name: record for record in records}


def read_record(store: Store, key: str) -> Record:
    """One record by its key in the store.

    Raises:
        DamagedDataError: The record is damaged.
        FileNotFoundError: There is no record under this key.
    """
    content = sealed_json.read(store, key, "a record")
    try:
        return Record(**content)
    except TypeError as error:
        raise sealed_json.damaged(store, key, "a record", error) from error


def holder(store: Store, record: Record) -> Store:
    """Store that holds an object: the run's own, or that of the run to which the record refers."""
    return open_other(absolute_run(store.locate(), record.run)) if record.run else store


def read_verified(store: Store, record: Record, prefix: str | None = None) -> bytes:
    """Bytes of an object, verified against its record.

    Args:
        store: Store of the run.
        record: Record of the object.
        prefix: Prefix under which the record lies; default: the stage of the object.

    Raises:
        DamagedDataError: The object is missing, truncated or changed; the message names the file.
    """
    source = holder(store, record)
    try:
        data = source.read(record.key)
    except FileNotFoundError:
        raise DamagedDataError(
            f"{source.locate(record.key)} is missing, though a record commits it",
            resume_after=_restore(store, record, prefix),
        ) from None
    if len(data) != record.size_bytes:
        raise DamagedDataError(
            f"{source.locate(record.key)} has {len(data)} bytes where {record.size_bytes} were committed",
            resume_after=_restore(store, record, prefix),
        )
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedDataError(
            f"{source.locate(record.key)} does not match its committed SHA-256: its bytes have changed",
            resume_after=_restore(store, record, prefix),
        )
    return data


def _restore(store: Store, record: Record, prefix: str | None) -> str:
    """Imperative clause on how to replace a damaged object."""
    prefix = prefix or stage_of(record.key) or ""
    if record.run:
        return (
            f"put the run {holder(store, record).locate()}, to which this one refers, back where it was, or remove "
            f"{store.locate(prefix)} to recompute the stage"
        )
    return (
        f"restore the file from a copy, or remove {store.locate(record_key(prefix, record.name))} and "
        f"{store.locate(manifest_key(prefix))} to recompute it"
    )


def read_manifest(store: Store, prefix: str) -> Manifest | None:
    """Manifest of a stage; None if the stage is not complete.

    Raises:
        DamagedDataError: The manifest is damaged.
    """
    key = manifest_key(prefix)
    try:
        content = sealed_json.read(store, key, "a manifest")
    except FileNotFoundError:
        return None
    try:
        del content["digest"]  # written for other readers; computed from the content here
        content["records"] = {name: Record(**record) for name, record in content["records"].items()}
        return Manifest(**content)
    except (KeyError, TypeError, AttributeError) as error:
        raise sealed_json.damaged(store, key, "a manifest", error) from error


def require_manifest(store: Store, prefix: str) -> Manifest:
    """Manifest of a stage that must be complete.

    Raises:
        StorageError: The stage is not complete.
    """
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise StorageError(
            f"{store.locate(manifest_key(prefix))} is missing: the stage that fills {prefix}/ is not complete. "
            "Run it first, or run the whole pipeline with `world-models run`."
        )
    return manifest


def sealed_records(store: Store, prefixes: Iterable[str]) -> dict[str, Record]:
    """Records of several stages, whose names differ, by name.

    Raises:
        StorageError: A stage is not complete.
    """
    return {name: record for prefix in prefixes for name, record in require_manifest(store, prefix).records.items()}


def require_records(store: Store, prefix: str, names: Collection[str]) -> None:
    """Check that all records that workers reported as committed are in the store.

    Raises:
        StorageError: Records are missing.
    """
    missing = sorted(set(names) - read_records(store, prefix).keys())
    if missing:
        raise StorageError(
            f"{store.locate(prefix)} lacks {len(missing)} of {len(names)} records, {missing[0]} first, though workers "
            "committed them: does every node see the same run directory at this path?",
            resume_after="use a bucket or a folder that all nodes share",
        )


def newest(records: Mapping[str, Record], start: str, end: str = "") -> Record | None:
    """Last record, by name, with this start and end of its name; names contain the generation number."""
    names = [name for name in records if name.startswith(start) and name.endswith(end)]
    return records[max(names)] if names else None


def stale_inputs(store: Store, manifest: Manifest) -> list[str]:
    """Prefixes of the upstream stages that have changed since a stage read them."""
    current = {prefix: read_manifest(store, prefix) for prefix in manifest.upstream}
    return [p for p, now in current.items() if now is None or now.digest != manifest.upstream[p]]


def seal(store: Store, prefix: str, manifest: Manifest) -> None:
    """Write the manifest of a stage, create-only."""
    store.create(manifest_key(prefix), manifest_to_bytes(manifest))


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """Serialise a manifest."""
    return sealed_json.to_bytes({**asdict(manifest), "digest": manifest.digest})


def supersede(store: Store, prefix: str, manifest: Manifest) -> None:
    """Unseal a stage that has grown; its manifest is kept under ``superseded/``, named by its digest."""
    store.write(superseded_key(prefix, manifest.digest), store.read(manifest_key(prefix)))
    failpoint("stage-superseded")
    store.delete(manifest_key(prefix))
