"""Environments by id."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, cast

from pipeline.base.errors import ConfigError
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.envs.environment import Environment, EnvironmentClass

# id -> module:Class. Looked up, not imported: only the environment that a run uses is loaded.
ENVIRONMENTS = {
    "CarRacing-v3": "pipeline.envs.car_racing:CarRacing",
}


def environment_class(env_id: str) -> EnvironmentClass:
    """The class behind an id, or behind ``module:Class``.

    Raises:
        ConfigError: no such environment; names the valid ids.
    """
    path = ENVIRONMENTS.get(env_id, env_id)
    module, separator, name = path.partition(":")
    try:
        if not separator:
            raise ImportError("not a registered id, and not of the form module:Class")
        return cast(EnvironmentClass, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"env.id = {env_id!r}: {error}. Registered: {', '.join(sorted(ENVIRONMENTS))}; "
            "or module:Class of a class with the methods of pipeline/envs/environment.py"
        ) from error


def check_environment(config: RunConfig) -> None:
    """See whether a run's environment exists and can do what is asked of it.

    Raises:
        ConfigError: it does not, or cannot.
    """
    found = environment_class(config.env.id)
    lacking = [name for name in ("action_size", "action_low", "action_high", "squash") if not hasattr(found, name)]
    if lacking:
        raise ConfigError(
            f"env.id = {config.env.id!r}: the class has no {' and no '.join(lacking)}; "
            "see pipeline/envs/environment.py for what it needs"
        )
    try:
        json.dumps(describe_frames(config.env))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"env.id = {config.env.id!r}: describe_frames gives what JSON cannot hold ({error}): plain numbers, "
            "strings, lists and dicts were expected"
        ) from error
    if config.env.action_repeat > 1 and not getattr(found, "repeats_actions", False):
        raise ConfigError(
            f"env.action_repeat {config.env.action_repeat}: {config.env.id} does not repeat actions (it has no "
            "repeats_actions = True; see pipeline/envs/environment.py). Leave it at 1, or have its step do so."
        )
    if config.collect.exploring_starts and not hasattr(found, "reset_anywhere"):
        raise ConfigError(
            f"collect.exploring_starts: {config.env.id} cannot begin anywhere (it has no reset_anywhere; see "
            "pipeline/envs/environment.py). Leave it 0, or add that method."
        )


def describe_frames(config: EnvConfig) -> Mapping[str, Any]:
    """How an environment's frames come about, in its own words; empty where it has none."""
    describe = getattr(environment_class(config.id), "describe_frames", None)
    return describe(config) if describe is not None else {}


def make_environment(config: EnvConfig) -> Environment:
    """A new environment."""
    return environment_class(config.id)(config)
