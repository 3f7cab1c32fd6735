"""``world-models view``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.cli import signals
from pipeline.cli.arguments import FORMATTER, READ_HELP, port, positive, run_dir

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_EXAMPLES = """\
examples:
  world-models view pretrained:carracing            an agent that comes with the package
  world-models view runs/laptop                     print the address of a page on this machine; Ctrl-C ends it
  world-models view runs/ablation                   the runs of a study beside each other
  world-models view s3://bucket/run --port 8000     a run in a bucket, at a fixed port
  ssh -L 8000:localhost:8000 HOST                   reach it from your own machine, at the same address
"""


def add_parser(commands: Commands) -> None:
    """Add ``view``."""
    text = "open a page on which you watch the agent, take the wheel, and drive in its dream"
    view = commands.add_parser(
        "view",
        help=text,
        description=f"{text}.\nA run that is under way is shown too, with its progress and its curves. Nothing is "
        "written to the run.",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    view.add_argument("run_dir", metavar="RUN", type=run_dir, help=f"{READ_HELP}; or the folder of a study")
    view.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    view.add_argument("--port", type=port, default=0, help="port (default: a free one)")
    view.add_argument(
        "--viewers",
        type=positive,
        default=4,
        metavar="N",
        help="most viewers at once; each has a process with a world of its own (default: %(default)s)",
    )
    view.set_defaults(perform=_view)


def _view(options: argparse.Namespace) -> int:
    import asyncio

    from pipeline.view.server import ViewServer

    server = ViewServer(options.run_dir, options.host, options.port, options.viewers)

    async def serve() -> None:
        try:
            print(f"open {await server.start()}", flush=True)
            if server.is_public:
                print("everyone who has this address can watch, and nothing is encrypted: use networks that you trust")
            print("Ctrl-C ends it", flush=True)
            await asyncio.Event().wait()
        finally:
            await server.stop()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        if signals.was_terminated():
            raise
    return 0
