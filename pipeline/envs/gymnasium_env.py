"""Any Gymnasium environment as an environment of the pipeline, with frames from its observations or from ``render()``.

Use its registered ID as ``env.id``. IDs of packages that register them on import may be given as ``module:ID``, which
is Gymnasium's own form; the packages of ``PLUGINS`` are imported for their ids.
"""

from __future__ import annotations

import importlib
import math
from contextlib import AbstractContextManager, nullcontext
from enum import EnumType
from itertools import compress
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pipeline.base.arrays import Picture
from pipeline.base.errors import ConfigError
from pipeline.base.extras import import_extra
from pipeline.config.schema import EnvConfig
from pipeline.envs.actions import Actions, actions_of
from pipeline.envs.engines import starting_engines
from pipeline.envs.environment import Step, configure_headless
from pipeline.envs.frames import MIN_SIDE, is_image, to_frame, to_rgb

_RENDERED = ""  # frames are drawn by render()
RENDERED = "render()"  # and their description says so


class Plugin(NamedTuple):
    """Package that registers environments when it is imported.

    Attributes:
        module: Module to import.
        extra: Extra of this project that installs it.
    """

    module: str
    extra: str


# By the start of their IDs.
PLUGINS = {
    "ALE/": Plugin("ale_py", "atari"),
    "Vizdoom": Plugin("vizdoom.gymnasium_wrapper", "doom"),
    "MiniGrid-": Plugin("minigrid", "minigrid"),
    "BabyAI-": Plugin("minigrid", "minigrid"),
}


def plugin_of(env_id: str) -> Plugin | None:
    """Package that registers an ID when it is imported; None for an ID that needs no package or names it itself."""
    return next((plugin for start, plugin in PLUGINS.items() if env_id.startswith(start)), None)


def registration_problem(env_id: str) -> str | None:
    """Reason why Gymnasium does not know an ID, once its package is imported; None if it knows it.

    Raises:
        ConfigError: The package is not installed; names the command that installs it.
    """
    module, separator, name = env_id.rpartition(":")
    if separator:
        importlib.import_module(module)
    else:
        plugin = plugin_of(env_id)
        if plugin is not None:
            import_extra(plugin.module, plugin.extra, f"env.id = {env_id!r}")
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        return str(error).strip().rstrip(".")
    return None


class GymnasiumEnvironment:
    """A Gymnasium environment with frames of 64x64; see ``pipeline.envs.environment`` for the methods.

    Frames are the observation if it is an image, else the image in a ``Dict`` observation, else ``render()``. They are
    cropped (``env.crop``), made RGB, and reduced to 64x64 by area averaging.

    Args:
        config: Section ``env`` of a config.

    Raises:
        ConfigError: The environment cannot be made with ``env.options``, its actions are of a kind that a controller
            cannot act in, or it has no frames.
    """

    repeats_actions = True

    def __init__(self, config: EnvConfig) -> None:
        configure_headless()
        self._config = config
        self._game = make_game(config)
        self.actions: Actions = actions_of(self._game.action_space, config.id)
        self._key = _frame_key(self._game, config)
        self.steps_per_second = float(self._game.metadata.get("render_fps") or 30) / _skipped_frames(self._game)
        self._fresh = True
        self._steps = 0
        self._seen: Picture | None = None

    def describe_frames(self) -> dict[str, Any]:
        """See ``Environment.describe_frames``."""
        source = RENDERED if self._key == _RENDERED else f"the observation{f'[{self._key!r}]' if self._key else ''}"
        return {"from": source, "crop": self._config.crop, "reduced": "by area averaging"}

    def action_names(self) -> list[str]:
        """See ``Environment``: names of Atari, MiniGrid and ViZDoom, and of all that name theirs as they do."""
        game = self._game.unwrapped
        if hasattr(game, "get_action_meanings"):
            return [str(each) for each in game.get_action_meanings()]
        if isinstance(kinds := getattr(game, "actions", None), EnumType):
            return [str(each) for each in kinds.__members__]
        if hasattr(game, "button_map") and not getattr(game, "num_delta_buttons", 0):
            buttons = [each.name for each in game.game.get_available_buttons()]
            return ["+".join(compress(buttons, pressed)) or "NOOP" for pressed in game.button_map]
        return []

    def reset(self, track: int) -> Picture:
        """See ``Environment.reset``. With ``env.fresh``, each episode has a new instance."""
        if self._config.fresh and not self._fresh:
            self._game.close()
            self._game = make_game(self._config)
        self._fresh = False
        self._steps = 0
        with _engines(self._game):
            observation, _ = self._game.reset(seed=track)
        return self._frame(observation)

    def step(self, action: NDArray[np.float32]) -> Step:
        """See ``Environment.step``."""
        native = self.actions.native(action)
        earned, limit = 0.0, self._config.max_episode_steps
        terminated = truncated = False
        for _ in range(min(self._config.action_repeat, limit - self._steps)):
            observation, reward, terminated, truncated, _ = self._game.step(native)
            self._steps += 1
            earned += float(reward)
            if terminated or truncated:
                break
        if not math.isfinite(earned):
            raise ValueError(f"it returned the reward {earned}")
        # Some environments set both flags at their own time limit, which is not an end that the agent caused.
        return Step(
            self._frame(observation), earned, bool(terminated and not truncated),
            bool(truncated or self._steps >= limit),
        )  # fmt: skip

    def render(self) -> Picture:
        """See ``Environment.render``. The picture of the frame where the environment draws none."""
        picture = self._game.render() if self._game.render_mode == "rgb_array" else None
        if picture is None:
            assert self._seen is not None
            return self._seen
        return to_rgb(np.asarray(picture))

    def close(self) -> None:
        """See ``Environment.close``."""
        self._game.close()

    def _frame(self, observation: Any) -> Picture:
        if self._key == _RENDERED:
            image = self._game.render()
            if image is None:
                raise TypeError("render() returned no image")
        else:
            image = observation if self._key is None else observation[self._key]
        self._seen = to_rgb(np.asarray(image))
        if min(self._seen.shape[:2]) < MIN_SIDE:
            raise TypeError(f"render() returned an image {np.shape(image)}; expected {MIN_SIDE}x{MIN_SIDE} or more")
        return to_frame(self._seen, self._config.crop)


