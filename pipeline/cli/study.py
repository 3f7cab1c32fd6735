"""``world-models study``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import ConfigError, JobError
from pipeline.base.formatting import counted
from pipeline.base.ray_environment import cluster_address
from pipeline.cli.arguments import EXIT_CODES, FORMATTER, add_below, add_override, written_dir
from pipeline.cli.executors import prepare_local_ray
from pipeline.cli.run import run_config
from pipeline.config.study import StudyConfig, dump_study, extended, load_study, saved_study, study_names
from pipeline.data.rounds import rounds_of

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands
    from pipeline.studies.plan import Trial

logger = logging.getLogger(__name__)

_EXAMPLES = """\
examples:
  world-models study ablation --run-dir runs/ablation              a study that ships with the project
  world-models study my-study.yaml --run-dir s3://bucket/study     your own
  world-models study tiny --vary mdnrnn.init=trained,random --seeds 1,2,3 --run-dir runs/init
  world-models study ablation --run-dir runs/ablation --only-compare
                                                                   the table and the page of the runs that are complete
  tensorboard --logdir runs/ablation/arms                          the curves of all runs

The runs lie in STUDY_DIR/arms/ARM/seed-N, stages that several runs share in STUDY_DIR/shared. Each run resumes to the
same result.
"""


def add_parser(commands: Commands) -> None:
    """Add ``study``."""
    text = "run several configs for several seeds each, as trials of Ray Tune, and compare them"
    command = commands.add_parser(
        "study", help=text, description=text, epilog=f"{_EXAMPLES}\n{EXIT_CODES}", formatter_class=FORMATTER
    )
    command.add_argument(
        "study",
        metavar="STUDY",
        help=f"study ({', '.join(study_names())}) or path of its YAML file; with --vary or several --seeds, a preset "
        "or a config file",
    )
    command.add_argument(
        "--run-dir", type=written_dir, metavar="STUDY_DIR", help="folder or s3://bucket/prefix of the study "
        "(default: runs/NAME with the study's name, runs/PRESET-study without a study file)",
    )  # fmt: skip
    add_arms(command)
    command.add_argument("--only-compare", action="store_true", help="compare the complete runs, and run nothing")
    add_below(command)
    add_override(command)
    command.set_defaults(perform=_study)


def add_arms(command: argparse.ArgumentParser) -> None:
    """Add ``--vary`` and ``--seeds``."""
    command.add_argument(
        "--vary", action="append", default=[], metavar="KEY=VALUE,VALUE",
        help="arms without a study file: one for each value, and for each combination if repeated",
    )  # fmt: skip
    command.add_argument("--seeds", type=_seeds, metavar="N,N", help="seeds of each arm (default: those of the file)")


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: whole numbers were expected, for example 1,2,3") from error


def _study(options: argparse.Namespace) -> int:
    from pipeline.comparison.page import write
    from pipeline.comparison.scores import table
    from pipeline.storage.layout import CONFIG
    from pipeline.storage.run_dir import check_lasting, open_store
    from pipeline.studies.plan import COMPARISON, STUDY, trials_of
    from pipeline.studies.results import compare_study
    from pipeline.studies.trials import none_evaluated_error

    study = load_study(options.study, options.override, options.vary, options.seeds)
    run_dir = options.run_dir or f"runs/{study.name}"
    store = open_store(run_dir)
    study_dir = store.locate()
    if store.exists(CONFIG):
        raise ConfigError(f"{study_dir} holds a run, not a study: choose another --run-dir")
    whole = study
    if store.exists(STUDY):
        whole = extended(saved_study(store.read(STUDY).decode(), store.locate(STUDY)), study)
    every = trials_of(whole)  # stages are shared with runs of earlier arms and seeds, too
    trials = [trial for trial in every if trial.arm in study.arms and trial.seed in study.seeds]
    early_stopping = _asha(study, trials)
    if cluster_address(trials[0].config.execution.ray_address) is not None:
        check_lasting(run_dir)
    failed: dict[str, str] = {}
    if not options.only_compare:
        _log_plan(study, trials, study_dir)
        store.write(STUDY, dump_study(whole).encode())
        failed = _run_trials(study, trials, study_dir, early_stopping)
    for name, error in failed.items():
        logger.error("%s failed: %s", name, error)
    found = compare_study(every, study_dir, options.below)
    if found is not None:
        print("\n".join(table(found)))
        print(f"page: {write(found, open_store(f'{study_dir}/{COMPARISON}'), f'Study {study.name}')}")
    if failed:
        raise JobError(f"{len(failed)} of {len(trials)} runs failed: {', '.join(failed)}", resume_after="")
    if found is None:
        raise none_evaluated_error(
            study_dir,
            "run the study without --only-compare; "
            f"`world-models status {study_dir}/{trials[0].folder}` shows the state of a run",
        )
    return 0


def _log_plan(study: StudyConfig, trials: Sequence[Trial], study_dir: str) -> None:
    from pipeline.studies.plan import ARMS

    shared = {stage.folder for trial in trials for stage in trial.shared}
    logger.info(
        "study %s: %s (%s, %s) in %s/%s; %s made once for several runs",
        study.name, counted(len(trials), "run"), counted(len(study.arms), "arm"), counted(len(study.seeds), "seed"),
        study_dir, ARMS, counted(len(shared), "stage is", "stages are"),
    )  # fmt: skip


def _run_trials(
    study: StudyConfig, trials: Sequence[Trial], study_dir: str, early_stopping: dict[str, Any] | None
) -> dict[str, str]:
    """Run the trials on Ray Tune; returns the errors of failed trials, by name."""
    from pipeline.base.machine import num_cores

    execution, threads = trials[0].config.execution, _threads(trials)
    if cluster_address(execution.ray_address) is None:
        prepare_local_ray(execution)
    # Tune is slow to import, and Ray reads its settings when it is imported.
    from actors.study import joined_ray, run_trials

    names = {trial.name: trial for trial in trials}
    with joined_ray(execution, max(num_cores(), threads)) as cpus:
        return run_trials(
            [*names],
            partial(_perform, names, study_dir),
            partial(_progress, names, study_dir),
            concurrent=study.concurrent or runs_at_once(trials, cpus),
            cpus=threads if execution.executor == "in-process" else 0,
            early_stopping=early_stopping,
        )


def runs_at_once(trials: Sequence[Trial], cpus: int) -> int:
    """Number of runs that fit onto a cluster's CPUs, each with the workers that its generations ask for."""
    from pipeline.planning.plan import requested_workers

    a_run = _threads(trials)
    if trials[0].config.execution.executor != "in-process":
        configs = [trial.config for trial in trials]
        a_run = max(a_run, *(config.execution.workers or requested_workers(config) for config in configs))
    return max(1, cpus // a_run)


def _threads(trials: Sequence[Trial]) -> int:
    """Threads of a training of any run."""
    return max(max(trial.config.vae.threads, trial.config.mdnrnn.threads) for trial in trials)


def _perform(trials: Mapping[str, Trial], study_dir: str, name: str) -> None:
    from pipeline.studies.trials import perform

    perform(trials[name], study_dir, run_config)


def _progress(trials: Mapping[str, Trial], study_dir: str, name: str) -> list[dict[str, float]]:
    from pipeline.studies.trials import progress

    return list(progress(trials[name], study_dir))


def _asha(study: StudyConfig, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Arguments of Tune's ASHA, see ``actors.study.run_trials``."""
    if study.early_stopping is None:
        return None
    configs = [trial.config for trial in trials]
    longest = max(sum(c.in_round(at.number).evolve.generations for at in rounds_of(c.rounds)) for c in configs)
    if study.early_stopping.grace_generations > longest:
        raise ConfigError(
            f"early_stopping.grace_generations = {study.early_stopping.grace_generations}: the runs have {longest} "
            "generations"
        )
    return {
        "time_attr": "generation", "metric": "validation", "mode": "max", "max_t": longest,
        "grace_period": study.early_stopping.grace_generations,
        "reduction_factor": study.early_stopping.reduction_factor,
    }  # fmt: skip
