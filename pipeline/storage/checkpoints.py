"""Checkpoints: numbered, verified, the last few kept."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict

from pipeline.errors import DamagedDataError
from pipeline.storage.manifest import Record, read_verified
from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage. The newest whole one counts.

    Args:
        store: the run's store.
        prefix: the stage's prefix.
        keep: how many of the newest to keep.
    """

    def __init__(self, store: Store, prefix: str, keep: int = 2) -> None:
        self.store = store
        self.prefix = f"{prefix}/checkpoints"
        self.keep = keep

    def save(self, step: int, data: bytes) -> None:
        """Write the checkpoint of a step, then the record that commits it, then drop what is beyond ``keep``."""
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"{self.prefix}/data/{step:08d}-{sha256[:12]}"
        record = Record(name=f"{step:08d}", key=key, size_bytes=len(data), sha256=sha256)
        self.store.write(key, data)
        self.store.write(self._record_key(record.name), json.dumps(asdict(record)).encode())
        # What is newer was found damaged, or this step would not have been taken again.
        newer = [name for name in self._names() if name > record.name]
        kept_and_older = [name for name in self._names() if name <= record.name]
        for name in (*newer, *kept_and_older[: -self.keep]):
            self._remove(name)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return [int(name) for name in self._names()]

    def latest(self) -> tuple[int, bytes] | None:
        """The newest checkpoint whose bytes verify, as (step, bytes); None where there is none at all.

        Raises:
            DamagedDataError: there are checkpoints, and every one of them is damaged.
        """
        names = self._names()
        for name in reversed(names):
            try:
                record = Record(**json.loads(self.store.read(self._record_key(name))))
                return int(name), read_verified(self.store, record, self.prefix)
            except (DamagedDataError, ValueError, TypeError) as error:
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

    def _record_key(self, name: str) -> str:
        return f"{self.prefix}/records/{name}.json"

    def _names(self) -> list[str]:
        folder = f"{self.prefix}/records/"
        return [key.removeprefix(folder).removesuffix(".json") for key in self.store.list(folder)]

    def _remove(self, name: str) -> None:
        # The record first: data without a record does not exist, a record without data is damage.
        self.store.delete(self._record_key(name))
        for key in self.store.list(f"{self.prefix}/data/{name}-"):
            self.store.delete(key)
