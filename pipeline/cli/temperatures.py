"""``world-models temperatures``."""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING

from pipeline.base.errors import ConfigError
from pipeline.cli.arguments import (
    EXIT_CODES,
    FORMATTER,
    RUN_DIR_HELP,
    above_zero,
    add_override,
    positive,
    written_dir,
)
from pipeline.cli.executors import make_executor

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands
    from pipeline.config.schema import RunConfig

logger = logging.getLogger(__name__)

DEFAULT = (0.1, 0.5, 1.0, 1.15, 1.3)

_EXAMPLES = """\
examples:
  world-models temperatures runs/takecover-laptop         the paper's table: 0.1, 0.5, 1.0, 1.15 and 1.3
  world-models temperatures runs/takecover-laptop --generations 50 --episodes 300 --json
  world-models temperatures runs/car --at 0.7 1.0 -o dream.reward=model -o dream.start=anywhere
                                                          an M that was trained with mdnrnn.reward_weight above 0
  world-models temperatures runs/car --at 0.7 1.0 1.15 1.3 --game
                                                          and an evolution in the game, as long as the others
"""


def add_parser(commands: Commands) -> None:
    """Add ``temperatures``."""
    text = "evolve in the dream of a run at several temperatures, and compare returns in the dream and in the game"
    command = commands.add_parser(
        "temperatures",
        help=text,
        description=f"{text}.\nV and M are those of the run. Each evolution lies in its own folder of the run and is "
        "resumed by the same command;\nits best controller is chosen by dreams alone and tested on the test tracks. "
        "They are those of the run's evaluation:\na temperature that is chosen by this table is chosen on them.",
        epilog=f"{_EXAMPLES}\n{EXIT_CODES}",
        formatter_class=FORMATTER,
    )
    command.add_argument("run_dir", metavar="RUN_DIR", type=written_dir, help=RUN_DIR_HELP)
    command.add_argument(
        "--at", type=above_zero, nargs="+", default=list(DEFAULT), metavar="T",
        help=f"temperatures, with at most two decimals (default: {' '.join(map(str, DEFAULT))})",
    )  # fmt: skip
    command.add_argument("--generations", type=positive, metavar="N", help="generations of each (default: the run's)")
    command.add_argument("--episodes", type=positive, metavar="N", help="test episodes of each (default: the run's)")
    command.add_argument("--json", action="store_true", help="print JSON: one list as the last line")
    command.add_argument(
        "--game", action="store_true", help="add a row: an evolution in the game, with the same V, M and generations"
    )
    add_override(command)
    command.set_defaults(perform=_temperatures)


def _temperatures(options: argparse.Namespace) -> int:
    from pipeline.config.identity import refuse_other_identity
    from pipeline.envs.registry import check_environment
    from pipeline.storage.run_dir import open_store
    from pipeline.storage.saved_config import saved_config
    from pipeline.storage.session_notes import check_machine, lease_for
    from pipeline.storage.sessions import refuse_if_owned

    store = open_store(options.run_dir)
    config = saved_config(store, options.override)
    refuse_other_identity(saved_config(store), config, ("dream", "evolve", "evaluate"), "temperatures")
    wanted: list[float | None] = [*sorted(set(options.at)), *([None] if options.game else [])]
    configs = {at: _config_at(config, at, options.generations, options.episodes) for at in wanted}
    folders = {at: _branch_name(at) for at in configs}
    check_environment(config)
    refuse_if_owned(store)
    check_machine(store, exact=config.execution.exact)
    executor = make_executor(config)
    try:
        # The stages import torch: after the checks that do not need it.
        from pipeline.data.artifacts import MDNRNN
        from pipeline.data.rounds import Round, latest_round
        from pipeline.reporting.temperatures import read_row, table, to_json
        from pipeline.run import run_stages
        from pipeline.stages.table import branch_stages
        from pipeline.training.hardware import check_devices

        last = latest_round(config.rounds, store, MDNRNN).number
        branches = {at: Round(last, folder) for at, folder in folders.items()}
        check_devices(next(iter(configs.values())), executor, ["dream"])
        with lease_for(config.storage, store, "temperatures", lambda: executor.ready_workers) as fenced:
            for number, (at, chosen) in enumerate(configs.items(), 1):
                logger.info("%s (%d of %d)", folders[at], number, len(configs))
                run_stages(chosen, fenced, executor, branch_stages(chosen, branches[at]))
    finally:
        executor.close()
    rows = [read_row(store, branch, at, config.dream.end_probability) for at, branch in branches.items()]
    print("\n".join(table(rows)))
    if options.json:
        print(json.dumps(to_json(rows)))
    return 0


def _branch_name(temperature: float | None) -> str:
    """Folder of an evolution at a temperature; None is the one in the game.

    Raises:
        ConfigError: The temperature has more than two decimals, which a name does not show.
    """
    from pipeline.storage.layout import GAME, temperature_folder

    if temperature is None:
        return GAME
    if round(temperature, 2) != temperature:
        raise ConfigError(f"temperature {temperature!r}: at most two decimals are expected")
    return temperature_folder(temperature)


def _config_at(
    config: RunConfig, temperature: float | None, generations: int | None, episodes: int | None
) -> RunConfig:
    """Config of an evolution in the dream at a temperature: nothing in it is chosen by the environment.

    Args:
        config: Config of the run.
        temperature: Temperature of the dreams; None for an evolution in the game, and chosen by it.
        generations: Generations; None for the run's.
        episodes: Test episodes; None for the run's.

    Raises:
        ConfigError: The run's M cannot be dreamt with, or no generation would be validated.
    """
    from pipeline.config.evolution import ONLY_DREAMS
    from pipeline.config.presets import validate

    values = config.model_dump()
    values["evolve"] |= {
        "game_from": None,
        "generations": generations or config.evolve.generations,
        "target_return": None,
    }
    if temperature is None:
        values["evolve"] |= {"environment": "game", "select": "game"}
    else:
        values["dream"]["temperature"] = temperature
        values["evolve"] |= {"environment": "dream", "select": "dream", **ONLY_DREAMS}
    values["evaluate"] |= {"controllers": "best", "episodes": episodes or config.evaluate.episodes}
    found = validate(values, _branch_name(temperature))
    if found.evolve.generations < found.evolve.validate_every:
        raise ConfigError(
            f"{found.evolve.generations} generations end before the first validation, which chooses the controller "
            f"(evolve.validate_every is {found.evolve.validate_every}): raise --generations, or lower the key with -o"
        )
    return found
