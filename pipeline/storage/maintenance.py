"""Looking after the bytes of a run: verify all of them, remove what nobody names, copy them elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.base.errors import ConfigError, DamagedDataError, StorageError
from pipeline.base.progress import Progress, Update
from pipeline.data.shards import num_rows
from pipeline.storage import sealed, sessions
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import (
    CONFIG,
    SESSIONS,
    foreign_keys,
    is_sealed_note,
    manifest_key,
    occupying_keys,
    own_keys,
    records_prefix,
    stage_of,
    stage_of_checkpoint,
    stage_of_manifest,
    stage_of_record,
)
from pipeline.storage.manifest import (
    Record,
    outgrown,
    read_manifest,
    read_record,
    read_verified,
)
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store

Item = TypeVar("Item")

_THREADS = 8


@dataclass
class Check:
    """What was verified of a run, and what was wrong with it.

    Attributes:
        objects, rows, size_bytes: that were read and verified.
        manifests: stages that are sealed.
        problems: what is damaged, missing or does not fit, in words.
        unnamed: keys of data that no record names; no damage.
        foreign: keys that this program never writes; no damage, and left alone.
    """

    objects: int = 0
    rows: int = 0
    size_bytes: int = 0
    manifests: int = 0
    problems: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def check_run(store: Store) -> Check:
    """Read every committed byte of a run and verify it.

    Raises:
        StorageError: there is no run here, or it has a format that this version does not read.
    """
    require_run(store)
    found = Check()
    keys = own_keys(store)
    records = [key for key in keys if stage_of_record(key) is not None]
    with Progress("check", "object") as show:
        for count, (key, outcome) in enumerate(_in_threads(lambda key: _verify(store, key), records), 1):
            if isinstance(outcome, str):
                found.problems.append(outcome)
            elif outcome is not None:
                found.objects += 1
                found.rows += outcome.rows
                found.size_bytes += outcome.size_bytes
            show(Update(count, len(records), {"at": stage_of_record(key)}))
    for key in keys:
        prefix = stage_of_manifest(key)
        if prefix is not None:
            found.problems += _manifest_problems(store, prefix)
            found.manifests += 1
    found.problems += _small_problems(store, keys)
    found.unnamed = unnamed_data(store, keys)
    found.foreign = foreign_keys(store)
    return found


def _verify(store: Store, record_key: str) -> Record | str | None:
    """The record of one object that is whole; what is wrong with it, if it is not; None where it is gone by now."""
    try:
        record = read_record(store, record_key)
        data = read_verified(store, record, stage_of_record(record_key))
        if record.key.endswith(".parquet"):
            rows = num_rows(data, store.locate(record.key))
            if rows != record.rows:
                return f"{store.locate(record.key)} has {rows} rows where {record.rows} were committed"
    except FileNotFoundError:
        return None
    except DamagedDataError as error:
        # A driver that is at work prunes checkpoints: the record first, then the bytes.
        return str(error) if store.exists(record_key) else None
    return record


def _small_problems(store: Store, keys: list[str]) -> list[str]:
    """What is wrong with the small objects that a run is gone on with by: its config, and what seals itself."""
    problems = []
    try:
        saved_config(store)
    except (ConfigError, DamagedDataError) as error:
        problems.append(str(error))
    for key in keys:
        if is_sealed_note(key):
            try:
                sealed.read(store, key, "what it should be")
            except DamagedDataError as error:
                problems.append(str(error))
    return problems


def _manifest_problems(store: Store, prefix: str) -> list[str]:
    """What of a sealed stage does not fit its manifest."""
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
        f"{where} names {name}, and no record does: restore that from a copy" for name in named if name not in by_name
    ]
    problems += [
        f"{where} and the record of {name} are of different bytes"
        for name, record in by_name.items()
        if name in named and named[name].sha256 != record.sha256
    ]
    problems += [f"{where} was made from another {upstream}/ than is there" for upstream in outgrown(store, manifest)]
    return problems


def unnamed_data(store: Store, keys: list[str]) -> list[str]:
    """Keys of data that no record names: of writes that were never committed, and of pruned checkpoints.

    Where a record is damaged or vanishes meanwhile, what it named is not known, and nothing of that stage is called
    unnamed.
    """
    unnamed = []
    stages = {key: stage_of(key) for key in keys}
    for prefix in sorted({stage for stage in stages.values() if stage is not None}):
        try:
            named = {read_record(store, key).key for key in keys if stage_of_record(key) == prefix}
            manifest = read_manifest(store, prefix)
        except (DamagedDataError, FileNotFoundError):
            continue
        # Sealed data whose record is gone is damage to be mended, not garbage.
        named |= {record.key for record in manifest.records.values()} if manifest is not None else set()
        unnamed += [key for key in keys if stages[key] == prefix and key not in named]
    return unnamed


@dataclass
class Garbage:
    """What a run can do without.

    Attributes:
        data: keys of data that no record names.
        checkpoints: prefix of a stage and name, of each old checkpoint.
        leftovers: of writers that were killed in the middle of a write.
    """

    data: list[str]
    checkpoints: list[tuple[str, str]]
    leftovers: Sequence[str]

    def __len__(self) -> int:
        return len(self.data) + len(self.checkpoints) + len(self.leftovers)


def find_garbage(store: Store, keep: Callable[[str], int]) -> Garbage:
    """What nobody names, and checkpoints beyond those to keep.

    Args:
        store: the run's.
        keep: checkpoints to keep of a stage, by its prefix.
    """
    require_run(store)
    keys = own_keys(store)
    old = []
    for prefix in sorted({stage for key in keys if (stage := stage_of_checkpoint(key)) is not None}):
        checkpoints = Checkpoints(store, prefix)
        whole = 0
        # A damaged one is in nobody's way and may be restored; it does not count as one that is kept.
        for name in reversed(checkpoints.names()):
            if whole >= keep(prefix):
                old.append((prefix, name))
            elif _is_whole(checkpoints, name):
                whole += 1
    return Garbage(unnamed_data(store, keys), old, store.leftovers())


def _is_whole(checkpoints: Checkpoints, name: str) -> bool:
    try:
        checkpoints.read(name)
    except DamagedDataError:
        return False
    return True


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove it; only in a session, as whoever writes at the same time has data that no record names yet."""
    for key in garbage.data:
        store.delete(key)
    for prefix, name in garbage.checkpoints:
        Checkpoints(store, prefix).remove(name)
    for name in garbage.leftovers:
        store.remove_leftover(name)


