"""``world-models bench``."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from pipeline.bench.table import FANOUT, HELP, NEED_A_RUN
from pipeline.cli.arguments import FORMATTER, above_zero, positive, run_dir
from pipeline.cli.executors import make_executor
from pipeline.cli.run import run_config
from pipeline.config.presets import load_config

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

logger = logging.getLogger(__name__)

_BENCH_EXAMPLES = """\
examples:
  world-models bench env                                  a table with the ratio
  world-models bench agent --seconds 30 --json            the last line is one JSON object
  world-models bench generation                           takes minutes, and a run: see --run-dir
  world-models bench all                                  everything: what the README shows
"""


def add_parser(commands: Commands) -> None:
    """Add the command."""
    text = "measure speed, ours beside a reference, in turn in one run"
    bench = commands.add_parser(
        "bench",
        help=text,
        description=text + ":\n" + "\n".join(f"  {name:<13} {what}" for name, what in HELP.items()),
        epilog=_BENCH_EXAMPLES,
        formatter_class=FORMATTER,
    )
    bench.add_argument(
        "name", metavar="NAME", choices=[*HELP, "all"], help=f"{', '.join(HELP)}; or all: every one but fanout"
    )
    bench.add_argument(
        "--run-dir",
        type=run_dir,
        help="the run whose controllers `generation` and `fidelity` drive; by default runs/laptop, or else runs/tiny, "
        "which is made first (minutes) where neither is there",
    )
    bench.add_argument(
        "--seconds",
        type=above_zero,
        default=10.0,
        help="each side is measured for so long, all turns together; 10 unless told",
    )
    bench.add_argument(
        "--workers",
        type=positive,
        default=256,
        metavar="N",
        help="`fanout` goes up to so many, all of them on this machine: 256 take 20 GiB of memory; 256 unless told",
    )
    bench.add_argument("--json", action="store_true", help="one JSON object as the last line")
    bench.set_defaults(perform=_bench)


def _bench(options: argparse.Namespace) -> int:
    from pipeline.bench.run import run_benches
    from pipeline.storage.manifest import read_manifest
    from pipeline.storage.store import open_store

    names = [name for name in HELP if name != FANOUT] if options.name == "all" else [options.name]
    run_dir = options.run_dir
    if run_dir is None and not NEED_A_RUN.isdisjoint(names):
        finished = (path for path in ("runs/laptop", "runs/tiny") if read_manifest(open_store(path), "report"))
        run_dir = next(finished, None)
        if run_dir is None:
            logger.info("no run to drive the controllers of: first `world-models run tiny`, a few minutes")
            run_dir = "runs/tiny"
            run_config(load_config("tiny", []), run_dir, "run")
    run_benches(
        names,
        seconds=options.seconds,
        workers=options.workers,
        as_json=options.json,
        store=None if run_dir is None else open_store(run_dir),
        executor=make_executor,
    )
    return 0
