"""A run's dream as a Gymnasium environment: Gymnasium's own checks, and equality with the dreams of evolve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError, StorageError
from pipeline.config.presets import dump
from pipeline.dream_env import ID
from pipeline.execution.in_process import InProcessExecutor
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from tests.counting import ACTION_SIZE, counting_config

NAME = f"pipeline.dream_env:{ID}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose M is trained and predicts rewards and ends."""
    folder = tmp_path_factory.mktemp("dreamt")
    config = counting_config({"mdnrnn.reward_weight": 1.0, "mdnrnn.done_weight": 1.0, "dream.reward": "model"})
    store = LocalStore(folder)
    store.write("config.yaml", dump(config).encode())
    run_stages(config, store, InProcessExecutor(), STAGES[:4])
    return str(folder)


def rollout(env: Any, seed: int, steps: int = 40) -> NDArray[np.float32]:
    observation, _ = env.reset(seed=seed)
    found = [observation]
    rng = np.random.default_rng(3)
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(rng.uniform(env.action_space.low, env.action_space.high))
        found.append(observation)
        if terminated or truncated:
            break
    return np.stack(found)


@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
@pytest.mark.parametrize(
    "keys", [{}, {"observe": "zch", "temperature": 1.3, "start": "anywhere", "reward": "survival"}]
)
def test_gymnasium_checks_pass(run: str, keys: dict[str, Any]) -> None:
    env = gymnasium.make(NAME, run=run, render_mode="rgb_array", **keys)
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (64, 64, 3)


def test_observation_follows_its_option(run: str) -> None:
    config = counting_config()
    z, h = config.vae.z_size, config.mdnrnn.hidden_size
    sizes = {
        observe: gymnasium.make(NAME, run=run, observe=observe).observation_space.shape for observe in ("z", "zch")
    }
    assert sizes == {"z": (z,), "zch": (z + 2 * h,)}
    observation, _ = gymnasium.make(NAME, run=run, observe="hzc").reset(seed=0)
    assert (observation[:h] == 0).all() and (observation[h : h + z] != 0).all() and (observation[h + z :] == 0).all()


def test_dream_depends_on_the_seed(run: str) -> None:
    env = gymnasium.make(NAME, run=run, end_probability=0.99)
    assert rollout(env, 1).tobytes() == rollout(env, 1).tobytes()
    assert not np.array_equal(rollout(env, 1)[0], rollout(env, 2)[0])


def test_dream_ends_at_its_limit_with_the_chosen_reward(run: str) -> None:
    env = gymnasium.make(NAME, run=run, reward="survival", max_steps=5, end_probability=0.999999)
    env.reset(seed=0)
    steps = [env.step(env.action_space.sample()) for _ in range(5)]
    assert [step[1] for step in steps] == [1.0] * 5
    assert [step[3] for step in steps] == [False] * 4 + [True]
    env = gymnasium.make(NAME, run=run, end_probability=1e-6)
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    assert terminated and not truncated, "any probability is above this one"


def test_vector_of_dreams_equals_single_dreams_and_resets_ended_ones(run: str) -> None:
    many = gymnasium.make_vec(NAME, num_envs=3, run=run, max_steps=4, end_probability=0.999999, observe="z")
    observations, _ = many.reset(seed=10)
    assert observations.shape == (3, counting_config().vae.z_size)
    for slot in range(3):
        one, _ = gymnasium.make(NAME, run=run, observe="z").reset(seed=10 + slot)
        np.testing.assert_array_equal(observations[slot], one)
    actions = np.zeros((3, ACTION_SIZE), np.float32)
    ends = []
    for _ in range(9):
        observations, rewards, terminated, truncated, _ = many.step(actions)
        ends.append(truncated.tolist())
        assert not terminated.any()
        if len(ends) in (5,):
            assert (rewards == 0).all(), "this step began the dreams again"
    assert [any(row) for row in ends] == [False] * 3 + [True] + [False] * 4 + [True]
    again, _ = many.reset(seed=[12, 11, 10])
    first, _ = many.reset(seed=10)
    np.testing.assert_array_equal(again, first[::-1])
    np.testing.assert_array_equal(many.reset(seed=np.int64(10))[0], first)
    with pytest.raises(ValueError, match="2 seeds for 3 dreams: expected one for each"):
        many.reset(seed=[1, 2])
    assert many.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP


def test_agent_learns_by_random_search(run: str) -> None:
    """A plain random search for the best constant action."""
    env = gymnasium.make_vec(NAME, num_envs=8, run=run, max_steps=6, end_probability=0.999999)
    rng = np.random.default_rng(0)

    def score(action: NDArray[np.float32]) -> float:
        env.reset(seed=0)
        return float(sum(env.step(np.tile(action, (8, 1)))[1].mean() for _ in range(6)))

    low, high = env.single_action_space.low, env.single_action_space.high
    found = [score(rng.uniform(low, high).astype(np.float32)) for _ in range(12)]
    assert max(found) > np.mean(found)


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"observe": "x"}, ConfigError, "observe = 'x': expected letters of z, h and c"),
        ({"temperature": -1}, ConfigError, "temperature"),
        ({"heat": 1}, ConfigError, "heat"),
        ({"lanes": 4}, ConfigError, "lanes has no effect here"),
    ],
)
def test_wrong_options_are_named(run: str, keys: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        gymnasium.make(NAME, run=run, **keys)


def test_run_without_m_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("config.yaml", dump(counting_config()).encode())
    with pytest.raises(StorageError, match="is not complete"):
        gymnasium.make(NAME, run=str(tmp_path))
