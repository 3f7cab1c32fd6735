"""Maintenance of a run directory: verify it, and remove unused objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.base.errors import ConfigError, DamagedDataError
from pipeline.base.formatting import size
from pipeline.base.progress import Progress, Update
from pipeline.storage import sealed_json
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import (
    foreign_keys,
    is_sealed_note,
    manifest_key,
    own_keys,
    place_and_stage,
    records_prefix,
    referrer_key,
    stage_of,
    stage_of_checkpoint,
    stage_of_manifest,
    stage_of_record,
)
from pipeline.storage.local import temporary_keys
from pipeline.storage.manifest import (
    Record,
    holder,
    read_manifest,
    read_record,
    read_verified,
    stale_inputs,
)
from pipeline.storage.parquet import num_rows
from pipeline.storage.references import keys_used_by, referrers
from pipeline.storage.saved_config import require_run, saved_config
from pipeline.storage.store import Store

Item = TypeVar("Item")

_THREADS = 8


@dataclass
class Check:
    """Result of the verification of a run.

    Attributes:
        objects: Number of verified objects.
        rows: Number of verified rows.
        size_bytes: Size of the verified objects in bytes.
        manifests: Number of sealed stages.
        problems: Messages about damaged, missing or inconsistent objects.
        unnamed: Keys of data that no record names; not damage.
        foreign: Keys that this program never writes; not damage, and left alone.
        elsewhere: Number of the verified objects that other runs hold, by the location of the run.
        referrers: Locations of the runs that refer to stages of this one.
    """

    objects: int = 0
    rows: int = 0
    size_bytes: int = 0
    manifests: int = 0
    problems: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)
    referrers: list[str] = field(default_factory=list)


def check_run(store: Store) -> Check:
    """Read every committed byte of a run and verify it.

    Raises:
        StorageError: The store holds no run, or its format is not supported by this version.
    """
    require_run(store)
    found = Check()
    keys = own_keys(store)
    records = [key for key in keys if stage_of_record(key) is not None]
    with Progress("check", "object") as show:
        for count, (key, outcome) in enumerate(map_in_threads(lambda key: _verify(store, key), records), 1):
            if isinstance(outcome, str):
                found.problems.append(outcome)
            elif outcome is not None:
                found.objects += 1
                found.rows += outcome.rows
                found.size_bytes += outcome.size_bytes
                if outcome.run:
                    where = holder(store, outcome).locate()
                    found.elsewhere[where] = found.elsewhere.get(where, 0) + 1
            show(Update(count, len(records), {"at": stage_of_record(key)}))
    for key in keys:
        prefix = stage_of_manifest(key)
        if prefix is not None:
            found.problems += _manifest_problems(store, prefix)
            found.manifests += 1
    found.problems += _note_problems(store, keys)
    found.unnamed = unnamed_data(store, keys)
    found.foreign = foreign_keys(store)
    if not found.problems:  # otherwise a note may be damaged
        found.referrers = [referrer.locate() for referrer in referrers(store).values()]
    return found


def _verify(store: Store, record_key: str) -> Record | str | None:
    """Verify one object: its record, or a message if it is damaged, or None if it was removed in the meantime."""
    try:
        record = read_record(store, record_key)
        data = read_verified(store, record, stage_of_record(record_key))
        if record.key.endswith(".parquet"):
            where = holder(store, record).locate(record.key)
            rows = num_rows(data, where)
            if rows != record.rows:
                return f"{where} has {rows} rows where {record.rows} were committed"
    except FileNotFoundError:
        return None
    except DamagedDataError as error:
        # A running driver may be pruning this checkpoint: it removes the record first, then the bytes.
        return str(error) if store.exists(record_key) else None
    return record


def _note_problems(store: Store, keys: list[str]) -> list[str]:
    """Problems of the small objects that a run needs to resume: its config and the objects with their own checksum."""
    problems = []
    try:
        saved_config(store)
    except (ConfigError, DamagedDataError) as error:
        problems.append(str(error))
    for key in keys:
        if is_sealed_note(key):
            try:
                sealed_json.read(store, key, "JSON with a checksum")
            except DamagedDataError as error:
                problems.append(str(error))
    return problems


def _manifest_problems(store: Store, prefix: str) -> list[str]:
    """Differences between a sealed stage and its manifest."""
    try:
        manifest = read_manifest(store, prefix)
        assert manifest is not None
        named = manifest.records
        present = {key: read_record(store, key) for key in own_keys(store, records_prefix(prefix))}
    except DamagedDataError as error:
        return [str(error)]
    where = store.locate(manifest_key(prefix))
    by_name = {record.name: record for record in present.values()}
    problems = [
        f"{where} names {name}, and no record does: restore the record from a copy"
        for name in named
        if name not in by_name
    ]
    problems += [
        f"{where} and the record of {name} have different checksums"
        for name, record in by_name.items()
        if name in named and named[name].sha256 != record.sha256
    ]
    problems += [
        f"{where} was made from another {upstream}/ than the current one" for upstream in stale_inputs(store, manifest)
    ]
    return problems


def unnamed_data(store: Store, keys: list[str]) -> list[str]:
    """Keys of data that no record names: writes that were never committed, and pruned checkpoints.

    If a record is damaged or vanishes in the meantime, its data is unknown, so the whole stage is left out.
    """
    unnamed = []
    stages = {key: stage_of(key) for key in keys}
    for prefix in sorted({stage for stage in stages.values() if stage is not None}):
        try:
            named = {read_record(store, key).key for key in keys if stage_of_record(key) == prefix}
            manifest = read_manifest(store, prefix)
        except (DamagedDataError, FileNotFoundError):
            continue
        # Sealed data whose record is gone is damage to repair, not garbage.
        named |= {record.key for record in manifest.records.values()} if manifest is not None else set()
        unnamed += [key for key in keys if stages[key] == prefix and key not in named]
    return unnamed


@dataclass
class Garbage:
    """Objects that a run no longer needs.

    Attributes:
        data: Keys of data that no record names, here or in a run that refers to this one.
        notes: Keys of notes of runs that no longer refer to this one.
        unknown: Locations of runs that refer to this one and cannot be read: no data is garbage then.
        checkpoints: Old checkpoints as (prefix of the stage, name).
        leftovers: Keys of temporary files of killed writers.
    """

    data: list[str]
    notes: list[str]
    unknown: list[str]
    checkpoints: list[tuple[str, str]]
    leftovers: Sequence[str]

    def __len__(self) -> int:
        return len(self.data) + len(self.notes) + len(self.checkpoints) + len(self.leftovers)


def find_garbage(store: Store, keep: Callable[[str], int]) -> Garbage:
    """Find data that no record names, old checkpoints and leftovers of killed writers.

    Args:
        store: Store of the run.
        keep: Number of checkpoints to keep, as a function of the stage's prefix.

    Raises:
        StorageError: The store holds no run.
    """
    require_run(store)
    keys = own_keys(store)
    old = []
    for prefix in sorted({stage for key in keys if (stage := stage_of_checkpoint(key)) is not None}):
        checkpoints = Checkpoints(store, prefix)
        whole = 0
        # A damaged checkpoint does no harm and can be restored; it is kept and not counted.
        for name in reversed(checkpoints.names()):
            if whole >= keep(prefix):
                old.append((prefix, name))
            elif _is_whole(checkpoints, name):
                whole += 1
    notes = referrers(store)
    used = {note: keys_used_by(referrer, store) for note, referrer in notes.items()}
    unknown = [notes[note].locate() for note, of_run in used.items() if of_run is None]
    kept = {key for of_run in used.values() for key in of_run or ()}
    data = [] if unknown else [key for key in unnamed_data(store, keys) if key not in kept]
    stale = [note for note, of_run in used.items() if of_run is not None and not of_run]
    return Garbage(data, stale, unknown, old, temporary_keys(store))


def _is_whole(checkpoints: Checkpoints, name: str) -> bool:
    try:
        checkpoints.read(name)
    except DamagedDataError:
        return False
    return True


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove garbage. Call this only inside a session: another writer may have data that no record names yet.

    Args:
        store: Store of the run, fenced by the session.
        garbage: Objects to remove.
    """
    for key in [*garbage.data, *garbage.notes, *garbage.leftovers]:
        store.delete(key)
    for prefix, name in garbage.checkpoints:
        Checkpoints(store, prefix).remove(name)


