"""Records and manifests: what a run's readers trust.

A *record* commits one object: its key, size, SHA-256 and rows. A stage's *manifest* seals all its records, with the
part of the config they came from and the digests of the manifests upstream, and is written last. Both are create-only.
Whatever no record names does not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import AlreadyExistsError, DamagedDataError, StorageError
from pipeline.storage.store import Store

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One committed object."""

    name: str
    key: str
    size_bytes: int
    sha256: str
    rows: int = 0
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


def manifest_key(prefix: str) -> str:
    return f"{prefix}/MANIFEST.json"


def _record_key(prefix: str, name: str) -> str:
    return f"{prefix}/records/{name}.json"


def commit(store: Store, prefix: str, name: str, data: bytes, *, rows: int = 0, **info: Any) -> Record:
    """Write an object under a key made unique by its content, then the record that commits it.

    A second commit of the same bytes under the same name is no error (a retry met its own work); of other bytes it is.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    path = PurePosixPath(name)
    key = f"{prefix}/data/{path.stem}-{sha256[:12]}{path.suffix}"
    record = Record(name=name, key=key, size_bytes=len(data), sha256=sha256, rows=rows, info=info)
    store.write(key, data)
    try:
        store.create(_record_key(prefix, name), json.dumps(asdict(record)).encode())
    except AlreadyExistsError:
        present = read_records(store, prefix)[name]
        if present.sha256 != sha256:
            raise StorageError(
                f"{store.locate(_record_key(prefix, name))} commits other bytes ({present.sha256[:12]}) than were "
                f"made now ({sha256[:12]}). The same config and seed give the same bytes on one kind of CPU with the "
                "same package versions; was this run begun on another machine? Both objects are kept. To go on with "
                f"the new one, remove {store.locate(_record_key(prefix, name))} and run the same command again."
            ) from None
        return present
    return record


def read_records(store: Store, prefix: str) -> dict[str, Record]:
    """All records of a stage, name to record, sorted by name."""
    records = {}
    for key in store.list(f"{prefix}/records/"):
        try:
            record = Record(**json.loads(store.read(key)))
        except (ValueError, TypeError) as error:
            raise DamagedDataError(f"{store.locate(key)} is not a record: {error}. {_remedy(store, key)}") from error
        records[record.name] = record
    return records


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
    prefix = prefix or record.key.split("/data/")[0]
    return (
        f"Restore the file from a copy; or have it made anew: remove {store.locate(_record_key(prefix, record.name))} "
        f"and {store.locate(manifest_key(prefix))}, then run the same command again."
    )


def _remedy(store: Store, key: str) -> str:
    return f"Remove {store.locate(key)} and run the same command again: what it committed is made anew."


def read_manifest(store: Store, prefix: str) -> Manifest | None:
    """A stage's manifest; None where the stage is not complete."""
    key = manifest_key(prefix)
    try:
        data = store.read(key)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
        version = content["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedDataError(f"{store.locate(key)} is not a manifest: {error!r}. {_remedy(store, key)}") from error
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{store.locate(key)} has run format {version}; this version reads format {FORMAT_VERSION}. "
            "Use the version that wrote the run, or begin a new --run-dir."
        )
    if content.pop("checksum", None) != _checksum(content):
        raise DamagedDataError(
            f"{store.locate(key)} does not match its own checksum: it was changed. {_remedy(store, key)}"
        )
    try:
        del content["format_version"], content["digest"]  # the digest is for other readers; it is worked out anew
        content["records"] = {name: Record(**record) for name, record in content["records"].items()}
        return Manifest(**content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedDataError(f"{store.locate(key)} is not a manifest: {error!r}. {_remedy(store, key)}") from error


def require_manifest(store: Store, prefix: str) -> Manifest:
    """The manifest of a stage that another one reads from."""
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise StorageError(
            f"{store.locate(manifest_key(prefix))} is missing: the stage that fills {prefix}/ is not complete. "
            "Run it first, or run the whole pipeline with `world-models run`."
        )
    return manifest


def newest(records: Mapping[str, Record], start: str) -> Record | None:
    """The record whose name begins so and sorts last: names carry the generation they are of."""
    names = [name for name in records if name.startswith(start)]
    return records[max(names)] if names else None


def outgrown(store: Store, manifest: Manifest) -> list[str]:
    """The prefixes that a stage read and that are no longer what it read."""
    current = {prefix: read_manifest(store, prefix) for prefix in manifest.upstream}
    return [p for p, now in current.items() if now is None or now.digest != manifest.upstream[p]]


def seal(store: Store, prefix: str, manifest: Manifest) -> None:
    """Write a stage's manifest, create-only."""
    content = {"format_version": FORMAT_VERSION, **asdict(manifest), "digest": manifest.digest}
    content["checksum"] = _checksum(content)
    store.create(manifest_key(prefix), json.dumps(content, indent=1).encode())


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all that a manifest file says, in whatever order and layout."""
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def supersede(store: Store, prefix: str, manifest: Manifest) -> None:
    """Take the seal off a stage that has grown; the manifest is kept beside, under its digest."""
    store.write(f"{prefix}/superseded/{manifest.digest[:12]}.json", store.read(manifest_key(prefix)))
    store.delete(manifest_key(prefix))
