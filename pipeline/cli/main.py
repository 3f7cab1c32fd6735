"""The ``world-models`` command: the composition root."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from pipeline.base import output
from pipeline.base.errors import WorldModelsError
from pipeline.base.failpoints import VARIABLE, arm_from_environment
from pipeline.base.logs import configure_logging
from pipeline.cli import bench, plan, run, signals, status, storage, submit
from pipeline.cli.arguments import EXIT_CODES, FORMATTER

_EXAMPLES = """\
examples:
  world-models run tiny                                   the whole pipeline in minutes, into runs/tiny
  world-models run tiny                                   again: what is complete is skipped
  world-models run laptop --run-dir /data/laptop          a real result on a few cores
  world-models run tiny -o evolve.population_size=8 -o seed=2 --run-dir runs/x
  world-models run my.yaml --run-dir runs/mine            a config of your own
  world-models train-vae tiny                             one stage, with the same arguments
  world-models run tiny --run-dir s3://bucket/tiny        on object storage; credentials from the AWS environment
  world-models resume runs/tiny                           resume a run with its saved config  
  world-models status runs/tiny                           where a run is, and who drives it
  world-models plan paper --workers 256 --price 0.05      what an evolution takes, in seconds and dollars
  world-models submit paper --run-dir s3://bucket/paper   as a job of a Ray cluster
  world-models storage check runs/tiny                    verify every byte of a run
"""

# Commands that work for the reader of their standard output alone.
_FILTERS = ("bench", "plan", "status", "storage")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    configure_logging()
    arm_from_environment(VARIABLE)
    options = make_parser().parse_args(arguments)
    if options.command in _FILTERS:
        output.require_a_reader()
    signals.handle_stops()
    try:
        code: int = options.perform(options)
        output.flush()
        return code
    except output.ReaderLeft:
        return output.EXIT_CODE_OF_A_FILTER
    except WorldModelsError as error:
        print(f"world-models: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        terminated = signals.was_terminated()
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


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``perform`` of what it parses is the function that does it."""
    parser = argparse.ArgumentParser(
        prog="world-models",
        description="World Models (Ha & Schmidhuber 2018) as a pipeline on Ray: VAE, MDN-RNN, CMA-ES controller.",
        epilog=_EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=FORMATTER,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run.add_parsers(commands)
    for command in (status, plan, submit, storage, bench):
        command.add_parser(commands)
    return parser


def _again(options: argparse.Namespace, arguments: Sequence[str] | None) -> str:
    """How to go on: with the same command, or, as a job of a cluster, with another job like it."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return "submit the same again"
    resume = f", or world-models resume {shlex.quote(options.run_dir)}" if options.command == "run" else ""
    return f"run the same command again: world-models {shlex.join(arguments or sys.argv[1:])}{resume}"
