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
  world-models bench env                                  print a table with the ratio
  world-models bench agent --seconds 30 --json            print one JSON object as the last line
  world-models bench generation                           measure a run's controllers (minutes; see --run-dir)
  world-models bench storage --s3 s3://bucket/bench       also measure your bucket
  world-models bench fanout                               simulate up to 2,048 workers
  world-models bench fanout --workers 16                  measure real Ray actors (about 7 minutes)
  world-models bench all                                  run every bench except fanout
"""


def add_parser(commands: Commands) -> None:
    """Add ``bench``."""
    text = "measure speed against a reference, both in turns in one run"
    bench = commands.add_parser(
        "bench",
        help=text,
        description=text + ":\n" + "\n".join(f"  {name:<13} {what}" for name, what in HELP.items()),
        epilog=_BENCH_EXAMPLES,
        formatter_class=FORMATTER,
    )
    bench.add_argument(
        "name", metavar="NAME", choices=[*HELP, "all"], help=f"{', '.join(HELP)}, or all (every bench except fanout)"
    )
    bench.add_argument(
        "--run-dir",
        type=run_dir,
        help="run whose controllers `generation` and `fidelity` measure (default: runs/laptop, else runs/tiny, which "
        "is created first, in minutes, if neither exists)",
    )
    bench.add_argument(
        "--seconds",
        type=above_zero,
        default=10.0,
        help="time to measure each side, all turns together (default: 10)",
    )
    bench.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="`fanout` measures real Ray actors on this machine, up to N of them (at most 16 for each core, and 32), "
        "instead of simulating thousands",
    )
    bench.add_argument(
        "--s3",
        type=_bucket,
        metavar="s3://BUCKET/PREFIX",
        help="`storage` measures shards in this bucket too, and deletes them again",
    )
    bench.add_argument("--json", action="store_true", help="print JSON: one object per bench, as the last lines")
    bench.set_defaults(perform=_bench)


def _bucket(text: str) -> str:
    location = run_dir(text)
    if not location.startswith("s3://"):
        raise argparse.ArgumentTypeError(f"{text!r} is no bucket: expected s3://bucket/prefix")
    return location


def _bench(options: argparse.Namespace) -> int:
    from pipeline.bench.fanout import check_workers
    from pipeline.bench.run import run_benches
    from pipeline.data.artifacts import REPORT
    from pipeline.storage.manifest import read_manifest
    from pipeline.storage.run_dir import open_store

    names = [name for name in HELP if name != FANOUT] if options.name == "all" else [options.name]
    if FANOUT in names and options.workers is not None:
        check_workers(options.workers)
    run_dir = options.run_dir
    if run_dir is None and not NEED_A_RUN.isdisjoint(names):
        finished = (path for path in ("runs/laptop", "runs/tiny") if read_manifest(open_store(path), REPORT))
        run_dir = next(finished, None)
        if run_dir is None:
            logger.info("no run with controllers to measure; first running `world-models run tiny` (a few minutes)")
            run_dir = "runs/tiny"
            run_config(load_config("tiny", []), run_dir, "run")
    run_benches(
        names,
        seconds=options.seconds,
        workers=options.workers,
        as_json=options.json,
        store=None if run_dir is None else open_store(run_dir),
        bucket=options.s3,
        executor=make_executor,
    )
    return 0
