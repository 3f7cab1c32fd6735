"""``world-models compare``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from pipeline.cli.arguments import FORMATTER, READ_HELP, add_below, run_dir, written_dir

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_EXAMPLES = """\
examples:
  world-models compare runs/laptop runs/laptop-untrained          two runs, paired by test track
  world-models compare runs/a-1 runs/a-2 runs/b-1 runs/b-2        runs that differ in their seed alone form one arm
  world-models compare runs/ablation                              the arms of a study
  world-models compare runs/a runs/b --out comparison             also write index.html, comparison.json, episodes.csv
"""


def add_parser(commands: Commands) -> None:
    """Add ``compare``."""
    text = "compare runs on the same test tracks, with intervals over seeds and tracks"
    command = commands.add_parser(
        "compare",
        help=text,
        description=f"{text}.\nRuns whose configs differ in their seed alone form one arm. Differences are from the "
        "first arm, paired by track,\nand by seed if both arms have the same seeds. Better is the probability that the "
        "mean return of an arm is\nhigher than that of the first arm. Nothing is written to the runs.",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    command.add_argument(
        "runs", metavar="RUN_DIR", nargs="+", type=run_dir, help=f"{READ_HELP}; or the folder of one study"
    )
    command.add_argument(
        "--out",
        type=written_dir,
        metavar="FOLDER",
        help="folder or s3://bucket/prefix for index.html (the page), comparison.json, and episodes.csv (a row for "
        "each test episode)",
    )
    add_below(command)
    command.add_argument("--json", action="store_true", help="JSON output as the last line")
    command.set_defaults(perform=_compare)


def _compare(options: argparse.Namespace) -> int:
    from pipeline.comparison.arms import group, read_result
    from pipeline.comparison.page import write
    from pipeline.comparison.scores import compare, table, to_json
    from pipeline.config.study import saved_study
    from pipeline.storage.run_dir import open_store
    from pipeline.storage.saved_config import require_run
    from pipeline.studies.plan import STUDY, trials_of
    from pipeline.studies.results import compare_study
    from pipeline.studies.trials import none_evaluated_error

    stores = [open_store(location) for location in options.runs]
    title = "Comparison"
    if len(stores) == 1 and stores[0].exists(STUDY):
        study = saved_study(stores[0].read(STUDY).decode(), stores[0].locate(STUDY))
        of_study = compare_study(trials_of(study), stores[0].locate(), options.below)
        if of_study is None:
            raise none_evaluated_error(stores[0].locate(), "finish one first")
        found, title = of_study, f"Study {study.name}"
    else:
        for store in stores:
            require_run(store)
        found = compare(group([read_result(store) for store in stores]), options.below)
    print("\n".join(table(found)))
    if options.out is not None:
        print(f"page: {write(found, open_store(options.out), title)}")
    if options.json:
        print(json.dumps(to_json(found)))
    return 0
