"""``world-models plan``."""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.cli.arguments import FORMATTER, above_zero, add_config, not_negative, positive, run_dir
from pipeline.config.presets import load_config

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands

logger = logging.getLogger(__name__)

_PLAN_EXAMPLES = """\
examples:
  world-models plan paper --price 0.05                    16 to 1,024 workers; measure this machine's speed first
  world-models plan paper --workers 256 --price 0.05 --steps-per-s 2200 900
                                                          use a speed that was measured elsewhere
  world-models plan laptop --run-dir runs/laptop          use that run's mean episode length
  world-models plan paper -o rollouts.lanes=8 --json      print one JSON object as the last line
"""


def add_parser(commands: Commands) -> None:
    """Add ``plan``."""
    text = "estimate seconds and dollars of an evolution by number of workers, per generation and to published scores"
    plan = commands.add_parser(
        "plan",
        help=text,
        description=f"{text}.\nComputed from a worker's speed and the pool's dispatch of episodes; starts nothing on "
        "any cluster.\nThe assumptions are listed below the table.",
        epilog=_PLAN_EXAMPLES,
        formatter_class=FORMATTER,
    )
    add_config(plan)
    plan.add_argument(
        "--workers",
        type=positive,
        nargs="+",
        metavar="N",
        help="worker counts, one vCPU each (default: 16 32 64 128 256 512 1024)",
    )
    plan.add_argument(
        "--price", type=above_zero, metavar="DOLLARS", help="price of a vCPU-hour in USD; omit to hide costs"
    )
    plan.add_argument(
        "--steps-per-s",
        type=above_zero,
        nargs=2,
        metavar=("ALL", "ONE"),
        help="agent-steps/s of a worker with all its lanes active, and with one (default: measured here, with a worker "
        "on each core at once)",
    )
    plan.add_argument(
        "--seconds", type=above_zero, default=5.0, help="time to measure each of the two speeds (default: 5)"
    )
    plan.add_argument(
        "--run-dir",
        type=run_dir,
        help="run whose training episodes give the mean episode length (default: every episode runs to its limit)",
    )
    plan.add_argument(
        "--dispatch-ms",
        type=not_negative,
        metavar="MS",
        help="driver's time per episode, to dispatch it and receive its result (default: 0.25)",
    )
    plan.add_argument(
        "--overhead-ms",
        type=not_negative,
        metavar="MS",
        help="driver's time per generation, for CMA-ES and the checkpoint (default: 200)",
    )
    plan.add_argument("--json", action="store_true", help="print JSON: one object as the last line")
    plan.set_defaults(perform=_plan)


def _plan(options: argparse.Namespace) -> int:
    from pipeline.envs.registry import check_environment
    from pipeline.planning import plan as planning
    from pipeline.planning.rollout_time import WorkerSpeed
    from pipeline.storage.run_dir import open_store

    config = load_config(options.preset, options.override)
    check_environment(config)
    if config.evolve.environment == "dream":
        raise ConfigError(
            "plan computes evolutions in the environment, and evolve.environment is 'dream'. A dream needs no "
            "environment: `world-models bench dream` measures its steps per second on a core of this machine"
        )
    episode_steps = None
    if options.run_dir is not None:
        episode_steps = planning.measured_episode_steps(open_store(options.run_dir), config)
    rates, speed_from = options.steps_per_s, "as given"
    if rates is None:
        from pipeline.base.machine import num_cores
        from pipeline.bench.lanes import measure_rates
        from pipeline.config.identity import cpu_kind

        cores = num_cores()
        at_once = f"{cores} worker{'s' if cores > 1 else ''} at once"
        speed_from = f"CPU time, a new track every episode, measured now on {cpu_kind()}, {at_once}"
        logger.info("measuring a worker's speed, twice for %g s; pass --steps-per-s to skip", options.seconds)
        rates = measure_rates(config, options.seconds, cores)
    costs = planning.Costs(
        speed=WorkerSpeed.from_rates(config.rollouts, *rates),
        episode_steps=episode_steps,
        dispatch_s=(planning.DISPATCH_MS if options.dispatch_ms is None else options.dispatch_ms) / 1e3,
        overhead_s=(planning.OVERHEAD_MS if options.overhead_ms is None else options.overhead_ms) / 1e3,
    )
    estimates = [planning.EvolutionEstimate(config, costs, workers) for workers in options.workers or planning.WORKERS]
    print("\n".join(planning.describe(estimates, options.price, speed_from)))
    if options.json:
        print(json.dumps(planning.to_json(estimates, options.price, speed_from)))
    return 0
