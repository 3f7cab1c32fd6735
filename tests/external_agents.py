"""Agents from outside this project, for the tests of their evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Straight:
    """Always full gas; records its observations."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def reset(self) -> None:
        self.shapes.clear()

    def act(self, observation: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert observation.shape == (96, 96, 3) and observation.dtype == np.uint8
        return np.array([0, 1, 0], np.float32)


class Listing(Straight):
    """Full gas as a list."""

    def act(self, observation: NDArray[np.uint8]) -> Any:
        return super().act(observation).tolist()


class Seeded:
    """Draws its actions from the seed of its episode."""

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Any) -> NDArray[np.float32]:
        return self._rng.uniform([-1, 0], 1, 2).astype(np.float32)


class Raising(Seeded):
    """Raises at its third step."""

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self._left = 3

    def act(self, observation: Any) -> NDArray[np.float32]:
        self._left -= 1
        if not self._left:
            raise RuntimeError("out of ideas")
        return super().act(observation)


class NeedsArguments(Seeded):
    def __init__(self, path: str) -> None:
        self.path = path


class Unfinished:
    def act(self, observation: Any) -> NDArray[np.float32]:
        return np.zeros(2, np.float32)
