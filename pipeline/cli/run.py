"""``world-models run``, a single stage, and ``resume``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.base.failpoints import failpoint
from pipeline.cli.arguments import (
    EXIT_CODES,
    FORMATTER,
    RUN_DIR_HELP,
    add_agent,
    add_config,
    add_override,
    add_reuse,
    written_dir,
)
from pipeline.cli.executors import make_executor
from pipeline.config.presets import dump, load_config
from pipeline.stages.table import EVALUATE, MAKE_REPORT, STAGES
from pipeline.storage.layout import CONFIG, SESSIONS, occupying_keys
from pipeline.storage.saved_config import require_run, saved_config

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands
    from pipeline.config.schema import RunConfig
    from pipeline.storage.store import Store

logger = logging.getLogger(__name__)


def add_parsers(commands: Commands) -> None:
    """Add ``run``, each stage, and ``resume``."""
    for name, text in {
        "run": "run all stages in order, or resume them",
        **{s.name: s.help for s in STAGES},
    }.items():
        command = commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES, formatter_class=FORMATTER)
        add_config(command, optional=name == EVALUATE)
        if name == EVALUATE:
            add_agent(command)
        command.add_argument(
            "--run-dir",
            type=written_dir,
            help=f"{RUN_DIR_HELP} (default: runs/NAME, with the config's name)",
        )
        add_reuse(command)
        command.set_defaults(perform=_run)
    text = "resume a run with its saved config; -o raises its limits or changes runtime keys"
    resume = commands.add_parser("resume", help=text, description=text, epilog=EXIT_CODES, formatter_class=FORMATTER)
    resume.add_argument("run_dir", metavar="RUN_DIR", type=written_dir, help=RUN_DIR_HELP)
    add_override(resume)
    add_reuse(resume)
    resume.set_defaults(perform=_resume)


def _run(options: argparse.Namespace) -> int:
    agent = getattr(options, "agent", None)
    if agent is None and options.preset is None:
        raise ConfigError("CONFIG is missing: name a preset, a YAML file or -; or an external agent with --agent")
    config = load_config(options.preset, options.override) if agent is None else _config_for(agent, options)
    options.run_dir = options.run_dir or f"runs/{config.name}"
    return run_config(config, options.run_dir, options.command, options.reuse)


def _config_for(agent: str, options: argparse.Namespace) -> RunConfig:
    """Config of the evaluation of an external agent: the given config, or that of the agent's run.

    Raises:
        ConfigError: There is no config, or no run directory.
    """
    from pipeline.rollouts.external_agents import names_class
    from pipeline.storage.run_dir import absolute_location, open_store

    if options.run_dir is None:
        raise ConfigError(f"--agent {agent} needs --run-dir: the folder of the result")
    if not names_class(agent):
        agent = absolute_location(agent)
    override = [*options.override, f"evaluate.agent={agent}"]
    if options.preset is not None:
        return load_config(options.preset, override)
    if names_class(agent):
        raise ConfigError(f"--agent {agent} needs CONFIG, which names the environment and the tracks, such as laptop")
    return saved_config(open_store(agent), override)


def _resume(options: argparse.Namespace) -> int:
    from pipeline.storage.run_dir import open_store

    config = saved_config(open_store(options.run_dir), options.override)
    return run_config(config, options.run_dir, "run", options.reuse)


def run_config(config: RunConfig, run_dir: str, command: str, reuse: Sequence[str] = ()) -> int:
    """Run the stages of a command, after all checks that can refuse it.

    Args:
        config: Config of the run.
        run_dir: Folder or ``s3://bucket/prefix``.
        command: ``"run"``, or the name of a stage.
        reuse: Other runs, to whose equal stages this one refers.

    Raises:
        WorldModelsError: The run is refused, fails, or reaches its wall-clock limit.
    """
    from pipeline.envs.determinism import check_determinism
    from pipeline.envs.registry import CAR_RACING, check_environment
    from pipeline.planning import preflight
    from pipeline.planning.episode_length import collected_actions
    from pipeline.planning.growth import check_growth
    from pipeline.rollouts.external_agents import check_agent
    from pipeline.storage.run_dir import open_store
    from pipeline.storage.session_notes import check_machine, lease_for
    from pipeline.storage.sessions import refuse_if_owned
    from pipeline.tracking.tracker import check_installed

    # All checks come before the first write.
    store = open_store(run_dir)
    others = _others(store, reuse)
    check_environment(config)
    check_agent(config)
    check_installed(config.metrics.trackers)
    refuse_if_owned(store)
    _check_same_run(config, store)
    check_machine(store, exact=config.execution.exact)
    check_growth(config, store)
    rate = length = None
    if config.env.id != CAR_RACING:  # its bits are tested, and its speed is known
        rate = check_determinism(config.env, config.tracks.training.start, exact=config.execution.exact)
        length = collected_actions(config)
    preflight.check(config, run_dir, length)
    complete = preflight.complete_stages(config, store)
    logger.info(preflight.describe(config, store.locate(), rate, length, complete))

    executor = make_executor(config)
    try:
        # The stages import torch: after the checks that do not need it.
        from pipeline.cli.status_text import summarise_scores
        from pipeline.run import run_stages, stages_for
        from pipeline.tracking.publisher import Publisher
        from pipeline.training.hardware import check_devices

        left = [stage for stage in stages_for(config, store, command) if stage not in complete]
        check_devices(config, executor, {key for stage in left for key in stage.keys})
        text = _annotated(config)
        with lease_for(config.storage, store, command, lambda: executor.ready_workers) as fenced:
            # Again: another driver may have started this run, and ended, since the first check.
            _check_same_run(config, store)
            check_machine(store, exact=config.execution.exact, session=fenced.session)
            fenced.write(CONFIG, text.encode())
            failpoint("config-written")
            with Publisher(config, fenced):
                run_stages(config, fenced, executor, stages_for(config, fenced, command), others)
    finally:
        executor.close()
    if command in ("run", MAKE_REPORT) or config.evaluate.agent is not None:
        print(summarise_scores(store))
    return 0


def _others(store: Store, reuse: Sequence[str]) -> list[Store]:
    """Stores of other runs, to whose stages a run may refer.

    Raises:
        ConfigError: One of them is the run itself.
        StorageError: One of them is not a run.
    """
    from pipeline.storage.run_dir import open_other, relative_run

    others = [open_other(each) for each in reuse]
    for other in others:
        require_run(other)
        if relative_run(store.locate(), other.locate()) == ".":
            raise ConfigError(f"--reuse {other.locate()} is the run itself: name another run")
    return others


def _annotated(config: RunConfig) -> str:
    """The config as saved in the run, with the precision that ``auto`` selects on this machine.

    Raises:
        ConfigError: The engine or the precision of rollouts is not available here.
    """
    from pipeline.config.identity import cpu_kind
    from pipeline.models.precision import resolved

    precision = resolved(config.rollouts, exact=config.execution.exact)["precision"]
    if precision == config.rollouts.precision:
        return dump(config)
    return f"{dump(config)}# On {cpu_kind()}, rollouts.precision auto is {precision}.\n"


def _check_same_run(config: RunConfig, store: Store) -> None:
    from pipeline.config.identity import check_same_run

    if store.exists(CONFIG):
        check_same_run(saved_config(store), config, store.locate())
    elif leftovers := [key for key in occupying_keys(store) if not key.startswith(SESSIONS)]:
        raise ConfigError(
            f"{store.locate()} is not empty and holds no run ({store.locate(leftovers[0])} exists, {CONFIG} does not). "
            "Choose another --run-dir."
        )
