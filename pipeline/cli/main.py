"""The ``world-models`` command: the composition root."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.base import output
from pipeline.base.errors import ConfigError, WorldModelsError
from pipeline.base.failpoints import VARIABLE, arm_from_environment, failpoint
from pipeline.base.logs import configure_logging
from pipeline.cli.command_line import BENCHES, make_parser
from pipeline.config.presets import dump, load_config, saved_config
from pipeline.storage.layout import CONFIG

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig
    from pipeline.execution.protocol import Executor
    from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

# Commands that work for the reader of their standard output alone.
_FILTERS = ("bench", "plan", "status", "storage")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    configure_logging()
    arm_from_environment(VARIABLE)
    options = make_parser().parse_args(arguments)
    if options.command in _FILTERS:
        output.require_a_reader()
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.unraisablehook = _deliver_again
    try:
        code = _dispatch(options)
        output.flush()
        return code
    except output.ReaderLeft:
        return output.EXIT_CODE_OF_A_FILTER
    except WorldModelsError as error:
        print(f"world-models: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        # Not by the exception: Ray raises one of its own in place of one that crosses it.
        terminated = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        how = "terminated" if terminated else "interrupted"
        again = _again(options, arguments)
        print(f"\nworld-models: {how}; what is committed is kept; to go on, {again}", file=sys.stderr)
        return 143 if terminated else 130
    finally:
        output.require_a_reader(False)  # what is left in the buffer is for nobody


def entry() -> None:
    """The command's process: it ends at once after a stop, whatever thread still waits for a store."""
    output.drop_what_nobody_takes()
    code = main()
    if code in (130, 143):
        output.flush()
        os._exit(code)
    sys.exit(code)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the command as Ctrl-C does: KeyboardInterrupt is what Ray's own calls let through."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.SIGTERM)


def _again(options: argparse.Namespace, arguments: Sequence[str] | None) -> str:
    """How to go on: with the same command, or, as a job of a cluster, with another job like it."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return "submit the same again"
    resume = f", or world-models resume {shlex.quote(options.run_dir)}" if options.command == "run" else ""
    return f"run the same command again: world-models {shlex.join(arguments or sys.argv[1:])}{resume}"


def _deliver_again(unraisable: sys.UnraisableHookArgs) -> None:
    """A stop that was raised inside a finaliser, where Python drops it, comes again a moment later."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if unraisable.exc_value.args == (signal.SIGTERM,) else signal.SIGINT
    if number == signal.SIGTERM:
        signal.signal(signal.SIGTERM, _on_sigterm)
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def _dispatch(options: argparse.Namespace) -> int:
    if options.command == "bench":
        return _bench(options)
    if options.command == "plan":
        return _plan(options)
    if options.command == "status":
        from pipeline.reporting.status import describe_run
        from pipeline.storage.store import open_store

        print(describe_run(open_store(options.run_dir)))
        return 0
    if options.command == "storage":
        return _storage(options)
    if options.command == "submit":
        from cluster.submit import make_job, submit

        job = make_job(options.preset, options.override, options.run_dir, options.env, os.environ)
        return submit(job, options.address, follow=options.follow)
    if options.command == "resume":
        from pipeline.storage.maintenance import require_run
        from pipeline.storage.store import open_store

        store = open_store(options.run_dir)
        require_run(store)
        return _run(saved_config(store, options.override), options.run_dir, "run")
    config = load_config(options.preset, options.override)
    options.run_dir = options.run_dir or f"runs/{config.name}"
    return _run(config, options.run_dir, options.command)


def _storage(options: argparse.Namespace) -> int:
    from pipeline.storage import maintenance
    from pipeline.storage.checkpoints import KEEP
    from pipeline.storage.session_notes import lease_for
    from pipeline.storage.store import open_store

    if options.action == "copy":
        source, target = open_store(options.source), open_store(options.target)
        print(f"{maintenance.copy_run(source, target):,} objects are in {target.locate()}, verified")
        return 0
    store = open_store(options.run_dir)
    if options.action == "check":
        found = maintenance.check_run(store)
        print("\n".join(maintenance.check_lines(found, store)))
        return 1 if found.problems else 0
    maintenance.require_run(store)
    config = saved_config(store)
    by_prefix = {"evolution": config.evolve.keep_checkpoints} if options.keep is None else {}
    keep = maintenance.kept_checkpoints(by_prefix, options.keep or KEEP)
    if options.delete:
        with lease_for(config, store, "storage gc") as fenced:
            garbage = maintenance.find_garbage(fenced, keep)
            maintenance.remove_garbage(fenced, garbage)
    else:
        garbage = maintenance.find_garbage(store, keep)
    print("\n".join(maintenance.garbage_lines(garbage, store, deleted=options.delete)))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from pipeline.bench.run import NEED_A_RUN, run_benches
    from pipeline.storage.manifest import read_manifest
    from pipeline.storage.store import open_store

    names = [name for name in BENCHES if name != "fanout"] if options.name == "all" else [options.name]
    run_dir = options.run_dir
    if run_dir is None and not NEED_A_RUN.isdisjoint(names):
        finished = (path for path in ("runs/laptop", "runs/tiny") if read_manifest(open_store(path), "report"))
        run_dir = next(finished, None)
        if run_dir is None:
            logger.info("no run to drive the controllers of: first `world-models run tiny`, a few minutes")
            run_dir = "runs/tiny"
            _run(load_config("tiny", []), run_dir, "run")
    run_benches(
        names,
        seconds=options.seconds,
        workers=options.workers,
        as_json=options.json,
        store=None if run_dir is None else open_store(run_dir),
        executor=_make_executor,
    )
    return 0


