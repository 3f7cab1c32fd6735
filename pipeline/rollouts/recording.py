"""Recording of episodes."""

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
    """Run and record one episode.

    Args:
        env: Environment to step.
        policy: Policy that chooses the actions.
        episode_id: Id of the episode.
        track: Track seed.
        max_actions: Maximum number of actions.
        start: Random stream that draws the start state, for an ``ExploringEnvironment``; None for the track's own
            start.
    """
    frames = np.empty((max_actions, *FRAME_SHAPE), np.uint8)
    actions = np.empty((max_actions, env.action_size), np.float32)
    rewards = np.empty(max_actions, np.float32)
    terminated = np.zeros(max_actions, np.bool_)
    truncated = np.zeros(max_actions, np.bool_)
    if start is None:
        frame = env.reset(track)
    else:
        assert isinstance(env, ExploringEnvironment)  # checked before the run by check_environment
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
