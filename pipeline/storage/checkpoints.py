"""Checkpoints of a stage: numbered, verified, and pruned to the newest few."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict

from pipeline.base.errors import DamagedDataError
from pipeline.base.failpoints import failpoint
from pipeline.storage import sealed_json
from pipeline.storage.layout import (
    DATA,
    checkpoint_name,
    checkpoints_prefix,
    object_key,
    object_prefix,
    own_keys,
    record_key,
    record_name,
    records_prefix,
    step_and_session,
)
from pipeline.storage.manifest import Record, read_record, read_verified
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

KEEP = 2


class Checkpoints:
    """Checkpoints of one stage. A stage resumes from the newest undamaged one.

    A checkpoint is named by its step and by the number of the session that wrote it. A driver that loses its lease
    while it saves therefore cannot overwrite a checkpoint of the driver that took over.

    Args:
        store: Store of the run.
        prefix: Prefix of the stage.
        keep: Number of newest checkpoints to keep.
    """

    def __init__(self, store: Store, prefix: str, keep: int = KEEP) -> None:
        self.store = store
        self.prefix = checkpoints_prefix(prefix)
        self.keep = keep

    def save(self, step: int, data: bytes) -> None:
        """Write a checkpoint, then the record that commits it, then remove the checkpoints beyond ``keep``.

        Args:
            step: Step of the stage.
            data: Bytes of the checkpoint.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        name = checkpoint_name(step, self.store.session)
        key = object_key(self.prefix, DATA, name, sha256)
        record = Record(name, key, len(data), sha256, session=self.store.session)
        # One step can be saved twice, e.g. at the end of an epoch.
        replaced = self.store.list(object_prefix(self.prefix, DATA, name))
        self.store.write(key, data)
        failpoint("checkpoint-data-written")
        self.store.write(record_key(self.prefix, name), sealed_json.to_bytes(asdict(record)))
        failpoint("checkpoint-recorded")
        for other in set(replaced) - {key}:
            self.store.delete(other)
        names = [other for other in self.names() if step_and_session(other)[1] <= self.store.session]
        # Later steps were damaged: otherwise the stage would have resumed after them, not repeated this step.
        later = [other for other in names if step_and_session(other)[0] > step]
        for other in (*later, *[other for other in names if step_and_session(other)[0] <= step][: -self.keep]):
            self.remove(other)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in ascending order."""
        return sorted({step_and_session(name)[0] for name in self.names()})

    def latest(self) -> tuple[int, bytes] | None:
        """Newest undamaged checkpoint as (step, bytes); None if the stage has no checkpoint.

        Raises:
            DamagedDataError: All checkpoints are damaged.
        """
        names = self.names()
        for name in reversed(names):
            try:
                return step_and_session(name)[0], self.read(name)
            except DamagedDataError as error:
                logger.warning(
                    "CHECKPOINT %s OF %s IS DAMAGED, falling back to the previous one: %s",
                    name,
                    self.store.locate(self.prefix),
                    error,
                )
        if names:
            raise DamagedDataError(
                f"every checkpoint under {self.store.locate(self.prefix)} is damaged",
                resume_after="restore one from a copy, or remove that folder to run this stage from scratch",
            )
        return None

    def names(self) -> list[str]:
        """Names of all checkpoints, oldest first."""
        return [record_name(key) for key in own_keys(self.store, records_prefix(self.prefix))]

    def read(self, name: str) -> bytes:
        """Verified bytes of a checkpoint.

        Raises:
            DamagedDataError: The bytes or their record are missing or changed.
        """
        return read_verified(self.store, read_record(self.store, record_key(self.prefix, name)), self.prefix)

    def age_s(self) -> float | None:
        """Age of the newest checkpoint in seconds; None if there is none."""
        names = self.names()
        return self.store.age_s(record_key(self.prefix, names[-1])) if names else None

    def remove(self, name: str) -> None:
        """Remove a checkpoint."""
        try:
            data_key = read_record(self.store, record_key(self.prefix, name)).key
        except DamagedDataError:
            data_key = None  # `storage gc` finds the data, which no record names
        # The record first: readers ignore data without a record, but a record without data counts as damage.
        self.store.delete(record_key(self.prefix, name))
        failpoint("checkpoint-half-removed")
        if data_key is not None:
            self.store.delete(data_key)
