"""``world-models baselines``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.cli.arguments import FORMATTER, READ_HELP, add_override, run_dir
from pipeline.cli.executors import make_executor

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

_EXAMPLES = """\
examples:
  world-models baselines runs/takecover-laptop            random actions, held ones, and blind sweeps
  world-models resume runs/takecover-laptop -o evaluate.episodes=1000
  world-models baselines runs/takecover-laptop            the same on 1,000 games
  world-models baselines runs/car --policies random repeat
"""


def add_parser(commands: Commands) -> None:
    """Add ``baselines``."""
    text = "compare a run's controller with blind policies, on the same test tracks"
    command = commands.add_parser(
        "baselines",
        help=text,
        description=f"{text}.\nThe tracks are those of the run's evaluation, and the comparison is paired. The "
        "controller is the one that\nvalidation chose. Nothing is written to the run.",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    command.add_argument("run_dir", metavar="RUN_DIR", type=run_dir, help=READ_HELP)
    command.add_argument(
        "--policies", nargs="+", metavar="NAME",
        help="random, repeat, and 'sweep N' where an action is one number (default: all, with sweeps of 40, 60, 90 "
        "and 140 actions each way)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print JSON: one list as the last line")
    add_override(command)
    command.set_defaults(perform=_baselines)


def _baselines(options: argparse.Namespace) -> int:
    from pipeline.base.progress import Update
    from pipeline.base.seeding import generator
    from pipeline.config.identity import refuse_other_identity
    from pipeline.data.artifacts import EVALUATION, TEST_EPISODES
    from pipeline.data.rounds import latest_round
    from pipeline.envs.registry import make_environment
    from pipeline.execution.stage_progress import watched
    from pipeline.reporting.baselines import baseline_rows, table, to_json
    from pipeline.reporting.findings import read_test_returns
    from pipeline.rollouts.blind_policies import BlindJob, BlindWorker, blind_policies, make_blind_policy
    from pipeline.storage.manifest import newest, require_manifest
    from pipeline.storage.run_dir import open_store
    from pipeline.storage.saved_config import saved_config

    store = open_store(options.run_dir)
    config = saved_config(store, options.override)
    refuse_other_identity(saved_config(store), config, (), "baselines")
    evaluation = require_manifest(store, latest_round(config.rounds, store, EVALUATION).folder(EVALUATION))
    scores = read_test_returns(store, newest(evaluation.records, TEST_EPISODES))
    controller = min(scores)  # "best" before "mean"
    returns = scores[controller]
    tracks = range(config.tracks.test.start, config.tracks.test.start + len(returns))

    env = make_environment(config.env)
    try:
        names = options.policies or blind_policies(env)
        for name in names:
            make_blind_policy(name, config.collect.max_repeats, env, generator(config.seed, "blind"))
    finally:
        env.close()
    if len(set(names)) < len(names):
        raise ConfigError(f"--policies {' '.join(names)}: a policy is given twice")

    jobs = [BlindJob(name, track) for name in names for track in tracks]
    found: dict[tuple[str, int], float] = {}
    executor = make_executor(config)
    try:
        with (
            watched(executor, "baselines", "episode") as show,
            executor.pool(BlindWorker, config.env, config.collect.max_repeats, config.seed, jobs_at_once=2) as pool,
        ):
            show(Update(0, len(jobs)))
            for job_id, value in pool.map(jobs):
                found[job_id] = value  # type: ignore[index]
                show(Update(len(found), len(jobs)))
    finally:
        executor.close()
    blind = {name: [found[name, track] for track in tracks] for name in names}
    rows = baseline_rows(f"the controller ({controller})", returns, blind, config.seed)
    print("\n".join(table(rows, tracks)))
    if options.json:
        print(json.dumps(to_json(rows)))
    return 0
