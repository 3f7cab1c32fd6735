"""Agents of others on the test tracks: any class with ``reset()`` and ``act(observation)``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import gymnasium

from pipeline.base.errors import ConfigError, EpisodeError
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.envs.environment import Environment, configure_headless
from pipeline.envs.registry import CAR_RACING, is_of_gymnasium, make_environment
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult
from pipeline.storage.pretrained import PRETRAINED

_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ForeignAgent(Protocol):
    """What a class needs to be evaluated. It is made without arguments, once in each worker."""

    def reset(self) -> None:
        """Begin an episode. If it takes an argument ``seed``, it gets the track's seed."""

    def act(self, observation: Any) -> Any:
        """Choose the action for an observation of the game, as the game's action space has it."""


def names_class(agent: str) -> bool:
    """Whether an agent is given as ``module:Class``, rather than as the location of a run."""
    return _CLASS.fullmatch(agent) is not None and not agent.startswith(PRETRAINED)


def check_agent(config: RunConfig) -> None:
    """Check that the agent that a run is to evaluate can be made.

    Raises:
        ConfigError: ``evaluate.agent`` is a class that cannot be made or lacks a method.
    """
    if config.evaluate.agent is not None and names_class(config.evaluate.agent):
        make_foreign_agent(config.evaluate.agent)


def make_foreign_agent(agent: str) -> ForeignAgent:
    """Make an agent from ``module:Class``.

    Raises:
        ConfigError: It cannot be imported or made, or lacks a method.
    """
    module, _, name = agent.partition(":")
    where = f"evaluate.agent = {agent!r}"
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a user's module may raise anything
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            hint = ". Start the command with PYTHONPATH=FOLDER, the folder that holds it"
        raise ConfigError(f"{where}: importing {module} failed: {type(error).__name__}: {error}{hint}") from error
    if found is None:
        raise ConfigError(f"{where}: {module} has no class {name}")
    try:
        made: ForeignAgent = found()
    except Exception as error:
        raise ConfigError(f"{where} cannot be made without arguments: {type(error).__name__}: {error}") from error
    if lacking := [method for method in ("reset", "act") if not callable(getattr(made, method, None))]:
        raise ConfigError(f"{where} has no method {' and no '.join(lacking)}: expected reset() and act(observation)")
    return made


class ForeignWorker:
    """Runs episodes of a foreign agent in the game itself; the plain class behind an actor.

    The agent sees what the game returns: CarRacing-v3's (96, 96, 3), not the frames of V. Each episode has a new
    instance of the game, and the agent acts at every step.

    Args:
        agent: Agent as ``module:Class``.
        config: Section ``env`` of the run.
    """

    def __init__(self, agent: str, config: EnvConfig) -> None:
        self._agent, self._config = make_foreign_agent(agent), config
        self._takes_seed = "seed" in inspect.signature(self._agent.reset).parameters

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[JobId, RolloutResult]]:
        """Run every job's episode, yielding (job ID, result) for each.

        Raises:
            EpisodeError: The game or the agent raised. The worker can be called again.
        """
        for job in jobs:
            game = _make_game(self._config)
            when = "in reset"
            try:
                observation, _ = game.reset(seed=job.track)
                self._agent.reset(**({"seed": job.track} if self._takes_seed else {}))
                total, steps, terminated, truncated = 0.0, 0, False, False
                while not (terminated or truncated) and steps < job.max_steps:
                    when = f"in step {steps + 1}"
                    observation, reward, terminated, truncated, _ = game.step(self._agent.act(observation))
                    total, steps = total + float(reward), steps + 1
            except Exception as error:
                raise EpisodeError.raised(job.name, when, error, job.id) from error
            finally:
                with suppress(Exception):
                    game.close()
            truncated = truncated or (steps >= job.max_steps and not terminated)
            yield job.id, RolloutResult(total, steps, bool(terminated), bool(truncated))


def _make_game(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """The game itself: Gymnasium's, or else the pipeline's environment, whose observations are frames."""
    configure_headless()
    if config.id == CAR_RACING:
        options = {"render_mode": "rgb_array", "domain_randomize": config.domain_randomize, **config.options}
        return gymnasium.make(CAR_RACING, max_episode_steps=-1, **options)
    if is_of_gymnasium(config.id):
        from pipeline.envs.gymnasium_env import make_game

        return make_game(config)
    return _OwnGame(make_environment(config))


class _OwnGame(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """An environment of the pipeline with Gymnasium's methods."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self.action_space = env.actions.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        return self._env.reset(seed), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return (*self._env.step(self._env.actions.vector(action)), {})

    def close(self) -> None:
        self._env.close()
