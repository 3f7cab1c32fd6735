"""What every environment gives to the rest of the pipeline."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import EnvConfig


class Step(NamedTuple):
    """What one action led to.

    Attributes:
        frame: (64, 64, 3) uint8 RGB, what the agent sees next.
        reward: what the action earned, in all steps that it was held for.
        terminated: the environment reached an end of its own.
        truncated: the step limit was reached.
    """

    frame: NDArray[np.uint8]
    reward: float
    terminated: bool
    truncated: bool


class Environment(Protocol):
    """One environment that one lane steps.

    Attributes:
        action_size: A, the length of an action.
        action_low, action_high: (A,) float32, the bounds of an action.
    """

    action_size: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]

    def reset(self, track: int) -> NDArray[np.uint8]:
        """Begin an episode on a track. The same track gives the same episode for the same actions, to the bit,
        whatever this environment did before. Returns the first frame, (64, 64, 3) uint8 RGB."""

    def step(self, action: NDArray[np.float32]) -> Step:
        """Act once, for ``env.action_repeat`` steps or up to the episode's end; action: (A,) float32."""

    def squash(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """A controller's raw output (..., A) float32 to actions (..., A) float32."""

    def render(self) -> NDArray[np.uint8]:
        """The scene for people: (H, W, 3) uint8 RGB, larger than a frame."""

    def close(self) -> None:
        """Free what the environment holds."""


@runtime_checkable
class ExploringEnvironment(Environment, Protocol):
    """One in which an episode can begin anywhere, for ``collect.exploring_starts``."""

    def reset_anywhere(self, track: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Begin an episode on a track in a state that ``rng`` chooses, to the same bits for the same stream."""


class EnvironmentClass(Protocol):
    """What the registry holds: a class that makes environments from the ``env`` section of a config.

    One that heeds ``env.action_repeat`` says so by an attribute ``repeats_actions = True``. One whose frames are cut
    out of something larger may say how in a static method ``describe_frames(config) -> dict``, and how ``squash`` makes
    actions in an attribute ``squashing``, a string: both go into the metadata of weights.
    """

    __module__: str
    __name__: str
    action_size: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]

    def __call__(self, config: EnvConfig) -> Environment: ...
