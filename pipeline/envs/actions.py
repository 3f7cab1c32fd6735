"""Action spaces: a controller's raw outputs to the actions that M sees, and to the values that an environment takes.

An action is always a vector of floats, so that M and the shards need not know the kind: a bounded number as it is, a
discrete choice as a one-hot block, a switch as 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from pipeline.base.arrays import Vector
from pipeline.base.errors import ConfigError


class Actions(Protocol):
    """Actions of an environment.

    Attributes:
        size: Length of an action, A.
        low, high: Bounds of an action, (A,) float32.
        discrete: Whether an action is a choice, so that a random walk of it means nothing.
        formula: Formula of ``squash``, for people.
        space: Space of the values that an environment takes.
    """

    size: int
    low: Vector
    high: Vector
    discrete: bool
    formula: str
    space: gymnasium.Space[Any]

    def squash(self, output: Vector) -> Vector:
        """Convert a controller's raw outputs, (..., A) float32, to actions, (..., A) float32; NaN stays NaN."""

    def random(self, rng: np.random.Generator) -> Vector:
        """Draw an action uniformly, (A,) float32."""

    def native(self, action: Vector) -> Any:
        """Convert an action, (A,) float32, to the value that the environment takes."""

    def vector(self, value: Any) -> Vector:
        """Convert a value of the space to an action, (A,) float32: the inverse of ``native``.

        Raises:
            ValueError: The value has another length, is not finite, or is none of the choices.
        """


