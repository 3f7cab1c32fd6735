"""Recorded episodes: as frames, and as latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episode:
    """T actions. ``frames[t]`` is what the agent saw when it chose ``actions[t]``; ``rewards[t]`` is what that earned.

    Attributes:
        id: unique within a run.
        track: its track seed.
        frames: (T, 64, 64, 3) uint8 RGB.
        actions: (T, A) float32.
        rewards: (T,) float32.
        final_frame: (64, 64, 3) uint8 RGB, what the agent would have seen next.
        terminated, truncated: (T,) bool; at most the last one is set. Neither is, where the pipeline itself cut the
            episode short.
    """

    id: int
    track: int
    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_frame: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class LatentEpisode:
    """An episode's latents, T steps; the other columns as in ``Episode``.

    Attributes:
        mu, logvar: (T, Z) float32.
    """

    id: int
    track: int
    mu: NDArray[np.float32]
    logvar: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rewards)
