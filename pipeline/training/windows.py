"""Windows of latents and actions, on which M is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.arrays import Array
from pipeline.data.episodes import LatentEpisode


class Windows(NamedTuple):
    """Batch of B windows of up to T steps. Each step of a window is one row of a shard.

    Attributes:
        mu, logvar: Latent distributions, (B, T + 1, Z) float32; the last step is only a target.
        actions: Actions, (B, T, A) float32.
        rewards: Rewards, (B, T) float32.
        done: 1 where the environment terminated, else 0, (B, T) float32.
        real: 0 where a window shorter than the longest was padded, else 1, (B, T) float32.
        has_next: 1 where there is a next z to predict (not at an episode's last row), else 0, (B, T) float32.
    """

    mu: Array
    logvar: Array
    actions: Array
    rewards: Array
    done: Array
    real: Array
    has_next: Array


def num_windows(steps: int, window: int) -> int:
    """Number of windows in an episode: as many as fit without overlap, at least one (padded)."""
    return max(1, steps // window)


class WindowBlock:
    """Windows of a block of episodes.

    The windows of an episode are contiguous; the offset of the first is drawn again each epoch, so that every row is
    used. M's state is zero at the start of each window, as it is at the start of a dream, wherever in an episode the
    window or the dream begins.

    Args:
        episodes: Latent episodes, at least one.
        window: Steps per window, T.
        rng: Random stream that draws the offsets.
    """

    def __init__(self, episodes: Sequence[LatentEpisode], window: int, rng: np.random.Generator) -> None:
        self._window = window
        self._items: list[tuple[LatentEpisode, int]] = []
        for episode in episodes:
            count = num_windows(len(episode), window)
            slack = max(0, len(episode) - count * window)
            # The last row of a game that ended is an end to learn from: half of the draws have it in a window.
            ends = bool(episode.terminated[-1]) and slack > 0 and rng.random() < 0.5
            first = slack if ends else int(rng.integers(0, slack + 1))
            self._items += [(episode, first + index * window) for index in range(count)]

        self._lengths = np.array([min(window, len(episode) - start) for episode, start in self._items], np.int64)

    def __len__(self) -> int:
        return len(self._items)

    def by_length(self) -> NDArray[np.int64]:
        """Items from the shortest window to the longest, (N,) int64."""
        return np.argsort(self._lengths, kind="stable")

    def arrange(self, order: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
        """See ``LoadedBlock.arrange``: windows of similar lengths share a batch, so that little is padded.

        Which windows of one length share a batch, and the order of the batches, stay as random as ``order``. If all
        windows have one length, the order is unchanged.
        """
        batches = order[np.argsort(self._lengths[order], kind="stable")].reshape(-1, batch_size)
        place = np.empty(len(self), np.int64)
        place[order] = np.arange(len(order))
        return batches[np.argsort(place[batches].min(axis=1), kind="stable")].reshape(-1)

    def batch(self, items: NDArray[np.int64]) -> Windows:
        """See ``LoadedBlock.batch``."""
        size, length = len(items), int(self._lengths[items].max())
        example = self._items[0][0]
        z_size, action_size = example.mu.shape[1], example.actions.shape[1]
        mu = np.zeros((size, length + 1, z_size), np.float32)
        logvar = np.zeros_like(mu)
        actions = np.zeros((size, length, action_size), np.float32)
        rewards, done, real, has_next = (np.zeros((size, length), np.float32) for _ in range(4))
        for row, item in enumerate(items):
            episode, start = self._items[item]
            rows = min(length, len(episode) - start)
            targets = min(length + 1, len(episode) - start)
            mu[row, :targets] = episode.mu[start : start + targets]
            logvar[row, :targets] = episode.logvar[start : start + targets]
            actions[row, :rows] = episode.actions[start : start + rows]
            rewards[row, :rows] = episode.rewards[start : start + rows]
            done[row, :rows] = episode.terminated[start : start + rows]
            real[row, :rows] = 1
            has_next[row, : targets - 1] = 1
        return Windows(mu, logvar, actions, rewards, done, real, has_next)
