"""Measured length of the episodes that are collected, for estimates."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.base import seeding
from pipeline.config.schema import RunConfig
from pipeline.envs.registry import make_environment
from pipeline.rollouts.policies import make_policy

_EPISODES = 32
_SECONDS = 1.0


def collected_actions(config: RunConfig, clock: Callable[[], float] = time.perf_counter) -> float | None:
    """Mean number of actions of a run's first collected episodes, as many as end within about a second.

    Args:
        config: Config of the run.
        clock: Clock in seconds.

    Returns:
        Actions in all these episodes over the number that ended; None if none ended, if the policy is too slow to ask
        (``random-controller`` makes new networks for each episode), or if the environment raised, which the run itself
        reports.
    """
    collect = config.collect
    if collect.policy == "random-controller":
        return None
    limit = config.env.actions_in(collect.episode_steps)
    env = make_environment(config.env)
    taken = ended = 0
    until = None
    try:
        for episode in range(min(_EPISODES, collect.episodes)):
            policy = make_policy(collect, config.agent, env, seeding.generator(config.seed, "collect/policy", episode))
            frame = env.reset(seeding.track(config.seed, config.tracks.training, "collect/track", episode))
            until = until or clock() + _SECONDS  # after the first reset, which may start an engine
            for action in range(1, limit + 1):
                frame, _, terminated, truncated = env.step(policy.act(frame))
                taken += 1
                if terminated or truncated or action == limit:
                    ended += 1
                    break
                if clock() > until:
                    return taken / ended if ended else None
    except Exception:  # an environment may raise anything
        return None
    finally:
        env.close()
    return taken / ended