def copy_run(source: Store, target: Store) -> int:
    """Copy a run, every object read back; returns the number of objects.

    What seals is copied after what it seals and the config last, so that half a copy is not a run. A copy that was
    interrupted goes on.

    Raises:
        StorageError: there is no run, it is being driven, or something else is in the target.
    """
    require_run(source)
    last = sessions.last_session(source)
    if last is not None and not last.over:
        raise StorageError(
            f"{source.locate()} is being driven by {last.owner}: a copy of it would be of no one moment. Stop it first."
        )
    keys = sorted(own_keys(source), key=_copied_at)
    if strangers := set(occupying_keys(target)) - set(keys):
        raise StorageError(
            f"{target.locate()} holds other things ({target.locate(min(strangers))} is one): choose an empty place"
        )
    with Progress("copy", "object") as show:
        for order in sorted({_copied_at(key)[0] for key in keys}):
            batch = [key for key in keys if _copied_at(key)[0] == order]
            done = sum(_copied_at(key)[0] < order for key in keys)
            for count, _ in enumerate(_in_threads(lambda key: _copy_object(source, target, key), batch), done + 1):
                show(Update(count, len(keys)))
    if sessions.session_numbers(source) != ([] if last is None else [*range(1, last.owner.number + 1)]):
        raise StorageError(f"{source.locate()} was driven meanwhile: the copy is of no one moment. Copy it again.")
    if last is not None and last.ended is None:
        # Whoever drove the source is not driving the copy.
        sessions.end_session(target, last.owner.number, "copied")
    return len(keys)


def _copied_at(key: str) -> tuple[int, str]:
    """When a key is to be copied: data, records, manifests, the config."""
    order = 3 if key == CONFIG else 2 if stage_of_manifest(key) else 1 if stage_of_record(key) else 0
    return order, key


def _copy_object(source: Store, target: Store, key: str) -> None:
    data = source.read(key)
    prefix = stage_of_record(key)
    if prefix is not None:
        read_verified(target, read_record(source, key), prefix)
    if target.exists(key):
        if target.read(key) == data:
            return
        if not key.startswith(SESSIONS):
            raise StorageError(
                f"{target.locate(key)} is there already and is another than {source.locate(key)}: choose an empty place"
            )
    target.write(key, data)
    if hashlib.sha256(target.read(key)).digest() != hashlib.sha256(data).digest():
        raise DamagedDataError(f"{target.locate(key)} does not hold what was written: run the same command again")


def _in_threads(work: Callable[[str], Item], keys: list[str]) -> Iterator[tuple[str, Item]]:
    """The work on each key, several at a time, in order."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from zip(keys, threads.map(work, keys), strict=True)


def require_run(store: Store) -> None:
    """Refuse what is no run.

    Raises:
        StorageError: there is no config.
    """
    if not store.exists(CONFIG):
        raise StorageError(f"{store.locate()} holds no run: there is no {CONFIG}. Begin one with `world-models run`.")


def check_lines(check: Check, store: Store) -> list[str]:
    """What ``storage check`` prints."""
    lines = [f"damaged: {problem}" for problem in check.problems]
    lines.append(
        f"{store.locate()}: {check.objects:,} objects, {check.size_bytes / 1e6:,.1f} MB, {check.rows:,} rows verified, "
        f"{check.manifests} stages sealed, {len(check.problems)} problems"
    )
    if check.unnamed:
        lines.append(f"{len(check.unnamed)} objects that no record names: `world-models storage gc` lists them")
    if check.foreign:
        lines.append(f"{len(check.foreign)} foreign files, left alone: {store.locate(check.foreign[0])} is one")
    return lines


def garbage_lines(garbage: Garbage, store: Store, *, deleted: bool) -> list[str]:
    """What ``storage gc`` prints."""
    verb = "removed" if deleted else "would remove"
    lines = [f"{verb} data that no record names: {store.locate(key)}" for key in garbage.data]
    lines += [f"{verb} an old checkpoint: {store.locate(prefix)} {name}" for prefix, name in garbage.checkpoints]
    lines += [f"{verb} what a killed writer left: {name}" for name in garbage.leftovers]
    hint = "" if deleted or not len(garbage) else "; nothing was changed, --delete removes them"
    return [*lines, f"{store.locate()}: {len(garbage)} {'removed' if deleted else 'to remove'}{hint}"]


def kept_checkpoints(keep: Mapping[str, int], otherwise: int) -> Callable[[str], int]:
    """Checkpoints to keep of a stage, by its prefix."""
    return lambda prefix: keep.get(prefix.rpartition("/")[2], otherwise)