def _plan(options: argparse.Namespace) -> int:
    from pipeline.envs.registry import check_environment
    from pipeline.planning import plan as planning
    from pipeline.planning.simulation import WorkerSpeed
    from pipeline.storage.store import open_store

    config = load_config(options.preset, options.override)
    check_environment(config)
    episode_steps = None
    if options.run_dir is not None:
        episode_steps = planning.measured_episode_steps(open_store(options.run_dir), config)
    rates, speed_from = options.steps_per_s, "as given"
    if rates is None:
        from pipeline.base.machine import num_cores
        from pipeline.bench.lanes import measure_rates
        from pipeline.config.identity import cpu_kind

        cores = num_cores()
        at_once = f"{cores} worker{'s' if cores > 1 else ''} at once"
        speed_from = f"CPU time, a new track every episode, measured now on {cpu_kind()}, {at_once}"
        logger.info("measuring a worker's speed, half a minute or so; --steps-per-s goes without")
        rates = measure_rates(config, options.seconds, cores)
    costs = planning.Costs(
        speed=WorkerSpeed.from_rates(config, *rates),
        episode_steps=episode_steps,
        dispatch_s=(planning.DISPATCH_MS if options.dispatch_ms is None else options.dispatch_ms) / 1e3,
        overhead_s=(planning.OVERHEAD_MS if options.overhead_ms is None else options.overhead_ms) / 1e3,
    )
    estimates = [planning.Estimate(config, costs, workers) for workers in options.workers or planning.WORKERS]
    print("\n".join(planning.describe(estimates, options.price, speed_from)))
    if options.json:
        print(json.dumps(planning.figures(estimates, options.price, speed_from)))
    return 0


def _run(config: RunConfig, run_dir: str, command: str) -> int:
    from pipeline.envs.registry import check_environment
    from pipeline.planning import preflight
    from pipeline.storage.session_notes import check_machine, lease_for
    from pipeline.storage.sessions import refuse_if_driven
    from pipeline.storage.store import open_store

    # Everything that can be refused is refused before anything is written.
    store = open_store(run_dir)
    check_environment(config)
    refuse_if_driven(store)
    _check_same_run(config, store)
    check_machine(store, exact=config.execution.exact)
    preflight.check(config, run_dir)
    logger.info(preflight.describe(config, store.locate()))

    executor = _make_executor(config)
    try:
        # The stages bring torch with them: after what can be refused without it.
        from pipeline.reporting.status import achieved
        from pipeline.run import run_stages
        from pipeline.stages.table import STAGES, stage_named
        from pipeline.training.hardware import check_devices

        check_devices(config, executor)
        text = _annotated(config)
        with lease_for(config, store, command) as fenced:
            # Once more: another driver may have begun the run, and ended, since.
            _check_same_run(config, store)
            check_machine(store, exact=config.execution.exact, session=fenced.session)
            fenced.write(CONFIG, text.encode())
            failpoint("config-written")
            run_stages(config, fenced, executor, STAGES if command == "run" else [stage_named(command)])
    finally:
        executor.close()
    if command in ("run", "report"):
        print(achieved(store))
    return 0


def _annotated(config: RunConfig) -> str:
    """The config as the run keeps it: what ``auto`` comes to depends on the machine.

    Raises:
        ConfigError: the engine or the precision of rollouts is not to be had here.
    """
    from pipeline.config.identity import cpu_kind
    from pipeline.models.precision import resolved

    precision = resolved(config)["precision"]
    if precision == config.rollouts.precision:
        return dump(config)
    return f"{dump(config)}# On {cpu_kind()}, rollouts.precision auto is {precision}.\n"


def _check_same_run(config: RunConfig, store: Store) -> None:
    from pipeline.config.identity import check_same_run
    from pipeline.storage import sealed
    from pipeline.storage.layout import SESSIONS, occupying_keys

    if store.exists(CONFIG):
        sealed.require_format(store)
        check_same_run(saved_config(store), config, store.locate())
    elif leftovers := [key for key in occupying_keys(store) if not key.startswith(SESSIONS)]:
        raise ConfigError(
            f"{store.locate()} is not empty and holds no run ({store.locate(leftovers[0])} is there, {CONFIG} is "
            "not): choose another --run-dir"
        )


def _make_executor(config: RunConfig) -> Executor:
    if config.execution.executor == "in-process":
        from pipeline.execution.in_process import InProcessExecutor

        return InProcessExecutor(config.execution.max_attempts)
    from pipeline.execution.cluster import cluster_address

    if cluster_address(config.execution) is None:
        # A local Ray of our own: servers on loopback alone (Ray reads this when it is imported, and by default picks an
        # address that other machines reach), and no tokens, whatever the user's environment says about clusters. Its
        # workers have the priority that the config says: at Ray's default, 15, one busy program starves them.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "disabled"
        os.environ["RAY_worker_niceness"] = str(config.execution.niceness)  # noqa: SIM112 - its name
    from actors.executor import RayExecutor

    return RayExecutor(config)
