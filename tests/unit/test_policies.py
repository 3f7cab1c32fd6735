"""The policies of the stage collect."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.seeding import generator
from pipeline.rollouts.policies import make_policy
from tests.counting import CountingEnv, counting_config, frame_of

POLICIES = ["white", "brownian", "repeat", "random-controller"]


def actions(policy: str, steps: int, *, episode: int = 0, **overrides: Any) -> NDArray[np.float32]:
    """(steps, 2) actions of one episode."""
    config = counting_config({"collect.policy": policy, **overrides})
    made = make_policy(config.collect, config.agent, CountingEnv(config.env), generator(config.seed, "policy", episode))
    taken = [made.act(frame_of(3, step)) for step in range(steps)]
    assert all(action.dtype == np.float32 and action.shape == (2,) for action in taken)
    return np.stack(taken)


@pytest.mark.parametrize("policy", POLICIES)
def test_actions_keep_the_bounds_and_depend_only_on_the_stream(policy: str, one_thread: None) -> None:
    first = actions(policy, 30)
    assert np.all((CountingEnv.actions.low <= first) & (first <= CountingEnv.actions.high))
    np.random.seed(3)  # noqa: NPY002
    np.testing.assert_array_equal(actions(policy, 30), first)
    assert not np.array_equal(actions(policy, 30, episode=1), first)


def test_white_actions_are_uniform_and_independent() -> None:
    taken = actions("white", 4000)
    unit = (taken - CountingEnv.actions.low) / (CountingEnv.actions.high - CountingEnv.actions.low)
    for values in unit.T:
        counts = np.histogram(values, 10, (0, 1))[0]
        assert np.all(np.abs(counts - 400) < 100)  # five standard deviations
    correlation = np.corrcoef(np.concatenate([unit[:-1], unit[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.08


def test_repeated_actions_are_uniform_and_held_for_1_to_the_maximum() -> None:
    taken = actions("repeat", 40_000, **{"collect.max_repeats": 4})
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(taken, axis=0) != 0).any(axis=1)]))
    lengths = np.diff(starts)
    expected = len(lengths) / 4
    counts = np.bincount(lengths, minlength=5)
    assert counts[0] == 0 and len(counts) == 5
    assert np.all(np.abs(counts[1:] - expected) < 5 * np.sqrt(expected))
    low, high = CountingEnv.actions.low, CountingEnv.actions.high
    for values in ((taken[starts] - low) / (high - low)).T:
        spread = np.histogram(values, 10, (0, 1))[0]
        assert np.all(np.abs(spread - len(values) / 10) < 5 * np.sqrt(len(values) / 10))


def test_brownian_actions_walk_with_variance_1_in_50_and_stop_at_the_bounds() -> None:
    walks = np.concatenate([actions("brownian", 200, episode=e)[None] for e in range(40)])
    steps = np.diff(walks, axis=1)[..., 0]
    inside = np.abs(walks[:, :-1, 0]) < 0.3  # three standard deviations and more from a bound
    assert inside.sum() > 1000
    np.testing.assert_allclose(steps[inside].var(), 1 / 50, rtol=0.15)
    np.testing.assert_allclose(steps[inside].mean(), 0, atol=0.02)
    assert (np.abs(walks[..., 0]) == 1).any()
    starts = walks[:, 0, 0]
    assert starts.min() < -0.5
    assert starts.max() > 0.5


def test_random_controller_uses_noise_and_weights_of_its_episode(one_thread: None) -> None:
    """The networks stay finite: after an overflow, all actions would be the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        episodes = [
            actions("random-controller", 12, episode=e, **{"vae.z_size": 32, "mdnrnn.hidden_size": 64})
            for e in range(8)
        ]
    for taken in episodes:
        assert len(np.unique(taken, axis=0)) == 12


def test_scale_of_a_random_controller_is_uniform_below_0_01(one_thread: None) -> None:
    config = counting_config({"vae.z_size": 32, "mdnrnn.hidden_size": 64, "collect.policy": "random-controller"})
    scales = []
    for episode in range(12):
        policy = make_policy(
            config.collect, config.agent, CountingEnv(config.env), generator(config.seed, "policy", episode)
        )
        # The median of |Cauchy| is 1: that of 192 weights is the scale to within 25 % or so.
        scales.append(np.median(np.abs(policy._controller._weights[0])))  # type: ignore[attr-defined]
    assert max(scales) < 0.0135
    assert max(scales) > 0.005
    assert min(scales) < 0.004
