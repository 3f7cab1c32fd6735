"""Recording of episodes."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import EpisodeError
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
    job_id: Hashable = None,
) -> Episode:
    """Run and record one episode.

    Args:
        env: Environment to step.
        policy: Policy that chooses the actions.
        episode_id: ID of the episode.
        track: Track seed.
        max_actions: Maximum number of actions.
        start: Random stream that draws the start state, for an ``ExploringEnvironment``; None for the track's own
            start.
        job_id: Job that the episode is part of, for errors.

    Raises:
        EpisodeError: The environment raised, or returned a frame of another shape or type.
    """
    frames = np.empty((max_actions, *FRAME_SHAPE), np.uint8)
    actions = np.empty((max_actions, env.actions.size), np.float32)
    rewards = np.empty(max_actions, np.float32)
    terminated = np.zeros(max_actions, np.bool_)
    truncated = np.zeros(max_actions, np.bool_)
    name = f"collected episode {episode_id}, on track seed {track}"
    taken = 0
    try:
        frame = _checked(_reset(env, track, start))
    except Exception as error:
        raise EpisodeError.raised(name, "in reset", error, job_id) from error
    while taken < max_actions:
        frames[taken] = frame
        actions[taken] = policy.act(frame)
        try:
            frame, rewards[taken], terminated[taken], truncated[taken] = env.step(actions[taken])
            _checked(frame)
        except Exception as error:
            raise EpisodeError.raised(name, f"in step {taken + 1}", error, job_id) from error
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


def _reset(env: Environment, track: int, start: np.random.Generator | None) -> NDArray[np.uint8]:
    if start is None:
        return env.reset(track)
    assert isinstance(env, ExploringEnvironment)  # checked before the run by check_environment
    return env.reset_anywhere(track, start)


def _checked(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
        raise TypeError(f"it returned a frame {frame.shape} {frame.dtype}; {FRAME_SHAPE} uint8 was expected")
    return frame
