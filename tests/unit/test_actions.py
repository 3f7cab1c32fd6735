"""The conversion of raw outputs to actions, and of actions to those of an environment."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from pipeline.base.errors import ConfigError
from pipeline.envs.actions import Actions, actions_of

SPACES: list[Any] = [
    spaces.Box(-2.0, 2.0, (1,)),
    spaces.Box(np.array([[-1, 0], [5, -7]], np.float32), np.array([[1, 3], [6, 9]], np.float32)),
    spaces.Box(0.0, 1.0, (3,), np.float64),
    spaces.Box(np.array([0.1, -0.7]), np.array([0.3, 0.1]), dtype=np.float64),  # float32 rounds these outwards
    spaces.Box(-0.1, 0.1, (2,), np.float16),
    spaces.Box(-2, 3, (2,), np.int32),
    spaces.Box(-(2**31), 2**31 - 1, (1,), np.int32),
    spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiBinary(5),
    spaces.MultiBinary([2, 3]),
    spaces.MultiDiscrete([3, 2, 4]),
    spaces.MultiDiscrete([[2, 3], [4, 2]]),
]


@pytest.fixture(params=SPACES, ids=str)
def space(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def actions(space: Any) -> Actions:
    return actions_of(space, "Any-v0")


def outputs(actions: Actions, rows: int = 200) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(0, 2, (rows, actions.size)).astype(np.float32)


def test_chosen_and_random_actions_are_within_bounds_and_space(actions: Actions, space: Any) -> None:
    rng = np.random.default_rng(2)
    extremes = np.array([[-50.0] * actions.size, [50.0] * actions.size], np.float32)
    found = [*actions.squash(outputs(actions)), *actions.squash(extremes), *(actions.random(rng) for _ in range(200))]
    for action in found:
        assert action.shape == (actions.size,) and action.dtype == np.float32
        assert np.all((actions.low <= action) & (action <= actions.high))
        assert space.contains(actions.native(action)), (action, actions.native(action))
        np.testing.assert_array_equal(actions.vector(actions.native(action)), action)
    assert actions.space == space


def test_every_value_of_a_small_space_is_reached(actions: Actions, space: Any) -> None:
    if isinstance(space, spaces.Box):
        squashed = actions.squash(np.array([[-50.0] * actions.size, [50.0] * actions.size], np.float32))
        np.testing.assert_array_equal(squashed, [actions.low, actions.high])
        np.testing.assert_array_equal(actions.native(squashed[0]), space.low)
        np.testing.assert_array_equal(actions.native(squashed[1]), space.high)
        return
    rng = np.random.default_rng(3)
    drawn = {np.asarray(actions.native(actions.random(rng))).tobytes() for _ in range(3000)}
    chosen = {np.asarray(actions.native(row)).tobytes() for row in actions.squash(outputs(actions, 3000))}
    sampled = {np.asarray(space.sample(), np.asarray(actions.native(actions.random(rng))).dtype).tobytes()
               for _ in range(3000)}  # fmt: skip
    assert drawn == chosen == sampled


def test_bits_of_a_row_do_not_depend_on_other_rows_or_its_index(actions: Actions) -> None:
    raw = outputs(actions, 16)
    whole = actions.squash(raw)
    for row in range(16):
        assert actions.squash(raw[row]).tobytes() == whole[row].tobytes()
        assert actions.squash(raw[row : row + 3])[0].tobytes() == whole[row].tobytes()


def test_nan_is_kept_so_that_the_episode_ends(actions: Actions) -> None:
    raw = outputs(actions, 3)
    raw[1, 0] = np.nan
    assert np.isfinite(actions.squash(raw)).all(axis=1).tolist() == [True, False, True]


def test_discrete_action_is_one_hot_and_the_first_maximum_wins() -> None:
    actions = actions_of(spaces.MultiDiscrete([3, 2]), "Any-v0")
    raw = np.array([[1, 5, 5, -1, -2], [0, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(actions.squash(raw), [[0, 1, 0, 1, 0], [1, 0, 0, 1, 0]])


def test_numbers_are_squashed_by_tanh_between_their_bounds() -> None:
    actions = actions_of(spaces.Box(-2.0, 6.0, (1,)), "Any-v0")
    raw = np.linspace(-3, 3, 7, dtype=np.float32)[:, None]
    np.testing.assert_allclose(actions.squash(raw), 2 + 4 * np.tanh(raw), rtol=1e-6)


def test_integers_are_rounded_so_that_the_largest_is_reached() -> None:
    actions = actions_of(spaces.Box(-2, 3, (1,), np.int32), "Any-v0")
    taken = [actions.native(np.array([value], np.float32)) for value in (-2, -1.6, 0.4, 2.4, 2.6, 3)]
    assert [int(value[0]) for value in taken] == [-2, -2, 0, 2, 3, 3]
    assert {value.dtype for value in taken} == {np.dtype(np.int32)}
    assert actions.formula == "round(low + (tanh(x) + 1) / 2 * (high - low))"


def test_random_integers_are_equally_frequent() -> None:
    actions, rng = actions_of(spaces.Box(-2, 3, (1,), np.int32), "Any-v0"), np.random.default_rng(4)
    drawn = [int(actions.random(rng)[0]) for _ in range(6000)]
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2, 3]
    assert np.abs(counts - 1000).max() < 150, "five standard deviations"


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-3e38, 3e38, (2,)),
     spaces.Box(-np.inf, np.inf, (2,)), spaces.Dict(a=spaces.Discrete(2)), spaces.Tuple([spaces.Discrete(2)]),
     spaces.Text(5), spaces.Box(1.0, 1.0, (2,)), spaces.Box(-1e300, 1e300, (2,), np.float64),
     spaces.Box(np.zeros(2, bool), np.ones(2, bool), dtype=np.bool_)],
)  # fmt: skip
def test_other_spaces_are_refused_by_name(space: gymnasium.Space[Any]) -> None:
    remedy = "wrappers.TransformAction, see docs/environments.md" if isinstance(space, spaces.Box) else "MultiBinary"
    with pytest.raises(ConfigError, match=rf"env\.id = 'Any-v0': its action space is .*{re.escape(remedy)}"):
        actions_of(space, "Any-v0")


def test_a_value_that_is_none_of_the_space_is_an_error() -> None:
    for space, value, words in (
        (spaces.Box(-1.0, 1.0, (2,)), [0.5], r"has 1 numbers: expected a value of Box"),
        (spaces.Discrete(3, start=1), 4, r"expected a value of Discrete\(3, start=1\)"),
        (spaces.Discrete(3, start=1), 0, r"expected a value of Discrete\(3, start=1\)"),
        (spaces.MultiDiscrete([3, 2]), 1, r"has 1 numbers: expected a value of MultiDiscrete"),
        (spaces.Box(-1.0, 1.0, (2,)), [0.5, np.nan], r"is not finite: expected a value of Box"),
        (spaces.MultiBinary(3), [1, 0], r"has 2 numbers: expected a value of MultiBinary"),
    ):
        with pytest.raises(ValueError, match=words):
            actions_of(space, "Any-v0").vector(value)
