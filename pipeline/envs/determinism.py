"""Check that an environment is deterministic: the same seed and actions give the same episode, bit for bit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.base.exactness import inexact_error
from pipeline.base.seeding import generator
from pipeline.config.schema import EnvConfig
from pipeline.envs.environment import Environment
from pipeline.envs.gymnasium_env import GymnasiumEnvironment
from pipeline.envs.registry import make_environment

_STEPS = 50

Actions = Sequence[NDArray[np.float32]]


def check_determinism(config: EnvConfig, track: int, *, exact: bool) -> float:
    """Run the same steps in a used and in a new instance, and compare frames, rewards and ends.

    An instance runs a track, the next track, and the first one again. A new instance runs the next track.

    Args:
        config: Section of the environment.
        track: Track seed.
        exact: Whether a run must be exact (``execution.exact``).

    Returns:
        Actions per second, including the start of episodes, but not that of the first one, which may start an engine.

    Raises:
        ConfigError: A used instance gives another episode than a new one; or two new instances give two episodes,
            and ``exact`` is set.
    """
    env = make_environment(config)
    try:
        actions = [env.actions.random(generator(0, "determinism", step)) for step in range(_STEPS)]
        first = _fingerprint(config, env, track, actions)
        began = time.perf_counter()
        following = _fingerprint(config, env, track + 1, actions)
        again = _fingerprint(config, env, track, actions)
        rate = 2 * _STEPS / (time.perf_counter() - began)
    finally:
        env.close()
    if again == first and _new_fingerprint(config, track + 1, actions) == following:
        return rate
    if _new_fingerprint(config, track, actions) == first and not config.fresh:
        remedy = "Set -o env.fresh=true: each episode then has a new instance"
        if not isinstance(env, GymnasiumEnvironment):
            remedy = "Its reset must restore all state: an episode may depend on its track and actions alone"
        raise ConfigError(
            f"env.id = {config.id!r}: an instance that was used before gives another episode than a new one, for the "
            f"same seed and actions. {remedy}"
        )
    if exact:
        raise inexact_error(
            f"env.id = {config.id!r} is not deterministic, the same seed and actions gave two different episodes"
        )
    return rate


def _new_fingerprint(config: EnvConfig, track: int, actions: Actions) -> bytes:
    env = make_environment(config)
    try:
        return _fingerprint(config, env, track, actions)
    finally:
        env.close()


def _fingerprint(config: EnvConfig, env: Environment, track: int, actions: Actions) -> bytes:
    """Digest of the steps of one track's episode and, once it ends, of every second track after it.

    Raises:
        ConfigError: The environment raised; names the step and the error.
    """
    steps = 0
    try:
        digest = hashlib.sha256(env.reset(track).tobytes())
        for number, action in enumerate(actions, 1):
            frame, reward, terminated, truncated = env.step(action)
            steps += 1
            digest.update(frame.tobytes() + repr((reward, terminated, truncated)).encode())
            if (terminated or truncated) and number < len(actions):
                track, steps = track + 2, 0
                digest.update(env.reset(track).tobytes())
    except ConfigError:
        raise
    except Exception as error:  # an environment may raise anything
        when = f"in step {steps + 1}" if steps else "in reset or in the first step"
        raise ConfigError(
            f"env.id = {config.id!r} raised on track seed {track}, {when}: {type(error).__name__}: {error}"
        ) from error
    return digest.digest()