def make_game(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """Make the game itself, without a step limit.

    Raises:
        ConfigError: It cannot be made with ``env.options``.
    """
    # The pipeline applies the step limit and checks the environment itself.
    arguments: dict[str, Any] = {"disable_env_checker": True, "max_episode_steps": -1, **config.options}
    spec = gymnasium.spec(config.id.rpartition(":")[2])
    modes = _render_modes(spec)
    if modes is None or "rgb_array" in modes:
        arguments.setdefault("render_mode", "rgb_array")
    try:
        return gymnasium.make(spec, **arguments)
    except Exception as error:  # an environment's constructor may raise anything
        raise ConfigError(
            f"env.id = {config.id!r} cannot be made with env.options {config.options}: {type(error).__name__}: {error}"
        ) from error


def _engines(game: gymnasium.Env[Any, Any]) -> AbstractContextManager[None]:
    """Guard of the engine that an environment starts in its first reset, regardless of its ID; only ViZDoom's do."""
    return starting_engines() if _is_of_vizdoom(game) else nullcontext()


def _skipped_frames(game: gymnasium.Env[Any, Any]) -> float:
    """Frames that one step takes; 1 except in ViZDoom, whose ``render_fps`` does not count steps."""
    return float(game.unwrapped.frame_skip) if _is_of_vizdoom(game) else 1.0


def _is_of_vizdoom(game: gymnasium.Env[Any, Any]) -> bool:
    return "vizdoom" in {kind.__module__.partition(".")[0] for kind in type(game.unwrapped).__mro__}


def _render_modes(spec: Any) -> list[str] | None:
    """Render modes of an environment's class; None if they are not known before it is made."""
    try:
        creator = (
            gymnasium.envs.registration.load_env_creator(spec.entry_point)
            if isinstance(spec.entry_point, str)
            else spec.entry_point
        )
    except Exception:  # any error of a module that is imported; gymnasium.make meets it again and reports it
        return None
    metadata = getattr(creator, "metadata", None)
    modes: list[str] | None = metadata.get("render_modes") if isinstance(metadata, dict) else None
    return modes


def _frame_key(game: gymnasium.Env[Any, Any], config: EnvConfig) -> str | None:
    """Key of the frame in observations; None if the observation is the frame, ``_RENDERED`` if it is drawn.

    Raises:
        ConfigError: ``env.frame_key`` names no image, several entries look like images, or nothing draws a frame.
    """
    space = game.observation_space
    named = config.frame_key
    if isinstance(space, spaces.Dict):
        images = [key for key, entry in space.spaces.items() if _has_images(entry)]
        if named is not None:
            if named not in images:
                raise ConfigError(
                    f"env.frame_key = {named!r}: no image of {config.id}'s observation. Images: "
                    f"{', '.join(images) or 'none'}; leave it null to draw frames with render()"
                )
            return named
        if len(images) > 1:
            raise ConfigError(
                f"env.id = {config.id!r}: several entries of its observation look like images: set env.frame_key to "
                f"one of {', '.join(images)}"
            )
        if images:
            return str(images[0])
    elif named is not None:
        raise ConfigError(f"env.frame_key = {named!r}: {config.id}'s observation is no Dict; leave it null")
    elif _has_images(space):
        return None
    if game.render_mode != "rgb_array":
        raise ConfigError(
            f"env.id = {config.id!r}: its observation is no image of at least {MIN_SIDE}x{MIN_SIDE} pixels, and it "
            "has no render mode rgb_array: there are no frames to learn from"
        )
    return _RENDERED


def _has_images(space: Any) -> bool:
    return isinstance(space, spaces.Box) and is_image(space.shape, space.dtype)
