"""``world-models status``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.cli import signals
from pipeline.cli.arguments import READ_HELP, run_dir

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Add ``status``."""
    text = "show the state of a run: stages, evolution, time left, driver"
    status = commands.add_parser("status", help=text, description=text)
    status.add_argument("run_dir", metavar="RUN_DIR", type=run_dir, help=READ_HELP)
    status.add_argument(
        "--watch", action="store_true", help="live view, until the run is over or Ctrl-C; also of the folder of a study"
    )
    status.set_defaults(perform=_status)


def _status(options: argparse.Namespace) -> int:
    if options.watch:
        from rich.console import Console

        from pipeline.cli.live import watch
        from pipeline.view.runs import Runs

        try:
            watch(Runs(options.run_dir), Console(highlight=False))
        except KeyboardInterrupt:  # the usual way to leave
            if signals.was_terminated():
                raise
        return 0
    from pipeline.cli.status_text import describe_run
    from pipeline.storage.run_dir import open_store

    print(describe_run(open_store(options.run_dir)))
    return 0