def map_in_threads(work: Callable[[str], Item], keys: list[str]) -> Iterator[tuple[str, Item]]:
    """Map a function over keys with several threads, in order, as (key, result)."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from zip(keys, threads.map(work, keys), strict=True)


def check_lines(check: Check, store: Store) -> list[str]:
    """Lines of the output of ``storage check``."""
    lines = [f"damaged: {problem}" for problem in check.problems]
    lines.append(
        f"{store.locate()}: {check.objects:,} objects, {size(check.size_bytes)}, {check.rows:,} rows verified, "
        f"{check.manifests} stages sealed, {len(check.problems)} problem{'s' * (len(check.problems) != 1)}"
    )
    lines += [f"  {count:,} of the objects lie in {run}" for run, count in sorted(check.elsewhere.items())]
    if check.referrers:
        lines.append(f"stages of this run are also used by {', '.join(check.referrers)}: keep it")
    if check.unnamed:
        lines.append(f"{len(check.unnamed)} objects that no record names: `world-models storage gc` lists them")
    if check.foreign:
        lines.append(f"{len(check.foreign)} foreign files, left alone, such as {store.locate(check.foreign[0])}")
    return lines


def garbage_lines(garbage: Garbage, store: Store, *, deleted: bool) -> list[str]:
    """Lines of the output of ``storage gc``."""
    verb = "removed" if deleted else "would remove"
    lines = [f"{verb} data that no record names: {store.locate(key)}" for key in garbage.data]
    lines += [
        f"kept data that no record names, because {run} refers to this run and is not there: bring it back, or remove "
        f"{store.locate(referrer_key(run))}"
        for run in garbage.unknown
    ]
    lines += [f"{verb} the note of a run that refers to nothing here: {store.locate(key)}" for key in garbage.notes]
    lines += [f"{verb} an old checkpoint: {store.locate(prefix)} {name}" for prefix, name in garbage.checkpoints]
    lines += [f"{verb} a temporary file of a killed writer: {key}" for key in garbage.leftovers]
    hint = "" if deleted or not len(garbage) else "; nothing was changed; --delete removes them"
    return [*lines, f"{store.locate()}: {len(garbage)} {'removed' if deleted else 'to remove'}{hint}"]


def checkpoints_to_keep(by_stage: Mapping[str, int], default: int) -> Callable[[str], int]:
    """Function from the prefix of a stage to the number of its checkpoints to keep.

    Args:
        by_stage: Numbers by prefix of the stage.
        default: Number for all other stages.
    """
    return lambda prefix: by_stage.get(place_and_stage(prefix)[1], default)
