"""The runs of a study as trials of Ray Tune."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from actors.connection import connect
from actors.failures import raised_message
from actors.nodes import HEAD_RESOURCE
from pipeline.base.failpoints import WORKER_VARIABLE, arm_from_environment
from pipeline.base.logs import configure_logging
from pipeline.config.schema import ExecutionConfig

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_ON_THE_HEAD = {HEAD_RESOURCE: 0.001}  # where Ray's jobs run their drivers: it is not a spot machine

Row = Mapping[str, float | None]


def run_trials(
    names: Sequence[str],
    perform: Callable[[str], None],
    progress: Callable[[str], Iterable[Row]],
    *,
    concurrent: int,
    cpus: float,
    early_stopping: Mapping[str, Any] | None,
) -> dict[str, str]:
    """Run all trials; a trial that fails does not end the others.

    The runs resume by themselves, so that nothing of Tune's own state is kept.

    Args:
        names: Names of the trials, in the order in which they begin.
        perform: Function that runs a trial to its end, in a process of its own; it is pickled.
        progress: Function that returns the rows of a trial so far, oldest first; it is pickled.
        concurrent: Trials at once.
        cpus: CPUs of a trial's own process; 0 for a trial that only dispatches jobs to workers, which runs on the head.
        early_stopping: Arguments of ASHA (``metric``, ``mode``, ``time_attr`` and so on); None for no early stopping.

    Returns:
        Errors of the trials that failed, by name.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the runs have metrics and TensorBoard files of their own
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends a study as it ends a run
    # Without its loggers there are no files of results, and it warns of each.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

    def study_run(config: Mapping[str, str]) -> None:
        configure_logging()
        arm_from_environment(WORKER_VARIABLE)
        name, reported = config["trial"], 0
        with ThreadPoolExecutor(1) as threads:
            work = threads.submit(perform, name)
            while True:
                ended = bool(wait([work], timeout=_POLL_S).done)
                rows = list(progress(name))
                for row in rows[reported:]:
                    tune.report(dict(row))
                reported = len(rows)
                if ended:
                    work.result()
                    return

    with tempfile.TemporaryDirectory(prefix="world-models-study-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(study_run, {"CPU": cpus} if cpus else _ON_THE_HEAD),
            param_space={"trial": tune.grid_search(list(names))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                scheduler=ASHAScheduler(**early_stopping, stop_last_trials=False)
                if early_stopping is not None
                else None,
                trial_name_creator=lambda trial: trial.config["trial"].replace("/", "-"),
                trial_dirname_creator=lambda trial: trial.config["trial"].replace("/", "-"),
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=folder,
                verbose=1,
            ),
        )
        results = tuner.fit()
    failed = {}
    for index in range(len(results)):
        result = results[index]
        if result.error is not None:
            failed[result.config["trial"]] = raised_message(result.error)
    return failed


@contextmanager
def joined_ray(execution: ExecutionConfig, num_cpus: int) -> Iterator[int]:
    """Join a cluster or start a local Ray for a study, see ``connect``; yields its CPUs now, at least 1."""
    connect(execution, num_cpus)
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
