"""Gymnasium's CarRacing-v3 as the pipeline sees it: 64x64 frames, track seeds, the paper's squashing."""

from __future__ import annotations

import os

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import EnvConfig
from pipeline.envs.environment import Step

# Nothing here opens a window; SDL must not look for a screen or a sound card, nor pygame greet.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import Box2D
import gymnasium

cv2.setNumThreads(1)

# Rows of the 96x96 observation above the status bar; the paper crops to them (its carracing.py).
_PLAYFIELD_ROWS = 84


def reduce_observation(observation: NDArray[np.uint8], view: str) -> NDArray[np.uint8]:
    """An observation (96, 96, 3) uint8 to a frame (64, 64, 3) uint8, by area averaging.

    Every path that makes frames goes through here, so that what V was trained on is what C sees.
    """
    if view == "playfield":
        observation = observation[:_PLAYFIELD_ROWS]
    return cv2.resize(observation, (64, 64), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


class CarRacing:
    """Gymnasium's own physics, rewards and rendering; see ``pipeline/envs/environment.py`` for the methods."""

    action_size = 3
    action_low = np.array([-1.0, 0.0, 0.0], np.float32)
    action_high = np.array([1.0, 1.0, 1.0], np.float32)

    def __init__(self, config: EnvConfig) -> None:
        self._view = config.view
        self._env = gymnasium.make(
            "CarRacing-v3",
            render_mode="rgb_array",
            continuous=True,
            domain_randomize=config.domain_randomize,
            max_episode_steps=config.max_episode_steps,
            disable_env_checker=True,
        )

    def reset(self, track: int) -> NDArray[np.uint8]:
        # Gymnasium keeps one Box2D world for all episodes. A new one leaves an earlier episode no way (the broad-phase
        # tree, the order of contacts) to reach the bits of the next.
        game = self._env.unwrapped
        game._destroy()
        game.road = []
        game.car = None
        game.world = Box2D.b2World((0, 0))
        observation, _ = self._env.reset(seed=track)
        return reduce_observation(observation, self._view)

    def step(self, action: NDArray[np.float32]) -> Step:
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return Step(reduce_observation(observation, self._view), float(reward), bool(terminated), bool(truncated))

    def squash(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Steering tanh(x); gas (tanh(x) + 1) / 2; brake max(tanh(x), 0): the paper's carracing code."""
        action = np.tanh(output)
        action[..., 1] = (action[..., 1] + 1) / 2
        np.maximum(action[..., 2], 0, out=action[..., 2])
        return action

    def render(self) -> NDArray[np.uint8]:
        return np.asarray(self._env.render(), np.uint8)

    def close(self) -> None:
        self._env.close()
