"""Episodes, driven and written down."""

from __future__ import annotations

import numpy as np

from pipeline.data.episodes import Episode
from pipeline.data.frames import FRAME_SHAPE
from pipeline.envs.environment import Environment, ExploringEnvironment
from pipeline.rollouts.policies import Policy


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
