"""``world-models push``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.cli.arguments import FORMATTER, run_dir

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_EXAMPLES = """\
examples:
  world-models pack runs/laptop --name carracing
  world-models push carracing --to hf://my-name/carracing
"""


def add_parser(commands: Commands) -> None:
    """Add ``push``."""
    text = "upload a pack to the Hugging Face Hub"
    command = commands.add_parser(
        "push",
        help=text,
        description=f"{text}, as one commit. Log in with `hf auth login`, or set HF_TOKEN. HF_ENDPOINT names another "
        "hub.\nThe repository is made if it does not exist; files of an earlier pack in it are replaced.",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    command.add_argument("pack", metavar="PACK", type=run_dir, help="folder of a pack, or pretrained:NAME")
    command.add_argument("--to", required=True, metavar="hf://USER/NAME", help="repository")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.set_defaults(perform=_push)


def _push(options: argparse.Namespace) -> int:
    from pipeline.sharing.push import push, repository_of
    from pipeline.storage.run_dir import open_store

    repository = repository_of(options.to)
    print(f"uploaded: {push(open_store(options.pack), repository, private=options.private)}")
    return 0
