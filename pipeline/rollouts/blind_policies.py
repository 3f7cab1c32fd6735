"""Blind policies, which ignore the screen, as a baseline.

A controller that scores no more than they do has learned no more than to move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base import seeding
from pipeline.base.errors import ConfigError, EpisodeError
from pipeline.config.schema import EnvConfig
from pipeline.envs.environment import Environment
from pipeline.envs.registry import make_environment
from pipeline.rollouts.policies import Policy, RepeatPolicy, WhitePolicy

SWEEPS = (40, 60, 90, 140)

BlindJobId = tuple[str, int]


class SweepPolicy:
    """The lowest action a number of times, then the highest as often, and so on.

    Args:
        env: Environment whose action bounds apply.
        count: Number of actions in each direction.
    """

    def __init__(self, env: Environment, count: int) -> None:
        self._ends, self._period, self._taken = (env.actions.low, env.actions.high), count, 0

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See ``Policy.act``."""
        action: NDArray[np.float32] = self._ends[self._taken // self._period % 2]
        self._taken += 1
        return action


@dataclass(frozen=True)
class BlindJob:
    """An episode of a blind policy.

    Attributes:
        policy: Name of the policy, see ``blind_policies``.
        track: Track seed.
    """

    policy: str
    track: int

    @property
    def id(self) -> BlindJobId:
        """Job id: (policy, track)."""
        return self.policy, self.track


def blind_policies(env: Environment) -> list[str]:
    """Names of the blind policies for an environment: sweeps need an action of one bounded number."""
    sweeps = [f"sweep {count}" for count in SWEEPS] if env.actions.size == 1 and not env.actions.discrete else []
    return ["random", "repeat", *sweeps]


def make_blind_policy(name: str, max_repeats: int, env: Environment, rng: np.random.Generator) -> Policy:
    """Create a policy for one episode.

    Args:
        name: ``random`` (a uniform action each time), ``repeat`` (a uniform action, held as in data collection) or
            ``sweep N``.
        max_repeats: Maximum number of steps for which ``repeat`` holds an action.
        env: Environment whose actions are taken.
        rng: Random stream of the episode.

    Raises:
        ConfigError: There is no policy of this name for the environment.
    """
    kind, _, count = name.partition(" ")
    if kind == "random":
        return WhitePolicy(env, rng)
    if kind == "repeat":
        return RepeatPolicy(env, max_repeats, rng)
    if kind == "sweep" and count.isdecimal() and int(count) > 0 and env.actions.size == 1 and not env.actions.discrete:
        return SweepPolicy(env, int(count))
    raise ConfigError(
        f"policy {name!r}: expected {' or '.join(blind_policies(env))}"
        + ("; sweep N takes any N above 0" if env.actions.size == 1 and not env.actions.discrete else "")
    )


class BlindWorker:
    """Runs episodes of blind policies; the plain class behind an actor.

    Args:
        config: Section ``env`` of the run.
        max_repeats: Maximum number of steps for which ``repeat`` holds an action.
        seed: Seed of the run.
    """

    def __init__(self, config: EnvConfig, max_repeats: int, seed: int) -> None:
        self._config, self._max_repeats, self._seed = config, max_repeats, seed
        self._env = self._make_environment()

    def _make_environment(self) -> Environment:
        env = make_environment(self._config)
        if hasattr(env, "draws"):
            env.draws = False  # nobody looks, and drawing is most of the cost
        return env

    def run(self, jobs: Iterable[BlindJob]) -> Iterator[tuple[BlindJobId, float]]:
        """Run every job's episode, yielding (job ID, return) for each.

        Raises:
            EpisodeError: The environment raised. It is discarded; the worker can be called again.
        """
        for job in jobs:
            try:
                yield job.id, self._play(job)
            except EpisodeError:
                with suppress(Exception):
                    self._env.close()
                self._env = self._make_environment()
                raise

    def _play(self, job: BlindJob) -> float:
        config, env = self._config, self._env
        rng = seeding.generator(self._seed, "blind", job.track)
        policy = make_blind_policy(job.policy, self._max_repeats, env, rng)
        name, when = f"episode of {job.policy} on track seed {job.track}", "in reset"
        total = 0.0
        try:
            frame = env.reset(job.track)
            for action in range(config.actions_in(config.max_episode_steps)):
                when = f"in step {action + 1}"
                frame, reward, terminated, truncated = env.step(policy.act(frame))
                total += reward
                if terminated or truncated:
                    break
        except Exception as error:
            raise EpisodeError.raised(name, when, error, job.id) from error
        return total
