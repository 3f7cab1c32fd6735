"""Registry of environments by id."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, cast

from pipeline.base.errors import ConfigError
from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.envs.environment import Environment, EnvironmentClass

# id -> module:Class. Strings, so that only the environment of the run is imported.
ENVIRONMENTS = {
    "CarRacing-v3": "pipeline.envs.car_racing:CarRacing",
}


def environment_class(env_id: str) -> EnvironmentClass:
    """Look up the class of an id or of ``module:Class``.

    Raises:
        ConfigError: There is no such environment; names the valid ids.
    """
    path = ENVIRONMENTS.get(env_id, env_id)
    module, separator, name = path.partition(":")
    try:
        if not separator:
            raise ImportError("not a registered id, and not of the form module:Class")
        return cast(EnvironmentClass, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        reason = str(error)
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            reason += ", so start the command with PYTHONPATH=FOLDER, the folder that holds it"
        elif isinstance(error, ImportError) and separator:
            reason = f"importing {module} failed: {error}"
        raise ConfigError(
            f"env.id = {env_id!r}: {reason}. Registered: {', '.join(sorted(ENVIRONMENTS))}; "
            "or use module:Class for a class with the methods in pipeline/envs/environment.py"
        ) from error


def check_environment(config: RunConfig) -> None:
    """Check that a run's environment exists and supports the run's config.

    Raises:
        ConfigError: The environment does not exist or does not support the config.
    """
    found = environment_class(config.env.id)
    lacking = [name for name in ("action_size", "action_low", "action_high", "squash") if not hasattr(found, name)]
    if lacking:
        raise ConfigError(
            f"env.id = {config.env.id!r}: the class has no {' and no '.join(lacking)}; "
            "see pipeline/envs/environment.py for the required members"
        )
    try:
        json.dumps(describe_frames(config.env))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"env.id = {config.env.id!r}: the result of describe_frames cannot be stored as JSON ({error}): expected "
            "plain numbers, strings, lists and dicts"
        ) from error
    if config.env.action_repeat > 1 and not getattr(found, "repeats_actions", False):
        raise ConfigError(
            f"env.action_repeat {config.env.action_repeat}: {config.env.id} does not repeat actions (it has no "
            "repeats_actions = True; see pipeline/envs/environment.py). Leave it at 1, or implement repeated actions "
            "in its step method."
        )
    if config.collect.exploring_starts and not hasattr(found, "reset_anywhere"):
        raise ConfigError(
            f"collect.exploring_starts: {config.env.id} cannot begin anywhere (it has no reset_anywhere; see "
            "pipeline/envs/environment.py). Leave it at 0, or add that method."
        )


def describe_frames(config: EnvConfig) -> Mapping[str, Any]:
    """Description of the frames by the environment's class; empty if the class has no ``describe_frames``."""
    describe = getattr(environment_class(config.id), "describe_frames", None)
    return describe(config) if describe is not None else {}


def make_environment(config: EnvConfig) -> Environment:
    """Create an environment."""
    return environment_class(config.id)(config)
