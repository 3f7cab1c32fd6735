"""Recorded episodes, as frames and as latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episode:
    """An episode of T actions: the agent observed ``frames[t]``, chose ``actions[t]`` and received ``rewards[t]``.

    Attributes:
        id: Episode number, unique within a run.
        track: Seed of the track.
        frames: RGB frames, (T, 64, 64, 3) uint8.
        actions: Actions, (T, A) float32.
        rewards: Rewards, (T,) float32.
        terminated: Whether the environment terminated after each step, (T,) bool; only the last can be set.
        truncated: Whether the environment truncated the episode after each step, (T,) bool; only the last can be set.
            If the pipeline itself cut the episode short, neither flag is set.
        final_frame: RGB frame after the last action, (64, 64, 3) uint8.
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
    """Latents of an episode of T steps; the other columns are as in ``Episode``.

    Attributes:
        id: Episode number, unique within a run.
        track: Seed of the track.
        mu: Means of the posterior of V, (T, Z) float32.
        logvar: Log variances of the posterior of V, (T, Z) float32.
        actions: Actions, (T, A) float32.
        rewards: Rewards, (T,) float32.
        terminated: Whether the environment terminated after each step, (T,) bool.
        truncated: Whether the environment truncated the episode after each step, (T,) bool.
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
