"""External agents on the test tracks: classes with ``reset()`` and ``act(observation)``, and agents of other runs."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np

from pipeline.base.errors import ConfigError, EpisodeError
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.envs.environment import Environment, configure_headless
from pipeline.envs.registry import CAR_RACING, is_of_gymnasium, make_environment, traits_of
from pipeline.rollouts.jobs import JobId, RolloutJob, RolloutResult
from pipeline.storage.pretrained import PRETRAINED
from pipeline.storage.run_dir import open_other
from pipeline.storage.saved_config import saved_config

# How the agent of another run sees and acts. All else of the environment is that of the evaluation.
_AGENT_KEYS = ("view", "frame_key", "crop", "action_repeat")

_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ExternalAgent(Protocol):
    """Interface of a class to be evaluated. It is made without arguments, once in each worker."""

    def reset(self) -> None:
        """Begin an episode. If it takes an argument ``seed``, it gets the track's seed."""

    def act(self, observation: Any) -> Any:
        """Choose the action for an observation of the game, as the game's action space has it, or as a list."""


def names_class(agent: str) -> bool:
    """Whether an agent is given as ``module:Class``, rather than as the location of a run."""
    return _CLASS.fullmatch(agent) is not None and not agent.startswith(PRETRAINED)


def check_agent(config: RunConfig) -> None:
    """Check that the agent that a run is to evaluate can be made, or fits the environment of the evaluation.

    Raises:
        ConfigError: ``evaluate.agent`` is a class that cannot be made or lacks a method, or an agent of another run
            that cannot play here.
    """
    agent = config.evaluate.agent
    if agent is None:
        return
    if names_class(agent):
        make_external_agent(agent)
        source_digest(agent)
    else:
        environment_for(saved_config(open_other(agent)).env, config)


def environment_for(theirs: EnvConfig, config: RunConfig) -> EnvConfig:
    """Environment in which the agent of another run is evaluated.

    It is that of the evaluation, but how the agent sees and how long it holds an action are its own.

    Args:
        theirs: Section ``env`` of the agent's run.
        config: Config of the evaluation.

    Raises:
        ConfigError: The agent plays another environment, or cannot see or act in this one.
    """
    agent = config.evaluate.agent
    if theirs.id != config.env.id:
        raise ConfigError(f"evaluate.agent {agent} plays {theirs.id}, and env.id is {config.env.id}")
    env = config.test_env.model_copy(update={key: getattr(theirs, key) for key in _AGENT_KEYS})
    try:
        here = traits_of(env).actions
    except ConfigError as error:
        raise ConfigError(f"evaluate.agent {agent} in the environment of this evaluation: {error}") from error
    there = traits_of(theirs).actions
    if here.space != there.space:
        raise ConfigError(
            f"evaluate.agent {agent} has action space {there.space}; {env.id} with env.options {env.options} has "
            f"{here.space}. Evaluate it with the options of its run: env.options={theirs.options}"
        )
    return env


def source_digest(agent: str) -> str:
    """SHA-256 (hex) of the file that defines an agent of ``module:Class``.

    Raises:
        ConfigError: It cannot be imported, or no file defines it.
    """
    found = _import(agent)
    try:
        return hashlib.sha256(Path(inspect.getfile(found)).read_bytes()).hexdigest()
    except (TypeError, OSError) as error:
        raise ConfigError(f"evaluate.agent = {agent!r}: expected a class that a file defines ({error})") from error


def make_external_agent(agent: str) -> ExternalAgent:
    """Make an agent from ``module:Class``.

    Raises:
        ConfigError: It cannot be imported or made, or lacks a method.
    """
    where = f"evaluate.agent = {agent!r}"
    found = _import(agent)
    try:
        made: ExternalAgent = found()
    except Exception as error:
        raise ConfigError(f"{where} cannot be made without arguments: {type(error).__name__}: {error}") from error
    if lacking := [method for method in ("reset", "act") if not callable(getattr(made, method, None))]:
        raise ConfigError(f"{where} has no method {' and no '.join(lacking)}: expected reset() and act(observation)")
    return made


def _import(agent: str) -> Any:
    """Import the class that ``module:Class`` names."""
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
    return found


class ExternalWorker:
    """Runs episodes of an external agent in the game itself; the plain class behind an actor.

    The agent sees the game's own observations: CarRacing-v3's (96, 96, 3), not the frames of V. Each episode has a new
    instance of the game, and the agent acts at every step.

    Args:
        agent: Agent as ``module:Class``.
        config: Section ``env`` of the run.
    """

    def __init__(self, agent: str, config: EnvConfig) -> None:
        self._agent, self._config = make_external_agent(agent), config
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
                    action = _as_array(self._agent.act(observation), game.action_space)
                    observation, reward, terminated, truncated, _ = game.step(action)
                    total, steps = total + float(reward), steps + 1
            except Exception as error:
                raise EpisodeError.raised(job.name, when, error, job.id) from error
            finally:
                with suppress(Exception):
                    game.close()
            truncated = truncated or (steps >= job.max_steps and not terminated)
            yield job.id, RolloutResult(total, steps, bool(terminated), bool(truncated))


def _as_array(action: Any, space: gymnasium.Space[Any]) -> Any:
    """A list of numbers as the array that games take; any other action as it is."""
    return np.asarray(action, space.dtype) if isinstance(action, list | tuple) and space.shape else action


def _make_game(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """The game itself: Gymnasium's, or else the pipeline's environment, whose observations are frames."""
    configure_headless()
    if config.id == CAR_RACING:
        options = {"render_mode": "rgb_array", "domain_randomize": config.domain_randomize, **config.options}
        return gymnasium.make(CAR_RACING, max_episode_steps=-1, **options)
    if is_of_gymnasium(config.id):
        from pipeline.envs.gymnasium_env import make_game

        return make_game(config)
    # A held action would be for several steps, and an external agent acts at every step.
    return _OwnGame(make_environment(config.model_copy(update={"action_repeat": 1})))


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
