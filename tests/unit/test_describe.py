"""The checkpoints in the output of `status`."""

from __future__ import annotations

import os
import time

from pipeline.cli import describe
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, EVOLUTION
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.layout import record_key
from pipeline.storage.local import LocalStore


def test_last_checkpoint_is_the_newest_of_all_stages(local_store: LocalStore) -> None:
    assert describe._newest_checkpoint(RunConfig(), local_store) is None
    for prefix, age_s in ((EVALUATION, 3600.0), (EVOLUTION, 90.0)):
        checkpoints = Checkpoints(local_store, prefix)
        checkpoints.save(4, b"not read here")
        written = time.time() - age_s
        os.utime(local_store.root / record_key(checkpoints.prefix, checkpoints.names()[0]), (written, written))
    newest = describe._newest_checkpoint(RunConfig(), local_store)
    assert newest is not None and newest.startswith("evolve, generation 4, 1 min")
