"""One run of a study: its shared stages, then the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from pipeline.base.errors import LeaseError, StorageError
from pipeline.data.artifacts import EVALUATION, EVOLUTION, REPORT
from pipeline.data.rounds import rounds_of
from pipeline.storage.layout import CONFIG
from pipeline.storage.manifest import read_manifest
from pipeline.storage.metrics import read_metrics
from pipeline.storage.run_dir import open_store
from pipeline.storage.saved_config import saved_config
from pipeline.studies.plan import SharedStage, Trial

logger = logging.getLogger(__name__)

# (config, run directory, command, other runs): ``pipeline.cli.run.run_config``.
RunConfigOf = Callable[..., int]

_WAIT_S = 2.0


def perform(trial: Trial, study_dir: str, run: RunConfigOf) -> None:
    """Make the shared stages of a run that nobody has made yet, then the run.

    Args:
        trial: Run of the study.
        study_dir: Folder of the study, or ``s3://bucket/prefix``.
        run: Function that runs a config, ``pipeline.cli.run.run_config``.
    """
    location = f"{study_dir}/{trial.folder}"
    if read_manifest(open_store(location), REPORT) is None:
        for stage in trial.shared:
            _make(stage, study_dir, run)
    made = [f"{study_dir}/{stage.folder}" for stage in trial.shared]
    run(trial.config, location, "run", [each for each in made if open_store(each).exists(CONFIG)])


def _make(stage: SharedStage, study_dir: str, run: RunConfigOf) -> None:
    """Make a shared stage, or wait while another run of the study makes it.

    A run that had the stage for itself, before others came that share it, is referred to.
    """
    location = f"{study_dir}/{stage.folder}"
    store = open_store(location)
    waiting = False
    while read_manifest(store, stage.prefix) is None:
        # The folder's name has the hash of all that the stage depends on. If its run was started with another config,
        # as before a change of the study, the two differ in keys that do not concern the stage.
        config = saved_config(store) if store.exists(CONFIG) else stage.config
        others = [f"{study_dir}/{folder}" for folder in (*stage.inputs, *stage.sharers)]
        try:
            run(config, location, stage.command, [each for each in others if open_store(each).exists(CONFIG)])
        except LeaseError as error:
            if not waiting:
                logger.info("%s is being made by another run of the study: waiting (%s)", location, error)
            waiting = True
            time.sleep(_WAIT_S)


def progress(trial: Trial, study_dir: str) -> Iterator[dict[str, float]]:
    """Validated generations of a run so far, each with the number of its generation and its validation return."""
    store = open_store(f"{study_dir}/{trial.folder}")
    before = 0
    for at in rounds_of(trial.config.rounds):
        last = before
        for row in read_metrics(store, at.folder(EVOLUTION)):
            last = before + int(row["step"])
            if row.get("validation_mean") is not None:
                yield {
                    "generation": last,
                    "validation": float(row["validation_mean"]),
                    "env_steps": float(row["env_steps"]),
                }
        before = last


def is_evaluated(trial: Trial, study_dir: str) -> bool:
    """Whether a run of a study has its test scores."""
    store = open_store(f"{study_dir}/{trial.folder}")
    return read_manifest(store, rounds_of(trial.config.rounds)[-1].folder(EVALUATION)) is not None


def none_evaluated_error(study_dir: str, remedy: str) -> StorageError:
    """Error of a command that needs the scores of a study's runs, when no run has any; says what to do first."""
    return StorageError(f"no run of the study in {study_dir} is evaluated yet: {remedy}")