class BoxActions:
    """Bounded numbers. The controller's outputs are squashed by tanh.

    Args:
        low, high: Bounds, of one shape.
        dtype: Type of the numbers that the environment takes.

    Raises:
        ValueError: A bound is not finite or not below the other, their difference is too large for float32, or the
            type is none of numbers.
    """

    discrete = False
    formula = "low + (tanh(x) + 1) / 2 * (high - low)"

    def __init__(self, low: ArrayLike, high: ArrayLike, dtype: Any = np.float32) -> None:
        self._dtype = np.dtype(dtype)
        if self._dtype.kind not in "iuf":
            raise ValueError(f"its values are of type {self._dtype}")
        lowest, highest = np.asarray(low, dtype), np.asarray(high, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            first, last = lowest.astype(np.float32), highest.astype(np.float32)
            ranges = last - first
        if not (np.isfinite(ranges).all() and (ranges > 0).all()):
            raise ValueError(
                f"the bounds {first.tolist()} and {last.tolist()} are not finite, too far apart, or not in order"
            )
        if self._is_whole:
            self.formula = f"round({type(self).formula})"
        self.low, self.high = first.reshape(-1), last.reshape(-1)
        self.size = self.low.size
        self.space = spaces.Box(lowest, highest, dtype=dtype)

    def squash(self, output: Vector) -> Vector:
        """See ``Actions.squash``."""
        action = self.low + (np.tanh(output) + 1) / 2 * (self.high - self.low)
        return self._rounded(np.clip(action, self.low, self.high))  # the formula's own rounding may leave the bounds

    def random(self, rng: np.random.Generator) -> Vector:
        """See ``Actions.random``."""
        if self._is_whole:
            return self.vector(rng.integers(self.space.low, self.space.high, endpoint=True, dtype=self._dtype))
        return self._rounded(rng.uniform(self.low, self.high).astype(np.float32))

    def native(self, action: Vector) -> Any:
        """See ``Actions.native``."""
        if self._dtype == np.float32:
            return action.reshape(self.space.shape).copy()
        inside = (self.low < action) & (action < self.high)
        native = np.where(inside, self._rounded(action), 0).astype(self._dtype)
        # In float32 the bounds are rounded and may lie outside the space.
        bounds = np.where(action <= self.low, self.space.low.reshape(-1), self.space.high.reshape(-1))
        return np.where(inside, native, bounds).reshape(self.space.shape)

    def vector(self, value: Any) -> Vector:
        """See ``Actions.vector``."""
        return _flat(value, self.size, self.space)

    @property
    def _is_whole(self) -> bool:
        return self._dtype.kind in "iu"

    def _rounded(self, action: Vector) -> Vector:
        """Round to what the environment can take, so that M sees the same action."""
        if self._is_whole:
            return np.rint(action)
        return action.astype(np.float16).astype(np.float32) if self._dtype == np.float16 else action


class ChoiceActions:
    """One choice or several, each a one-hot block. The controller's largest output of a block is its choice.

    Args:
        counts: Number of choices of each block.
        starts: Number of the first choice of each block.
        shape: Shape of the value that the environment takes; () for an integer.

    Attributes:
        counts: Number of choices of each block.
    """

    discrete = True
    formula = "one-hot of the largest output; with several blocks, in each of them"

    def __init__(self, counts: Sequence[int], starts: Sequence[int], shape: tuple[int, ...] = ()) -> None:
        self.counts, self._starts, self._shape = list(counts), np.asarray(starts, np.int64), shape
        self._ends = np.cumsum(self.counts)
        self.size = int(self._ends[-1])
        self.low, self.high = np.zeros(self.size, np.float32), np.ones(self.size, np.float32)
        self.space = (
            spaces.MultiDiscrete(np.reshape(self.counts, shape), start=self._starts.reshape(shape))
            if shape
            else spaces.Discrete(self.counts[0], start=int(self._starts[0]))
        )

    def squash(self, output: Vector) -> Vector:
        """See ``Actions.squash``. Of equal outputs the first counts."""
        action = np.zeros_like(output)
        for end, count in zip(self._ends, self.counts, strict=True):
            block = slice(end - count, end)
            chosen = output[..., block].argmax(axis=-1)
            np.put_along_axis(action[..., block], chosen[..., None], np.float32(1), axis=-1)
        action[np.isnan(output).any(axis=-1)] = np.nan
        return action

    def random(self, rng: np.random.Generator) -> Vector:
        """See ``Actions.random``."""
        action = np.zeros(self.size, np.float32)
        for end, count in zip(self._ends, self.counts, strict=True):
            action[end - count + int(rng.integers(count))] = 1
        return action

    def native(self, action: Vector) -> Any:
        """See ``Actions.native``."""
        blocks = np.split(action, self._ends[:-1])
        chosen = self._starts + [int(block.argmax()) for block in blocks]
        return chosen.reshape(self._shape) if self._shape else int(chosen[0])

    def vector(self, value: Any) -> Vector:
        """See ``Actions.vector``."""
        chosen = _flat(value, len(self.counts), self.space).astype(np.int64) - self._starts
        if ((chosen < 0) | (chosen >= self.counts)).any():
            raise ValueError(f"the action {value!r}: expected a value of {self.space}")
        action = np.zeros(self.size, np.float32)
        action[self._ends - self.counts + chosen] = 1
        return action


class SwitchActions:
    """Independent switches. A positive output turns one on.

    Args:
        shape: Shape of the value that the environment takes.
    """

    discrete = True
    formula = "1 where x > 0, else 0"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.size = int(np.prod(shape))
        self.low, self.high = np.zeros(self.size, np.float32), np.ones(self.size, np.float32)
        self.space = spaces.MultiBinary(shape if len(shape) > 1 else self.size)

    def squash(self, output: Vector) -> Vector:
        """See ``Actions.squash``."""
        return np.where(np.isnan(output), np.float32(np.nan), (output > 0).astype(np.float32))

    def random(self, rng: np.random.Generator) -> Vector:
        """See ``Actions.random``."""
        return rng.integers(2, size=self.size).astype(np.float32)

    def native(self, action: Vector) -> Any:
        """See ``Actions.native``."""
        return action.astype(np.int8).reshape(self._shape)

    def vector(self, value: Any) -> Vector:
        """See ``Actions.vector``."""
        return _flat(value, self.size, self.space)


def _flat(value: Any, size: int, space: gymnasium.Space[Any]) -> Vector:
    """Numbers of an action's value, (size,) float32."""
    numbers = np.asarray(value, np.float32).reshape(-1)
    if not np.isfinite(numbers).all():
        raise ValueError(f"the action {value!r} is not finite: expected a value of {space}")
    if len(numbers) != size:
        raise ValueError(f"the action {value!r} has {len(numbers)} numbers: expected a value of {space}")
    return numbers


def actions_of(space: gymnasium.Space[Any], env_id: str) -> Actions:
    """Actions of a Gymnasium space.

    Args:
        space: Action space.
        env_id: ID of the environment, for messages.

    Raises:
        ConfigError: The space is of a kind that a controller cannot act in.
    """
    if isinstance(space, spaces.Discrete):
        return ChoiceActions([int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return ChoiceActions(space.nvec.reshape(-1).tolist(), space.start.reshape(-1).tolist(), space.nvec.shape)
    if isinstance(space, spaces.MultiBinary):
        return SwitchActions(space.shape)
    reason = "actions are Box with finite bounds, Discrete, MultiBinary or MultiDiscrete"
    if isinstance(space, spaces.Box):
        try:
            return BoxActions(space.low, space.high, space.dtype)
        except ValueError as error:
            reason = f"{error}. Give it another space with gymnasium.wrappers.TransformAction, see docs/environments.md"
    raise ConfigError(f"env.id = {env_id!r}: its action space is {space}, which a controller cannot act in: {reason}")
