"""A counting environment: every frame encodes its track and step, every reward the action that earned it.

With it a test can prove that nothing was lost, doubled, reordered or shifted by a step. Everything it does is also
given as plain functions of (track, step, action), which a test can compare with the data of the pipeline.

Use it as ``env.id = "tests.counting:CountingEnv"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.data.frames import FRAME_SHAPE, FRAME_SIZE
from pipeline.envs.actions import Actions, BoxActions
from pipeline.envs.environment import Step

ENV_ID = "tests.counting:CountingEnv"
ACTION_SIZE = 2

_PIXELS = np.arange(FRAME_SIZE, dtype=np.int64)


def frame_of(track: int, step: int) -> NDArray[np.uint8]:
    """The frame before the ``step``-th action (from 0) on a track: (64, 64, 3) uint8.

    The first 12 values are the track and the step in big-endian; all others are a pattern of the two.
    """
    flat = ((_PIXELS * (1 + track % 13) + 31 * track + 17 * step) % 251).astype(np.uint8)
    flat[:12] = np.frombuffer(track.to_bytes(8, "big") + step.to_bytes(4, "big"), np.uint8)
    return flat.reshape(FRAME_SHAPE)


def track_and_step(frame: NDArray[np.uint8]) -> tuple[int, int]:
    """The track and step of a frame; raises if its bytes differ from ``frame_of``."""
    code = frame.reshape(-1)[:12].tobytes()
    track, step = int.from_bytes(code[:8], "big"), int.from_bytes(code[8:], "big")
    assert np.array_equal(frame, frame_of(track, step)), "this frame was changed"
    return track, step


def own_end(track: int, max_episode_steps: int) -> int | None:
    """Steps after which a track ends by itself; None if only the step limit ends it (every third track).

    Every eighth track ends by itself at the limit: terminated and truncated at once.
    """
    return None if track % 3 == 0 else max(1, max_episode_steps * (1 + track % 8) // 8)


def episode_length(track: int, max_episode_steps: int) -> int:
    """Steps of a whole episode."""
    return min(own_end(track, max_episode_steps) or max_episode_steps, max_episode_steps)


def bonus_period(track: int) -> int:
    """The period, in steps, of positive rewards on a track; all other rewards are negative."""
    return 1 + track % 5


def reward_of(track: int, step: int, action: NDArray[np.float32]) -> float:
    """The reward of an action as the ``step``-th (from 0) on a track."""
    target = [((31 * track + 17 * step + 7 * i) % 101) / 50 - 1.003 for i in range(ACTION_SIZE)]
    bonus = 3.0 if (step + 1) % bonus_period(track) == 0 else 0.0
    return bonus - 0.1 * sum(abs(float(a) - t) for a, t in zip(action, target, strict=True))


class CountingEnv:
    """See the module's docstring, and ``pipeline/envs/environment.py`` for the methods."""

    actions: Actions = BoxActions([-1.0, 0.0], [1.0, 1.0])
    steps_per_second = 50.0
    repeats_actions = True

    def __init__(self, config: EnvConfig) -> None:
        self._max_episode_steps = config.max_episode_steps
        self._action_repeat = config.action_repeat
        self._track: int | None = None
        self._step = 0
        self._over = True

    def reset(self, track: int) -> NDArray[np.uint8]:
        self._track, self._step, self._over = track, 0, False
        return frame_of(track, 0)

    def step(self, action: NDArray[np.float32]) -> Step:
        assert self._track is not None and not self._over, "stepped an episode that is over, or that never began"
        assert action.shape == (ACTION_SIZE,) and action.dtype == np.float32, (action.shape, action.dtype)
        assert np.all((self.actions.low <= action) & (action <= self.actions.high)), f"out of bounds: {action}"
        reward, terminated, truncated = 0.0, False, False
        for _ in range(self._action_repeat):
            reward += reward_of(self._track, self._step, action)
            self._step += 1
            terminated = self._step == own_end(self._track, self._max_episode_steps)
            truncated = self._step == self._max_episode_steps
            if terminated or truncated:
                break
        self._over = terminated or truncated
        return Step(frame_of(self._track, self._step), reward, terminated, truncated)

    def render(self) -> NDArray[np.uint8]:
        assert self._track is not None
        return np.kron(frame_of(self._track, self._step), np.ones((4, 4, 1), np.uint8))

    def close(self) -> None:
        self._over = True


# Small enough for tests. All sizes differ, so that swapped axes cause an error.
_SMALL: dict[str, Any] = {
    "name": "counting",
    "env.id": ENV_ID,
    "env.max_episode_steps": 16,
    "collect.policy": "white",
    "collect.episodes": 10,
    "collect.episode_steps": 12,
    "collect.episodes_per_shard": 3,
    "vae.z_size": 5,
    "vae.batch_size": 8,
    "vae.epochs": 1,
    "vae.validation_fraction": 0.2,
    "vae.shuffle_frames": 40,
    "vae.threads": 1,
    "encode.batch_size": 4,
    "mdnrnn.hidden_size": 7,
    "mdnrnn.mixtures": 3,
    "mdnrnn.window": 6,
    "mdnrnn.batch_size": 4,
    "mdnrnn.epochs": 2,
    "mdnrnn.validation_fraction": 0.2,
    "mdnrnn.threads": 1,
    "rollouts.micro_batch": 4,
    "rollouts.lanes": 3,
    "rollouts.precision": "float32",  # some tests use an untrained V, which int8 refuses
    "evolve.population_size": 4,
    "evolve.episodes": 2,
    "evolve.sigma": 0.5,
    "evolve.generations": 3,
    "evolve.validate_every": 2,
    "evolve.validation_episodes": 3,
    "evaluate.episodes": 4,
    "evaluate.film_seconds": 0.5,
    "execution.executor": "in-process",
}


def counting_config(overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A tiny run on ``CountingEnv``, with overrides by dotted key."""
    values: dict[str, Any] = {}
    for key, value in {**_SMALL, **(overrides or {})}.items():
        *sections, leaf = key.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = value
    return RunConfig.model_validate(values)
