"""The results of a run without its data: the input of ``world-models compare``, in about 100 KB."""

from __future__ import annotations

from pipeline.base.errors import StorageError
from pipeline.config.presets import dump
from pipeline.data.artifacts import EVALUATION, EVOLUTION, HISTORY, TEST_EPISODES, newest_record
from pipeline.data.rounds import latest_round
from pipeline.sharing.pack import as_shared, commit_as, seal_stage
from pipeline.stages.table import WHOLE_RUN, cost_of_run
from pipeline.storage.layout import CONFIG
from pipeline.storage.manifest import read_manifest, read_verified
from pipeline.storage.saved_config import saved_config
from pipeline.storage.store import Store


def copy_results(source: Store, target: Store) -> None:
    """Copy the config, the test episodes and the history of the evolution of a run that is evaluated.

    The copy is a run directory that ``compare`` reads. It names no server of the machine that made the run. Results
    that are there already are left alone.

    Args:
        source: Store of the run.
        target: Store of the copy: empty, or with an earlier copy of the same results.

    Raises:
        StorageError: The run is not evaluated, or the target holds something else.
        DamagedDataError: Data of the run is missing or changed.
    """
    config = saved_config(source)
    at = latest_round(config.rounds, source, EVALUATION)
    parts = [(at.folder(EVALUATION), TEST_EPISODES)]
    if config.evaluate.agent is None:
        parts.insert(0, (at.folder(EVOLUTION), HISTORY))
    records = [(prefix, newest_record(source, prefix, start)) for prefix, start in parts]
    if target.exists(CONFIG):
        copies = [(read_manifest(target, prefix), record) for prefix, record in records]
        if all(copy and record.sha256 in {each.sha256 for each in copy.records.values()} for copy, record in copies):
            return
        raise StorageError(f"{target.locate()} holds other results: choose an empty place")
    own = tuple(f"{prefix}/" for prefix, _ in records)  # an interrupted copy is continued
    if strangers := [key for key in target.list() if not key.startswith(own)]:
        raise StorageError(f"{target.locate()} holds other files, such as {strangers[0]}: choose an empty place")
    for prefix, record in records:
        if read_manifest(target, prefix) is None:
            commit_as(target, prefix, record, read_verified(source, record))
            cost = {WHOLE_RUN: cost_of_run(config, source)} if prefix == at.folder(EVALUATION) else {}
            seal_stage(source, target, config, prefix, cost)
    target.write(CONFIG, dump(as_shared(config, config.name)).encode())
