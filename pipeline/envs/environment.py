"""Interface between environments and the rest of the pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import EnvConfig
from pipeline.envs.actions import Actions


class Step(NamedTuple):
    """Result of one action.

    Attributes:
        frame: Next frame for the agent, (64, 64, 3) uint8 RGB.
        reward: Sum of the rewards of all steps that the action was held for.
        terminated: Whether the environment ended the episode.
        truncated: Whether the step limit was reached.
    """

    frame: NDArray[np.uint8]
    reward: float
    terminated: bool
    truncated: bool


class Environment(Protocol):
    """Environment of one lane.

    A class that supports ``env.action_repeat`` also has the attribute ``repeats_actions = True``. A method
    ``describe_frames()`` is optional: it returns a dict of plain values that describes how frames are cut from a larger
    image, for the metadata of weights. So is ``action_names()``: it returns the names of the choices of a discrete
    action in their order, for people.

    Attributes:
        actions: Actions, A numbers each.
        steps_per_second: Steps per second of the game's own clock, for films.
    """

    actions: Actions
    steps_per_second: float

    def reset(self, track: int) -> NDArray[np.uint8]:
        """Begin an episode.

        The same track and actions give bit-for-bit the same episode, independent of earlier episodes of this
        environment.

        Args:
            track: Track seed.

        Returns:
            First frame, (64, 64, 3) uint8 RGB.
        """

    def step(self, action: NDArray[np.float32]) -> Step:
        """Apply an action, (A,) float32, for ``env.action_repeat`` steps or until the episode ends."""

    def render(self) -> NDArray[np.uint8]:
        """Render the scene for people, (H, W, 3) uint8 RGB."""

    def close(self) -> None:
        """Release the environment's resources."""


@runtime_checkable
class ExploringEnvironment(Environment, Protocol):
    """Environment whose episodes can begin anywhere on a track, for ``collect.exploring_starts``."""

    def reset_anywhere(self, track: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Begin an episode on a track in a state drawn from ``rng``; the same stream gives the same bits."""


class EnvironmentClass(Protocol):
    """Class that creates environments from the ``env`` section of a config."""

    __module__: str
    __name__: str

    def __call__(self, config: EnvConfig) -> Environment:
        """Create an environment."""


def frames_of(env: Environment) -> Mapping[str, Any]:
    """Description of an environment's frames; empty if it has none."""
    describe = getattr(env, "describe_frames", None)
    return describe() if describe is not None else {}


def action_names_of(env: Environment) -> Sequence[str]:
    """Names of the choices of an environment's action; empty if it has none."""
    name = getattr(env, "action_names", None)
    return name() if name is not None else []


def configure_headless() -> None:
    """Configure this process: SDL without screen and sound, pygame without its greeting, OpenCV without threads."""
    for name, value in (
        ("SDL_VIDEODRIVER", "dummy"),
        ("SDL_AUDIODRIVER", "dummy"),
        ("PYGAME_HIDE_SUPPORT_PROMPT", "1"),
    ):
        os.environ.setdefault(name, value)
    cv2.setNumThreads(1)
