"""A run's dream as a Gymnasium environment: Gymnasium's own checks, and equality with the dreams of evolve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError, StorageError
from pipeline.config.presets import dump
from pipeline.data.artifacts import mdnrnn_weights
from pipeline.data.rounds import FIRST
from pipeline.dream_env import ID
from pipeline.envs.registry import traits_of
from pipeline.evolution.pools import read_starts
from pipeline.execution.in_process import InProcessExecutor
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.rollouts.dreaming import DreamWorker
from pipeline.rollouts.jobs import RolloutJob
from pipeline.run import run_stages
from pipeline.stages.table import STAGES
from pipeline.storage.local import LocalStore
from pipeline.storage.saved_config import saved_config
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


@pytest.fixture(scope="module")
def discrete_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of an environment with choices in place of numbers."""
    folder = tmp_path_factory.mktemp("discrete")
    config = counting_config(
        {"env.id": "CartPole-v1", "collect.policy": "repeat", "mdnrnn.window": 4, "mdnrnn.done_weight": 1.0}
    )
    store = LocalStore(folder)
    store.write("config.yaml", dump(config).encode())
    run_stages(config, store, InProcessExecutor(), STAGES[:4])
    return str(folder)


def each_of(env: Any, actions: Any) -> Iterator[Any]:
    """Actions of the dreams of a vector."""
    return iterate(env.action_space, actions)  # type: ignore[no-any-return]


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


@pytest.mark.filterwarnings("ignore:.*Box observation space.*")
def test_gymnasium_checks_pass_with_choices(discrete_run: str) -> None:
    env = gymnasium.make(NAME, run=discrete_run)
    assert env.action_space == spaces.Discrete(2)
    check_env(env.unwrapped, skip_render_check=True)


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


@pytest.mark.parametrize("dreamt", ["run", "discrete_run"])
def test_vector_of_dreams_equals_single_dreams(dreamt: str, request: pytest.FixtureRequest) -> None:
    keys = {"run": request.getfixturevalue(dreamt), "max_steps": 20, "end_probability": 0.999999, "observe": "zhc"}
    many, singles = gymnasium.make_vec(NAME, num_envs=3, **keys), [gymnasium.make(NAME, **keys) for _ in range(3)]
    many.action_space.seed(5)
    found = [many.reset(seed=10)[0]]
    alone = [np.stack([single.reset(seed=10 + slot)[0] for slot, single in enumerate(singles)])]
    for _ in range(20):
        actions = many.action_space.sample()
        observations, *news, _ = many.step(actions)
        steps = [single.step(action) for single, action in zip(singles, each_of(many, actions), strict=True)]
        np.testing.assert_allclose(news, np.stack([step[1:4] for step in steps], axis=1), rtol=1e-4, atol=1e-6)
        found.append(observations)
        alone.append(np.stack([step[0] for step in steps]))
    # A batch of another size rounds otherwise.
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-4)
    assert np.ptp(found, axis=0).min() > 0, "each number of each dream moves"


def test_dream_equals_that_of_a_candidate(run: str) -> None:
    """The same controller earns the same in the evolution's worker, whose seed is that of the environment's stream."""
    store = LocalStore(run)
    config = saved_config(store)
    worker = DreamWorker(
        config.agent, config.dream, traits_of(config.env).actions, mdnrnn_weights(store),
        read_starts(config, store, FIRST, config.dream.start),
    )  # fmt: skip
    shape = ControllerShape.of_agent(config.agent, ACTION_SIZE)
    env = gymnasium.make(NAME, run=run, max_steps=30)
    for number in range(5):
        parameters = np.random.default_rng(number).normal(0, 1, shape.num_parameters).astype(np.float32)
        stream = gymnasium.utils.seeding.np_random(number)[0]
        job = RolloutJob("train", 1, 0, 0, track=0, noise_seed=int(stream.integers(2**63)), parameters=parameters,
                         max_steps=30)  # fmt: skip
        ((_, expected),) = worker.run([job])
        controller = ControllerBatch(shape, 1)
        controller.set_row(0, parameters)
        observation, _ = env.reset(seed=number)
        total, steps, over = 0.0, 0, False
        while not over:
            action = traits_of(config.env).actions.squash(controller.outputs(observation[None]))[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, over = total + reward, steps + 1, terminated or truncated
        assert (steps, terminated, truncated) == (expected.steps, expected.terminated, expected.truncated)
        assert total == pytest.approx(expected.episode_return, rel=1e-4)


def test_end_at_the_limit_is_no_cut(run: str) -> None:
    env = gymnasium.make(NAME, run=run, end_probability=1e-6, max_steps=2)
    env.reset(seed=0)
    env.unwrapped._dreams.steps[:] = 1
    assert env.step(env.action_space.sample())[2:4] == (True, False)


def test_vector_resets_ended_dreams(run: str) -> None:
    many = gymnasium.make_vec(NAME, num_envs=3, run=run, max_steps=4, end_probability=0.999999, observe="z")
    observations, _ = many.reset(seed=10)
    assert observations.shape == (3, counting_config().vae.z_size)
    actions = np.zeros((3, ACTION_SIZE), np.float32)
    ends = []
    for _ in range(9):
        observations, rewards, terminated, truncated, _ = many.step(actions)
        ends.append(truncated.tolist())
        assert not terminated.any()
        if len(ends) == 5:
            assert (rewards == 0).all(), "this step began the dreams again"
    assert [any(row) for row in ends] == [False] * 3 + [True] + [False] * 4 + [True]
    again, _ = many.reset(seed=[12, 11, 10])
    first, _ = many.reset(seed=10)
    np.testing.assert_array_equal(again, first[::-1])
    np.testing.assert_array_equal(many.reset(seed=np.int64(10))[0], first)
    with pytest.raises(ValueError, match="2 seeds for 3 dreams: expected one for each"):
        many.reset(seed=[1, 2])
    assert many.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP


def test_dreams_of_a_vector_end_one_by_one(run: str) -> None:
    keys = {"run": run, "max_steps": 4, "end_probability": 0.999999, "reward": "survival"}
    many, undisturbed = (gymnasium.make_vec(NAME, num_envs=3, **keys) for _ in range(2))
    for env in (many, undisturbed):
        env.reset(seed=10)
    many.unwrapped._dreams.steps[1] = 2  # the second ends after two steps more
    actions = np.zeros((3, ACTION_SIZE), np.float32)
    for step in range(1, 5):
        observations, rewards, _, truncated, _ = many.step(actions)
        expected = undisturbed.step(actions)[0]
        np.testing.assert_array_equal(observations[[0, 2]], expected[[0, 2]])
        assert rewards.tolist() == [1.0, 0.0 if step == 3 else 1.0, 1.0], "the second begins again in its third step"
        assert truncated.tolist() == [step == 4, step == 2, step == 4]


def test_action_that_is_no_number_is_refused(run: str) -> None:
    env = gymnasium.make(NAME, run=run, disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is not finite"):
        env.step(np.full(ACTION_SIZE, np.nan, np.float32))


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
