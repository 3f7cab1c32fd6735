"""``world-models pack``."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.cli.arguments import FORMATTER, READ_HELP, add_override, run_dir
from pipeline.cli.executors import make_executor

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_EXAMPLES = """\
examples:
  world-models pack runs/laptop --name carracing                     into the folder carracing
  world-models pack s3://bucket/laptop --name mine --out /data/mine
"""


def add_parser(commands: Commands) -> None:
    """Add ``pack``."""
    text = "pack the agent of a run into a small folder to share, with a card"
    command = commands.add_parser(
        "pack",
        help=text,
        description=f"{text}.\nWeights are stored in half precision unless the score suffers. The test tracks are "
        "played again with the packed weights,\nso that the card states the score of these files. Nothing is written "
        "to the run. All commands that read\na run read a pack.",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    command.add_argument("run_dir", metavar="RUN_DIR", type=run_dir, help=READ_HELP)
    command.add_argument("--name", required=True, type=_name, help="name of the agent: letters, digits, - and _")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="new folder of the pack (default: NAME)")
    command.add_argument(
        "--license",
        default="MIT",
        type=_spdx,
        metavar="SPDX",
        help="SPDX identifier of the licence of the weights, for the card (default: MIT)",
    )
    add_override(command)
    command.set_defaults(perform=_pack)


def _name(text: str) -> str:
    if not text or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in text):
        raise argparse.ArgumentTypeError(f"{text}: letters, digits, - and _ were expected")
    return text


def _spdx(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", text) is None:
        raise argparse.ArgumentTypeError(f"{text}: an SPDX identifier was expected, such as MIT or Apache-2.0")
    return text


def _pack(options: argparse.Namespace) -> int:
    from pipeline.config.identity import refuse_other_identity
    from pipeline.sharing.card import card, summary
    from pipeline.sharing.pack import make_pack, move_into_place, new_folder
    from pipeline.storage.layout import CARD
    from pipeline.storage.local import LocalStore
    from pipeline.storage.pretrained import PRETRAINED, folder_of_pretrained
    from pipeline.storage.run_dir import open_store
    from pipeline.storage.saved_config import saved_config

    source = open_store(options.run_dir)
    config = saved_config(source, options.override)
    refuse_other_identity(saved_config(source), config, (), "pack")
    out: Path = (options.out or Path(options.name)).absolute()
    shipped = out.parent == folder_of_pretrained()
    if shipped and out.name != options.name:
        raise ConfigError(f"--out {out}: agents of the package lie in the folder of their name, {options.name}")
    folder = new_folder(out)
    try:
        executor = make_executor(config)
        try:
            store = LocalStore(folder)
            made = make_pack(source, options.name, store, executor)
        finally:
            executor.close()
        where = f"{PRETRAINED}{options.name}" if shipped else options.name
        store.write(CARD, card(made, store, where, options.license).encode())
        size_bytes = move_into_place(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(summary(made, str(out), size_bytes))
    return 0
