"""The ``world-models`` command: the composition root."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from pipeline.base import output
from pipeline.base.errors import SUBMIT_AGAIN, WorldModelsError, resume_hint
from pipeline.base.failpoints import VARIABLE, arm_from_environment
from pipeline.base.logs import configure_logging
from pipeline.base.ray_environment import is_job
from pipeline.cli import (
    baselines,
    bench,
    compare,
    export,
    pack,
    plan,
    push,
    run,
    signals,
    status,
    storage,
    study,
    submit,
    temperatures,
    view,
    watch,
)
from pipeline.cli.arguments import EXIT_CODES, FORMATTER, CommandParser
from pipeline.stages.table import STAGES

_EXAMPLES = """\
examples:
  world-models run tiny                                   run the whole pipeline in minutes, into runs/tiny
  world-models run tiny                                   again: complete stages are skipped
  world-models run laptop --run-dir /data/laptop          train a good controller on a few cores
  world-models run tiny -o evolve.population_size=8 -o seed=2 --run-dir runs/x
  world-models run my.yaml --run-dir runs/mine            run your own config
  world-models train-vae tiny                             run one stage, with the same arguments
  world-models run tiny --run-dir s3://bucket/tiny        use object storage (credentials: AWS environment)
  world-models resume runs/tiny                           resume a run with its saved config
  world-models status runs/tiny                           show the progress and the driver of a run
  world-models view runs/laptop                           watch the agent, take the wheel, drive in its dream
  world-models watch runs/laptop --dream                  write a video of an episode, with M's dream of it
  world-models temperatures runs/takecover-laptop         compare returns in dreams and in the game
  world-models baselines runs/takecover-laptop            compare with blind policies
  world-models study tiny --vary mdnrnn.init=trained,random --seeds 1,2,3   run six configs, and compare them
  world-models compare runs/a runs/b                      compare runs on the same test tracks
  world-models evaluate laptop --agent my_agents:Ppo --run-dir runs/ppo     put an external agent on the same tracks
  world-models pack runs/laptop --name carracing          pack the agent into a small folder to share
  world-models push carracing --to hf://my-name/carracing                   upload it to the Hugging Face Hub
  world-models export runs/laptop --onnx agent            write the agent as ONNX files, for other programs
  world-models plan paper --workers 256 --price 0.05      estimate time and cost of an evolution
  world-models submit paper --run-dir s3://bucket/paper   run as a job of a Ray cluster
  world-models storage check runs/tiny                    verify every byte of a run
"""

# Commands whose work is saved as they go, so that the same command resumes it.
_RESUMABLE = {
    *(stage.name for stage in STAGES),
    "run",
    "resume",
    "submit",
    "study",
    "temperatures",
}
# Commands whose only purpose is their standard output.
_FILTERS = ("baselines", "bench", "compare", "export", "plan", "status", "storage")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line without the program's name (default: ``sys.argv[1:]``).

    Returns:
        Exit code.
    """
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
        print(f"world-models: {error if is_resumable(options) else error.for_readers}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        terminated = signals.was_terminated()
        how = "terminated" if terminated else "interrupted"
        saved = ""
        if is_resumable(options):
            saved = f". {resume_hint(_how_to_resume(options, arguments))}"
        print(f"\nworld-models: {how}{saved}", file=sys.stderr)
        return 143 if terminated else 130
    finally:
        output.require_a_reader(False)  # text left in the buffer has no reader


def entry() -> None:
    """Run the command as a process, which exits at once after a stop even if threads still wait for a store."""
    output.drop_unread_output()
    code = main()
    if code in (130, 143):
        output.flush()
        os._exit(code)
    sys.exit(code)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; ``perform`` of the parsed options is the command's function."""
    parser = argparse.ArgumentParser(
        prog="world-models",
        description="World Models (Ha & Schmidhuber 2018) as a pipeline on Ray: VAE, MDN-RNN, CMA-ES controller.",
        epilog=_EXAMPLES + "\n" + EXIT_CODES,
        formatter_class=FORMATTER,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    run.add_parsers(commands)
    for command in (
        status, view, watch, plan, submit, study, compare, temperatures, baselines, pack, push, export, storage, bench,
    ):  # fmt: skip
        command.add_parser(commands)
    return parser


def is_resumable(options: argparse.Namespace) -> bool:
    """Whether the same command resumes saved work."""
    command: str = options.command
    if command == "storage":
        return options.action == "copy" or (options.action == "gc" and bool(options.delete))
    return command in _RESUMABLE


def _how_to_resume(options: argparse.Namespace, arguments: Sequence[str] | None) -> str:
    """Clause for ``resume_hint``: by the same command or, for a job of a cluster, by submitting the same run again."""
    if is_job():
        return SUBMIT_AGAIN
    resume = f" (or: world-models resume {shlex.quote(options.run_dir)})" if options.command == "run" else ""
    return f"run: world-models {shlex.join(arguments or sys.argv[1:])}{resume}"
