"""Interface between environments and the rest of the pipeline."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import EnvConfig


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

    Attributes:
        action_size: Length of an action, A.
        action_low, action_high: Bounds of an action, (A,) float32.
    """

    action_size: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]

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

    def squash(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert a controller's raw outputs, (..., A) float32, to actions, (..., A) float32."""

    def render(self) -> NDArray[np.uint8]:
        """Render the scene for people, (H, W, 3) uint8 RGB, larger than a frame."""

    def close(self) -> None:
        """Release the environment's resources."""


@runtime_checkable
class ExploringEnvironment(Environment, Protocol):
    """Environment whose episodes can begin anywhere on a track, for ``collect.exploring_starts``."""

    def reset_anywhere(self, track: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Begin an episode on a track in a state drawn from ``rng``; the same stream gives the same bits."""


class EnvironmentClass(Protocol):
    """Class that creates environments from the ``env`` section of a config; an entry of the registry.

    A class that supports ``env.action_repeat`` has the attribute ``repeats_actions = True``. Two optional members are
    included in the metadata of weights: a static method ``describe_frames(config) -> dict``, which describes how frames
    are cropped from a larger image, and a string ``squashing``, the formula of ``squash``.

    Attributes:
        action_size: Length of an action, A.
        action_low, action_high: Bounds of an action, (A,) float32.
    """

    __module__: str
    __name__: str
    action_size: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]

    def __call__(self, config: EnvConfig) -> Environment:
        """Create an environment."""
