"""Shared parts of the commands' arguments: types with clear errors, and options of several commands."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.config.presets import preset_names
from pipeline.storage.run_dir import as_run_dir, require_writable


class CommandParser(argparse.ArgumentParser):
    """Parser of a command that reports unknown arguments with its own usage."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """See ``argparse.ArgumentParser.parse_known_args``; no argument is unknown in its result."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[CommandParser]

FORMATTER = argparse.RawDescriptionHelpFormatter

RUN_DIR_HELP = "run directory: a folder or s3://bucket/prefix"
READ_HELP = f"{RUN_DIR_HELP}, or pretrained:NAME for an agent that comes with the package"

EXIT_CODES = """\
exit codes:
  0    done
  1    failed; the message says what to do
  2    the command line or the config is wrong; nothing was written
  3    a wall-clock limit ended the session
  130  Ctrl-C
  143  SIGTERM
After 1, 3, 130, 143 or a kill, run the same command again: it resumes from the committed work. After `world-models
run`, so does `world-models resume RUN_DIR`.
"""


def add_config(command: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add ``CONFIG`` and ``--override``."""
    command.add_argument(
        "preset",
        metavar="CONFIG",
        nargs="?" if optional else None,
        help=f"preset ({', '.join(preset_names())}), path of a YAML file, or - for standard input",
    )
    add_override(command)


def add_override(command: argparse.ArgumentParser) -> None:
    """Add ``--override``."""
    command.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="config key by its dotted name, and its value, for example evolve.population_size=8; may be repeated. "
        "All keys are in docs/configuration.md and in RUN_DIR/config.yaml",
    )


def add_agent(command: argparse.ArgumentParser) -> None:
    """Add ``--agent``."""
    command.add_argument(
        "--agent",
        metavar="AGENT",
        help="external agent to evaluate, on the tracks of CONFIG: module:Class, a class with reset() and "
        "act(observation), or a run, whose config is the default of CONFIG. Needs --run-dir, for the result",
    )


def add_reuse(command: argparse.ArgumentParser) -> None:
    """Add ``--reuse``."""
    command.add_argument(
        "--reuse",
        action="append",
        default=[],
        type=run_dir,
        metavar="RUN_DIR",
        help="another run: this one refers to its stages of the same config and inputs instead of making them again; "
        "may be repeated. Keep that run where it is, or make this one whole with `world-models storage copy`",
    )


def add_below(command: argparse.ArgumentParser) -> None:
    """Add ``--below``."""
    command.add_argument(
        "--below",
        type=number,
        default=500.0,
        metavar="RETURN",
        help="return below which an episode counts as failed (default: 500)",
    )


def run_dir(text: str) -> str:
    """Parse the location of a run to read: a folder, ``s3://bucket/prefix`` or ``pretrained:NAME``."""
    try:
        return as_run_dir(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def written_dir(text: str) -> str:
    """Parse the location of a run to write: a folder or ``s3://bucket/prefix``."""
    try:
        require_writable(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return run_dir(text)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    return _whole(text, 1, None, "a whole number above 0")


def seed(text: str) -> int:
    """Parse the seed of a track."""
    return _whole(text, 0, None, "a seed of 0 or above")


def port(text: str) -> int:
    """Parse a port of TCP."""
    return _whole(text, 0, 65_535, "a port from 0 to 65535")


def _whole(text: str, least: int, most: int | None, expected: str) -> int:
    """Parse a whole number within bounds."""
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        raise argparse.ArgumentTypeError(f"{text}: {expected} was expected")
    return int(text)


def above_zero(text: str) -> float:
    """Parse a number above 0."""
    if (value := number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 was expected")
    return value


def not_negative(text: str) -> float:
    """Parse a number that is 0 or above."""
    if (value := number(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: a number of 0 or above was expected")
    return value


def number(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: a number was expected")
    return value
