"""Recorded episodes: what collecting writes down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.envs.environment import FRAME_SHAPE, Environment, ExploringEnvironment
from pipeline.rollouts.policies import Policy


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


def record_episode(
    env: Environment,
    policy: Policy,
    *,
    episode_id: int,
    track: int,
    max_actions: int,
    start: np.random.Generator | None = None,
) -> Episode:
    """Drive one episode and write it down, up to ``max_actions`` actions.

    Args:
        start: the stream that chooses where it begins, in an ``ExploringEnvironment``; None for the track's own start.
    """
    frames = np.empty((max_actions, *FRAME_SHAPE), np.uint8)
    actions = np.empty((max_actions, env.action_size), np.float32)
    rewards = np.empty(max_actions, np.float32)
    terminated = np.zeros(max_actions, np.bool_)
    truncated = np.zeros(max_actions, np.bool_)
    if start is None:
        frame = env.reset(track)
    else:
        assert isinstance(env, ExploringEnvironment)  # refused otherwise, before the run
        frame = env.reset_anywhere(track, start)
    taken = 0
    while taken < max_actions:
        frames[taken] = frame
        actions[taken] = policy.act(frame)
        frame, rewards[taken], terminated[taken], truncated[taken] = env.step(actions[taken])
        taken += 1
        if terminated[taken - 1] or truncated[taken - 1]:
            break
    return Episode(
        episode_id,
        track,
        frames[:taken],
        actions[:taken],
        rewards[:taken],
        terminated[:taken],
        truncated[:taken],
        final_frame=frame.copy(),
    )
