"""The ``world-models`` command: the composition root."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, WorldModelsError
from pipeline.logs import configure_logging
from pipeline.presets import CONFIG_KEY, dump, load_config, preset_names, saved_config

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.executor import Executor
    from pipeline.storage.store import Store

logger = logging.getLogger(__name__)

_STAGE_HELP = {
    "collect": "1: drive the environment with a random policy, write episodes to shards",
    "train-vae": "2: train the VAE (V) on the frames",
    "encode": "3: turn the frames into latents",
    "train-mdnrnn": "4: train the MDN-RNN (M) on latents and actions",
    "evolve": "5: evolve the controller (C) by CMA-ES",
    "evaluate": "6: drive the test tracks",
    "report": "7: make the page that shows what came out",
}

_EXAMPLES = """\
examples:
  world-models run tiny                                   the whole pipeline in minutes, into runs/tiny
  world-models run tiny                                   again: what is complete is skipped
  world-models run laptop --run-dir /data/laptop          a real result on a few cores
  world-models run tiny -o evolve.population_size=8 -o seed=2 --run-dir runs/x
  world-models run my.yaml --run-dir runs/mine            a config of your own
  world-models train-vae tiny                             one stage, with the same arguments
  world-models status runs/tiny                           where a run is
"""

_BENCHES = {
    "env": "Gymnasium's CarRacing-v3 beside ours, a core",
    "agent": "the naive agent loop beside a rollout worker, a core",
    "generation": "one generation of 64 x 16 episodes on all cores, around the controllers of a run",
    "fidelity": "the best controller of a run on both drawings and at every precision of V's encoder",
    "collect": "the environment alone beside collecting frames into shards, a core",
    "train-vae": "a plain training step of V beside the pipeline's",
    "train-mdnrnn": "a plain training step of M beside the pipeline's",
    "dream": "one dream at a time beside many, a core",
    "storage": "numpy files beside shards",
}

_BENCH_EXAMPLES = """\
examples:
  world-models bench env                                  a table with the ratio
  world-models bench agent --seconds 30 --json            the last line is one JSON object
  world-models bench generation                           takes minutes, and a run: see --run-dir
  world-models bench all                                  everything: what the README shows
"""

_EXIT_CODES = """\
exit codes: 0 done; 1 failed, the message says what to do; 2 the command line or the config is wrong, nothing was
written; 3 a wall-clock limit ended the sitting; 130 Ctrl-C; 143 SIGTERM. After 1, 3, 130, 143 or a kill: run the same
command again, it goes on from what is committed.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="world-models",
        description="World Models (Ha & Schmidhuber 2018) as a pipeline on Ray: VAE, MDN-RNN, CMA-ES controller.",
        epilog=_EXAMPLES + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {"run": "all stages in order; goes on where it was", **_STAGE_HELP}.items():
        command = commands.add_parser(
            name, help=text, description=text, epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument(
            "preset", metavar="CONFIG", help=f"a preset ({', '.join(preset_names())}) or the path of a YAML file"
        )
        command.add_argument(
            "-o",
            "--override",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="set a config key by its dotted name, for example evolve.population_size=8; may be repeated. "
            "All keys are in pipeline/config.py and in RUN_DIR/config.yaml",
        )
        command.add_argument("--run-dir", help="where the run lives; by default runs/NAME, NAME being the config's")
    status = commands.add_parser("status", help="where a run is", description="Where a run is: stages, evolution.")
    status.add_argument("run_dir")
    text = "measure speed, ours beside a reference, in turn in one run"
    bench = commands.add_parser(
        "bench",
        help=text,
        description=text + ":\n" + "\n".join(f"  {name:<13} {what}" for name, what in _BENCHES.items()),
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument("name", metavar="NAME", choices=[*_BENCHES, "all"], help=f"{', '.join(_BENCHES)}, or all")
    bench.add_argument(
        "--run-dir",
        help="the run whose controllers `generation` and `fidelity` drive; by default runs/laptop, or else runs/tiny, "
        "which is made first (minutes) where neither is there",
    )
    bench.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="each side is measured for so long, all turns together; 10 unless told",
    )
    bench.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    configure_logging()
    options = _parser().parse_args(arguments)
    resume = f"to go on, run the same command again: world-models {shlex.join(arguments or sys.argv[1:])}"
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.unraisablehook = _deliver_again
    try:
        return _dispatch(options)
    except WorldModelsError as error:
        print(f"world-models: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        # Not by the exception: Ray raises one of its own in place of one that crosses it.
        terminated = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        how = "terminated" if terminated else "interrupted"
        print(f"\nworld-models: {how}; what is committed is kept; {resume}", file=sys.stderr)
        return 143 if terminated else 130


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the command as Ctrl-C does: KeyboardInterrupt is what Ray's own calls let through."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.SIGTERM)


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
    if options.command == "status":
        from pipeline.status import describe_run
        from pipeline.storage.store import open_store

        print(describe_run(open_store(options.run_dir)))
        return 0
    config = load_config(options.preset, options.override)
    return _run(config, options.run_dir or f"runs/{config.name}", options.command)


def _bench(options: argparse.Namespace) -> int:
    from pipeline.bench.run import NEED_A_RUN, run_benches
    from pipeline.storage.manifest import read_manifest
    from pipeline.storage.store import open_store

    names = [*_BENCHES] if options.name == "all" else [options.name]
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
        as_json=options.json,
        store=None if run_dir is None else open_store(run_dir),
        executor=_make_executor,
    )
    return 0


def _run(config: RunConfig, run_dir: str, command: str) -> int:
    from pipeline import preflight
    from pipeline.envs.registry import environment_class
    from pipeline.sittings import begin_sitting, check_machine
    from pipeline.storage.store import open_store

    # Everything that can be refused is refused before anything is written.
    store = open_store(run_dir)
    environment_class(config.env.id)
    _check_same_run(config, store)
    check_machine(store, exact=config.execution.exact)
    preflight.check(config, run_dir)
    logger.info(preflight.describe(config, store.locate()))

    executor = _make_executor(config)
    signal.signal(signal.SIGTERM, _on_sigterm)  # Ray sets one of its own
    try:
        # The stages bring torch with them: after what can be refused without it.
        from pipeline.run import STAGES, run_stages, stage_named
        from pipeline.status import achieved
        from pipeline.training.hardware import check_devices

        check_devices(config, executor)
        store.write(CONFIG_KEY, dump(config).encode())
        begin_sitting(store)
        run_stages(config, store, executor, STAGES if command == "run" else [stage_named(command)])
    finally:
        executor.close()
    if command in ("run", "report"):
        print(achieved(store))
    return 0


def _check_same_run(config: RunConfig, store: Store) -> None:
    from pipeline.identity import check_same_run

    if store.exists(CONFIG_KEY):
        check_same_run(saved_config(store), config, store.locate())
    elif leftovers := store.list():
        raise ConfigError(
            f"{store.locate()} is not empty and holds no run ({store.locate(leftovers[0])} is there, {CONFIG_KEY} is "
            "not): choose another --run-dir"
        )


def _make_executor(config: RunConfig) -> Executor:
    if config.execution.executor == "in-process":
        from pipeline.executor import InProcessExecutor

        return InProcessExecutor()
    if not (config.execution.ray_address or os.environ.get("RAY_ADDRESS")):
        # A local Ray of our own: servers on loopback alone (Ray reads this when it is imported, and by default picks an
        # address that other machines reach), and no tokens, whatever the user's environment says about clusters.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "disabled"
    from actors.executor import RayExecutor

    return RayExecutor(config)
