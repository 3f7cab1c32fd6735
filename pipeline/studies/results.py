"""The comparison of a study's runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.comparison.arms import Arm, RunResult, check_comparable, read_result
from pipeline.comparison.scores import Comparison, compare
from pipeline.storage.run_dir import open_store
from pipeline.studies.plan import Trial
from pipeline.studies.trials import is_evaluated

logger = logging.getLogger(__name__)


def compare_study(trials: Sequence[Trial], study_dir: str, threshold: float) -> Comparison | None:
    """Compare the evaluated runs of a study; None if there is none.

    Args:
        trials: Runs of the study.
        study_dir: Folder of the study, or ``s3://bucket/prefix``.
        threshold: Return below which an episode counts as failed.
    """
    arms: dict[str, list[RunResult]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        if is_evaluated(trial, study_dir):
            arms.setdefault(trial.arm, []).append(read_result(open_store(f"{study_dir}/{trial.folder}")))
        else:
            logger.info("%s is not evaluated yet: the comparison is without it", trial.name)
    if not arms:
        return None
    check_comparable([run for runs in arms.values() for run in runs])
    order = dict.fromkeys(trial.arm for trial in trials)
    return compare([Arm(name, arms[name]) for name in order if name in arms], threshold)
