"""Checkpoints: numbered, verified, the last few kept."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict

from pipeline.base.errors import DamagedDataError
from pipeline.base.failpoints import failpoint
from pipeline.storage import sealed
from pipeline.storage.layout import (
    checkpoint_name,
    checkpoints_prefix,
    object_key,
    own_keys,
    record_key,
    records_prefix,
    step_and_session,
)
from pipeline.storage.manifest import Record, read_record, read_verified
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

KEEP = 2


class Checkpoints:
    """The checkpoints of one stage. The newest whole one counts.

    A checkpoint's name is its step and the session of the session that wrote it: a driver that lost its lease in the
    middle of saving meets no checkpoint of its successor's.

    Args:
        store: the run's store.
        prefix: the stage's prefix.
        keep: how many of the newest to keep.
    """

    def __init__(self, store: Store, prefix: str, keep: int = KEEP) -> None:
        self.store = store
        self.prefix = checkpoints_prefix(prefix)
        self.keep = keep

    def save(self, step: int, data: bytes) -> None:
        """Write the checkpoint of a step, then the record that commits it, then drop what is beyond ``keep``."""
        sha256 = hashlib.sha256(data).hexdigest()
        name = checkpoint_name(step, self.store.session)
        key = object_key(self.prefix, "data", name, sha256)
        record = Record(name, key, len(data), sha256, session=self.store.session)
        replaced = self.store.list(f"{self.prefix}/data/{name}-")  # a step may be saved twice, as at an epoch's end
        self.store.write(key, data)
        failpoint("checkpoint-data-written")
        self.store.write(record_key(self.prefix, name), sealed.to_bytes(asdict(record)))
        failpoint("checkpoint-recorded")
        for other in set(replaced) - {key}:
            self.store.delete(other)
        names = [other for other in self.names() if step_and_session(other)[1] <= self.store.session]
        # What is of a later step was found damaged, or this step would not have been taken again.
        later = [other for other in names if step_and_session(other)[0] > step]
        for other in (*later, *[other for other in names if step_and_session(other)[0] <= step][: -self.keep]):
            self.remove(other)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return sorted({step_and_session(name)[0] for name in self.names()})

    def latest(self) -> tuple[int, bytes] | None:
        """The newest checkpoint whose bytes verify, as (step, bytes); None where there is none at all.

        Raises:
            DamagedDataError: there are checkpoints, and every one of them is damaged.
        """
        names = self.names()
        for name in reversed(names):
            try:
                return step_and_session(name)[0], self.read(name)
            except DamagedDataError as error:
                logger.warning(
                    "CHECKPOINT %s OF %s IS DAMAGED, falling back to the one before: %s",
                    name,
                    self.store.locate(self.prefix),
                    error,
                )
        if names:
            raise DamagedDataError(
                f"every checkpoint under {self.store.locate(self.prefix)} is damaged. Restore one from a copy, or "
                "remove that folder to begin this stage anew."
            )
        return None

    def names(self) -> list[str]:
        """All checkpoints, the oldest first."""
        folder = records_prefix(self.prefix)
        return [key.removeprefix(folder).removesuffix(".json") for key in own_keys(self.store, folder)]

    def read(self, name: str) -> bytes:
        """A checkpoint's bytes, verified.

        Raises:
            DamagedDataError: they or their record are missing or changed.
        """
        return read_verified(self.store, read_record(self.store, record_key(self.prefix, name)), self.prefix)

    def age_s(self) -> float | None:
        """Seconds since the newest was written; None where there is none."""
        names = self.names()
        return self.store.age_s(record_key(self.prefix, names[-1])) if names else None

    def remove(self, name: str) -> None:
        """Remove a checkpoint."""
        try:
            data_key = read_record(self.store, record_key(self.prefix, name)).key
        except DamagedDataError:
            data_key = None  # for `storage gc`, which finds what no record names
        # The record first: data without a record does not exist, a record without data is damage.
        self.store.delete(record_key(self.prefix, name))
        failpoint("checkpoint-half-removed")
        if data_key is not None:
            self.store.delete(data_key)
