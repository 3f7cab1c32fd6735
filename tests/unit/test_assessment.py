"""The assessment of M on held-out episodes: known results for models that predict a game well or badly."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.episodes import LatentEpisode
from pipeline.data.quality import Assessment, held_out_quality, predicted_ends
from pipeline.execution.in_process import InProcessExecutor
from pipeline.models.mdnrnn import MdnRnn, Prediction
from pipeline.stages import report
from pipeline.storage.local import LocalStore
from pipeline.training.assessment import DREAM_STEPS, WARM_UP_STEPS, assess
from tests.made_run import make_config, put_data, put_evaluation, put_metrics

Z, A = 2, 1


def world(steps: int, *, seed: int, terminated: bool = True, noise: float = 0.0) -> LatentEpisode:
    """A game in which the action is added to z and is the reward. A large last action marks its end."""
    rng = np.random.default_rng(seed)
    actions = rng.choice([-0.1, 0.1], (steps, A)).astype(np.float32)
    if terminated:
        actions[-1] = 5
    mu = np.zeros((steps, Z), np.float32)
    mu[1:] = np.cumsum(actions[:-1], axis=0) + rng.normal(0, noise, (steps - 1, Z))
    ends = np.arange(steps) == steps - 1
    return LatentEpisode(
        id=seed,
        track=seed,
        mu=mu,
        logvar=np.full((steps, Z), -80.0, np.float32),
        actions=actions,
        rewards=actions[:, 0],
        terminated=ends & terminated,
        truncated=ends & (not terminated),
    )


class Oracle(MdnRnn):
    """An M that knows ``world``: z plus the action, the action as the reward, and the end by the last action.

    Args:
        ends_at: Actions above which it predicts an end.
    """

    def __init__(self, ends_at: float = 1.0, **more: Any) -> None:
        super().__init__(
            z_size=Z, action_size=A, hidden_size=Z + A, mixtures=1, reward_head=True, done_head=True, **more
        )
        self._ends_at = ends_at
        self.lstm = Passing()  # type: ignore[assignment]

    def _outputs(self, hidden: torch.Tensor) -> Prediction:
        z, action = hidden[..., :Z], hidden[..., Z:]
        made = super()._outputs(torch.zeros(*hidden.shape[:-1], self.hidden_size))
        mixture = made.mixture._replace(mu=(z + action)[..., None], log_sigma=torch.full((*z.shape, 1), -4.0))
        return Prediction(mixture, action[..., 0], 10 * (action[..., 0] - self._ends_at))


class Passing(torch.nn.Module):
    """An LSTM whose hidden state is its last input."""

    def forward(self, inputs: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        last = inputs[:, -1][None]
        return inputs, (last, last)


GAMES = [world(steps, seed=seed) for seed, steps in enumerate([5, 100, 80, 2, 90, 75] * 7)]


def test_model_that_knows_the_world_gets_a_full_score() -> None:
    found = assess(Oracle(), GAMES, seed=1)
    assert (found.episodes, found.ends) == (42, 42)
    assert (found.end_recall, found.end_precision) == (1.0, 1.0)
    assert all(found.at(probability).end_recall == 1.0 for probability in (0.1, 0.9))
    assert found.reward_error == pytest.approx(0, abs=1e-6)
    assert found.reward_correlation == pytest.approx(1)
    sigma = math.exp(Oracle()._bound(torch.tensor(-4.0)).item())
    assert found.nll == pytest.approx(math.log(sigma) + 0.5 * math.log(2 * math.pi), abs=1e-3)
    assert found.dream_error is not None and found.copy_error is not None
    # The dream's error is a random walk with steps of the noise's size, the copy's one with steps of 0.1.
    dreamt, walk = (np.sqrt(np.mean(np.arange(first, first + DREAM_STEPS))) for first in (0, 1))
    assert found.dream_error == pytest.approx(sigma * dreamt, rel=0.25)
    assert found.copy_error == pytest.approx(0.1 * walk, rel=0.25)


@pytest.mark.parametrize(("ends_at", "recall", "precision"), [(9.0, 0.0, None), (-9.0, 1.0, 42 / sum(map(len, GAMES)))])
def test_ends_predicted_never_or_always_show_in_recall_and_precision(
    ends_at: float, recall: float, precision: float | None
) -> None:
    found = assess(Oracle(ends_at), GAMES, seed=1)
    assert found.end_recall == recall
    assert found.end_precision == (None if precision is None else pytest.approx(precision))


def test_ends_are_counted_at_the_probability_threshold_of_dreams() -> None:
    # The true ends get a probability of 0.73, all other steps one of 0.
    found = assess(Oracle(4.9), GAMES, seed=1)
    assert found.at(0.5).end_recall == found.at(0.7).end_recall == 1.0
    assert (found.at(0.8).end_recall, found.at(0.8).end_precision) == (0.0, None)
    assert found.at(0.83).end_threshold == 0.85
    old = {key: value for key, value in vars(found).items() if key not in ("end_threshold", "ends_by_threshold")}
    info = {"held_out": json.loads(json.dumps(old))}
    assert held_out_quality(info, 0.9) == Assessment(**old), "a run of an earlier version has one threshold"
    assert predicted_ends(held_out_quality({"held_out": json.loads(json.dumps(vars(found)))}, 0.5)) == (
        "M predicts 100% of the ends"
    )
    assert predicted_ends(held_out_quality({}, 0.5)) == "M predicts an unknown share of the ends"


def test_unmeasurable_values_are_none() -> None:
    bare = MdnRnn(z_size=Z, action_size=A, hidden_size=3, mixtures=2)
    found = assess(bare, [world(3, seed=1, terminated=False), world(1, seed=2, terminated=False)], seed=1)
    assert found.nll is not None and found.ends == 0
    assert (found.reward_error, found.reward_correlation, found.end_recall, found.end_precision) == (None,) * 4
    assert (found.dream_error, found.copy_error) == (None, None)
    only = assess(bare, [world(1, seed=2)], seed=1)
    assert only.nll is None
    with_heads = MdnRnn(z_size=Z, action_size=A, hidden_size=3, mixtures=2, done_head=True)
    assert assess(with_heads, [world(3, seed=1, terminated=False)], seed=1).end_recall is None


def test_assessment_is_reproducible_and_ignores_padding() -> None:
    torch.manual_seed(1)
    model = MdnRnn(z_size=Z, action_size=A, hidden_size=9, mixtures=2, reward_head=True, done_head=True)
    noisy = [world(steps, seed=seed, noise=0.1) for seed, steps in enumerate([6, 100, 30])]
    assert assess(model, noisy, seed=3) == assess(model, noisy, seed=3)
    alone = [assess(model, [game], seed=3) for game in noisy]
    together = assess(model, noisy, seed=3)
    steps = [len(game) - 1 for game in noisy]
    mean = sum(found.nll * count for found, count in zip(alone, steps, strict=True) if found.nll is not None)
    assert together.nll == pytest.approx(mean / sum(steps), rel=0.05)
    assert sum(len(game) > WARM_UP_STEPS + DREAM_STEPS for game in noisy) == 1


def test_held_out_quality_of_m_is_shown_with_a_baseline(local_store: LocalStore, executor: InProcessExecutor) -> None:
    put_data(local_store, make_config())
    put_metrics(local_store)
    put_evaluation(local_store, 6, {"mean": [1.0, 2.0]})
    report.run(make_config(), local_store, executor)
    words = " ".join(re.sub(r"<[^>]+>", " ", local_store.read("report/index.html").decode()).split())
    for said in (
        "M on 17 episodes that it was not trained on",
        "per dimension 1.234 nats",
        "distance of the expected z from the true one 0.500 1.500 for a copy of the last true frame",
        "root of the mean squared error 0.250",
        "correlation with the true one 0.750",
        "(recall) 87.5% of 16 ends by the environment; predicted: a probability above 0.5",
        "(precision) –",
    ):
        assert said in words, said
