"""``world-models export``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.base.extras import import_extra
from pipeline.cli.arguments import FORMATTER, READ_HELP, run_dir

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_EXAMPLES = """\
examples:
  world-models export runs/laptop --onnx agent            the best controller
  world-models export runs/laptop --onnx agent --controller mean
"""


def add_parser(commands: Commands) -> None:
    """Add ``export``."""
    text = "write the agent of a run as ONNX files, for other programs and languages"
    command = commands.add_parser(
        "export",
        help=text,
        description=f"{text}:\nV's encoder and decoder, one step of M, and the controller, with a README that shows "
        "the loop. Nothing is written to the run.",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    command.add_argument("run_dir", metavar="RUN_DIR", type=run_dir, help=READ_HELP)
    command.add_argument(
        "--onnx",
        type=run_dir,
        required=True,
        metavar="FOLDER",
        help="folder or s3://bucket/prefix for the files: a new or empty one, or that of an earlier export",
    )
    command.add_argument("--controller", choices=("best", "mean"), help="controller (default: the best)")
    command.set_defaults(perform=_export)


def _export(options: argparse.Namespace) -> int:
    from pipeline.data.trained_agent import TrainedAgent
    from pipeline.storage.run_dir import open_store

    import_extra("onnx", "onnx", "world-models export")
    store = open_store(options.run_dir)
    trained = TrainedAgent.read(store)
    from pipeline.export.folder import export  # imports torch: after the checks that do not need it

    print("\n".join(export(trained, options.controller, open_store(options.onnx))))
    return 0
