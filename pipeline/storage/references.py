"""Stages of other runs, to which a run refers instead of making them again.

Stages with the same config and the same inputs have the same output. A run that refers to such a stage has its own
records and its own manifest, with the same digest; only the objects stay in the run that made them. A note in that run,
under ``referrers/``, keeps its garbage collection from removing them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from pipeline.base.errors import AlreadyExistsError, DamagedDataError, StorageError
from pipeline.storage import sealed_json
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import (
    CONFIG,
    REFERRERS,
    metrics_key,
    own_keys,
    record_key,
    referrer_key,
    stage_of_checkpoint,
    stage_of_record,
    tensorboard_prefix,
)
from pipeline.storage.manifest import Manifest, Record, holder, read_manifest, read_record, seal
from pipeline.storage.run_dir import absolute_run, open_other, relative_run
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

_THREADS = 16


def find_equal(wanted: Manifest, prefix: str, runs: Sequence[Store], cpu: str | None) -> tuple[Store, Manifest] | None:
    """Find a run with an equal stage: one of the same config, limits and inputs.

    Args:
        wanted: The stage without its records.
        prefix: Prefix of the stage.
        runs: Runs to search, in this order.
        cpu: Kind of CPU on which the stage was made; None for any.

    Returns:
        The run, and its manifest of the stage; None if there is none.
    """
    for run in runs:
        found = read_manifest(run, prefix)
        if found is None or (cpu is not None and found.info.get("cpu") != cpu):
            continue
        if replace(found, records={}, info={}) == wanted and _is_held(run, found):
            return run, found
    return None


def _is_held(run: Store, manifest: Manifest) -> bool:
    """Whether the runs that hold a stage's objects are still there; logs the missing runs."""
    first = {record.run: record for record in manifest.records.values()}
    for record in first.values():
        place = holder(run, record)
        if not place.exists(record.key):
            logger.warning("%s refers to %s, which is gone: not reused", run.locate(), place.locate())
            return False
    return True


def refer(store: Store, source: Store, prefix: str, manifest: Manifest) -> None:
    """Refer to a stage of another run, and seal it.

    The metrics and the newest checkpoint are copied, so that the curves are shown and the stage can grow. After an
    interruption, a second call completes the first.

    Args:
        store: Store of the run that refers.
        source: Store of the run that has the stage.
        prefix: Prefix of the stage in both.
        manifest: Manifest of the stage in ``source``.

    Raises:
        StorageError: The run has other objects of the stage already, or the other run has changed meanwhile.
    """
    runs = {name: holder(source, record).locate() for name, record in manifest.records.items()}
    holders = [open_other(location) for location in sorted(set(runs.values()))]
    for each in holders:
        _note_referrer(each, store)
    wanted = [
        replace(record, run=relative_run(store.locate(), runs[name]), session=store.session)
        for name, record in manifest.records.items()
    ]
    with ThreadPoolExecutor(_THREADS) as threads:
        created = threads.map(lambda record: _create_record(store, prefix, record), wanted)
        records = {record.name: record for record in created}
    for key in [metrics_key(prefix), *own_keys(source, tensorboard_prefix(prefix))]:
        if source.exists(key):
            store.write(key, source.read(key))
    try:
        checkpoint = Checkpoints(source, prefix).latest()
    except DamagedDataError as error:
        logger.warning("%s: checkpoints are not copied: %s", source.locate(prefix), error)
        checkpoint = None
    if checkpoint is not None:
        Checkpoints(store, prefix).save(*checkpoint)
    now = read_manifest(source, prefix)
    if now is None or (now.digest, now.grown) != (manifest.digest, manifest.grown):
        raise StorageError(f"{source.locate(prefix)} has changed while it was referred to", resume_after="")
    info = {**manifest.info, "session": store.session, "reused_from": relative_run(store.locate(), source.locate())}
    seal(store, prefix, replace(manifest, records=records, info=info))
    for each in holders:  # until there were records, its garbage collection could take the note for an old one
        _note_referrer(each, store)


def _create_record(store: Store, prefix: str, record: Record) -> Record:
    """Create a record; returns it, or the present one of the same object."""
    key = record_key(prefix, record.name)
    try:
        store.create(key, sealed_json.to_bytes(asdict(record)))
    except AlreadyExistsError:
        present = read_record(store, key)
        if present.sha256 != record.sha256:
            raise StorageError(
                f"{store.locate(key)} commits other bytes than the equal stage of another run: one of the two was made "
                f"by another version. Remove {store.locate(prefix)}, or run without --reuse."
            ) from None
        return present
    return record


def _note_referrer(source: Store, store: Store) -> None:
    key = referrer_key(store.locate())
    if source.exists(key):
        return
    try:
        source.write(key, sealed_json.to_bytes({"run": relative_run(source.locate(), store.locate())}))
    except StorageError as error:
        logger.warning(
            "cannot note in %s that %s refers to it; do not move or delete the former (%s)",
            source.locate(),
            store.locate(),
            error,
        )


def referrers(store: Store) -> dict[str, Store]:
    """Runs that refer to stages of this one, by the key of their note in this run."""
    found = {}
    for key in own_keys(store, REFERRERS):
        note = sealed_json.read(store, key, "a note of a run that refers to this one")
        found[key] = open_other(absolute_run(store.locate(), str(note["run"])))
    return found


def referred_records(store: Store) -> dict[str, Record]:
    """Records whose objects lie in other runs, by the object's key. Checkpoints are never referred to."""
    keys = [key for key in own_keys(store) if stage_of_record(key) is not None and stage_of_checkpoint(key) is None]
    with ThreadPoolExecutor(_THREADS) as threads:
        records = threads.map(lambda key: read_record(store, key), keys)
        return {record.key: record for record in records if record.run}


def keys_used_by(referrer: Store, store: Store) -> set[str] | None:
    """Keys of the objects of a run to which another run refers; None if that run cannot be read."""
    if not referrer.exists(CONFIG):
        return None
    return {
        key for key, record in referred_records(referrer).items() if holder(referrer, record).locate() == store.locate()
    }
