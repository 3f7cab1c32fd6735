"""Environments by ID: classes of this project and of users, and all IDs of Gymnasium."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from pipeline.base.errors import ConfigError
from pipeline.config.schema import EnvConfig, EvaluateConfig, RunConfig
from pipeline.envs.actions import Actions
from pipeline.envs.environment import Environment, EnvironmentClass, ExploringEnvironment, frames_of

CAR_RACING = "CarRacing-v3"
TAKE_COVER = "TakeCover"

# ID -> module:Class. Strings, so that only the environment of the run is imported.
ENVIRONMENTS = {
    CAR_RACING: "pipeline.envs.car_racing:CarRacing",
    TAKE_COVER: "pipeline.envs.take_cover:TakeCover",
}

# Keys that only our CarRacing has.
_CAR_RACING_KEYS = ("view", "rendering", "domain_randomize")
# Keys that only Gymnasium's IDs have.
_GYMNASIUM_KEYS = ("frame_key", "crop", "fresh")


@dataclass(frozen=True)
class Traits:
    """Facts about an environment, from an instance of it.

    Attributes:
        actions: Actions of the environment.
        squashing: Function that squashes a controller's outputs, as ``module:Class.squash``.
        frames: Description of its frames.
        steps_per_second: Steps per second of the game's own clock.
        repeats_actions: Whether it supports ``env.action_repeat``.
        explores: Whether episodes can begin anywhere, see ``ExploringEnvironment``.
    """

    actions: Actions
    squashing: str
    frames: Mapping[str, Any]
    steps_per_second: float
    repeats_actions: bool
    explores: bool


def environment_class(env_id: str) -> EnvironmentClass:
    """Look up the class of an ID: one of ours, ``module:Class``, or any ID of Gymnasium.

    Raises:
        ConfigError: There is no such environment. The message names the cause and the valid forms.
    """
    path = ENVIRONMENTS.get(env_id, env_id)
    module, separator, name = path.partition(":")
    reason = ""
    if separator:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except (Exception, SystemExit) as error:  # a user's module may raise anything
            reason = f"importing {module} failed: {type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
                reason = f"{error}, so start the command with PYTHONPATH=FOLDER, the folder that holds it"
            raise _unknown(env_id, reason) from error
        if found is not None:
            return cast(EnvironmentClass, found)
        reason = f"{module} has no class {name}, and "
    from pipeline.envs import gymnasium_env  # imports all of Gymnasium

    problem = gymnasium_env.registration_problem(env_id)
    if problem is None:
        return gymnasium_env.GymnasiumEnvironment
    raise _unknown(env_id, reason + problem)


def is_of_gymnasium(env_id: str) -> bool:
    """Whether an ID is one of Gymnasium that has no class of its own here; errors as for ``environment_class``."""
    return environment_class(env_id).__name__ == "GymnasiumEnvironment"


def _unknown(env_id: str, reason: str) -> ConfigError:
    return ConfigError(
        f"env.id = {env_id!r}: {reason}. Expected {' or '.join(ENVIRONMENTS)}; an ID of Gymnasium, such as "
        "CartPole-v1; module:ID, where the module registers the ID; or module:Class for a class with the methods in "
        "pipeline/envs/environment.py"
    )


def make_environment(config: EnvConfig) -> Environment:
    """Create an environment."""
    return environment_class(config.id)(config)


def traits_of(config: EnvConfig) -> Traits:
    """Facts about an environment. The first call in a process makes an instance.

    Raises:
        ConfigError: The environment does not exist or cannot be made.
    """
    return _traits(config.model_dump_json())


@lru_cache(maxsize=8)
def _traits(config_json: str) -> Traits:
    config = EnvConfig.model_validate_json(config_json)
    try:
        env = make_environment(config)
    except ConfigError:
        raise
    except Exception as error:  # a class of a user may raise anything
        raise ConfigError(f"env.id = {config.id!r} cannot be made: {type(error).__name__}: {error}") from error
    try:
        lacking = [name for name in ("actions", "steps_per_second", "reset", "step", "render", "close")
                   if not hasattr(env, name)]  # fmt: skip
        if lacking:
            raise ConfigError(
                f"env.id = {config.id!r}: the class has no {' and no '.join(lacking)}; "
                "see pipeline/envs/environment.py for the required members"
            )
        kind = type(env.actions)
        return Traits(
            actions=env.actions,
            squashing=f"{kind.__module__}:{kind.__name__}.squash",
            frames=frames_of(env),
            steps_per_second=env.steps_per_second,
            repeats_actions=getattr(env, "repeats_actions", False),
            explores=isinstance(env, ExploringEnvironment),
        )
    finally:
        if hasattr(env, "close"):
            env.close()


def check_environment(config: RunConfig) -> None:
    """Check that a run's environment exists and supports the run's config.

    Raises:
        ConfigError: The environment does not exist or does not support the config.
    """
    env, collect = config.env, config.collect
    _check_keys(config)
    traits = traits_of(env)
    try:
        json.dumps(dict(traits.frames))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"env.id = {env.id!r}: the result of describe_frames cannot be stored as JSON ({error}): expected "
            "plain numbers, strings, lists and dicts"
        ) from error
    if env.action_repeat > 1 and not traits.repeats_actions:
        raise ConfigError(
            f"env.action_repeat {env.action_repeat}: {env.id} does not repeat actions (it has no "
            "repeats_actions = True; see pipeline/envs/environment.py). Leave it at 1, or implement repeated actions "
            "in its step method."
        )
    if collect.exploring_starts and not traits.explores:
        raise ConfigError(
            f"collect.exploring_starts: {env.id} cannot begin anywhere (it has no reset_anywhere; see "
            "pipeline/envs/environment.py). Leave it at 0, or add that method."
        )
    if collect.policy == "brownian" and traits.actions.discrete:
        raise ConfigError(
            f"collect.policy = 'brownian': {env.id} has discrete actions; a random walk over them is meaningless. "
            "Choose repeat (an action held for some steps), white or random-controller"
        )


def _check_keys(config: RunConfig) -> None:
    """Refuse keys of other environments, which would have no effect."""
    env = config.env
    ours, gymnasiums = env.id == CAR_RACING, is_of_gymnasium(env.id)
    default = EnvConfig()
    for keys, apply, owner in (
        (_CAR_RACING_KEYS, ours, CAR_RACING),
        (_GYMNASIUM_KEYS, gymnasiums, "IDs of Gymnasium"),
    ):
        changed = [key for key in keys if getattr(env, key) != getattr(default, key)]
        if changed and not apply:
            raise ConfigError(f"env.{changed[0]} is a key of {owner} only: {env.id} does not know it. Remove it.")
    if config.evaluate.rendering != EvaluateConfig().rendering and not ours:
        raise ConfigError(f"evaluate.rendering is a key of {CAR_RACING} only: {env.id} does not know it. Remove it.")
    if env.options and not (gymnasiums or env.id in ENVIRONMENTS):
        raise ConfigError(f"env.options go to gymnasium.make: the class {env.id} has none. Remove them.")
