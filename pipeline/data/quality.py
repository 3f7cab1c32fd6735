"""Quality of M on episodes that it was not trained on, as the manifest of train-mdnrnn holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# Probabilities of an end at which recall and precision are measured, by their names in manifests.
THRESHOLDS = {f"{percent / 100:.2f}": percent / 100 for percent in range(5, 100, 5)}


@dataclass(frozen=True)
class Assessment:
    """Quality of M on held-out episodes, from their first step, with z sampled as in training.

    Attributes:
        episodes: Number of episodes.
        nll: Negative log-likelihood of the next z, in nats per latent dimension; None without a next z.
        reward_error: Root of the mean squared error of rewards; None without a reward head.
        reward_correlation: Correlation of predicted and true rewards; None if one of them is constant.
        ends: Number of episodes that the environment ended.
        end_recall: Share of these ends that M predicts (a probability above ``end_threshold``); None without ends or a
            done head.
        end_precision: Share of the predicted ends that are ends; None if M predicts none.
        dream_error: Distance of a dream of 50 steps from the truth, after 20 true steps and with the true actions: root
            of the mean squared error per latent dimension, of the z that M expects at each step from the dream before
            it, to the true mean. (The z that it samples is as far away as V's own noise.) None if no episode is that
            long.
        copy_error: The same distance of a copy of the last true frame before the dream. A useful dream has a smaller
            one.
        end_threshold: Probability above which M predicts an end.
        ends_by_threshold: Recall and precision at other thresholds, by the names in ``THRESHOLDS``.
    """

    episodes: int
    nll: float | None
    reward_error: float | None
    reward_correlation: float | None
    ends: int
    end_recall: float | None
    end_precision: float | None
    dream_error: float | None
    copy_error: float | None
    end_threshold: float = 0.5
    ends_by_threshold: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def at(self, end_probability: float) -> Assessment:
        """The same with recall and precision at the measured threshold nearest to ``dream.end_probability``."""
        if not self.ends_by_threshold:
            return self
        name = min(self.ends_by_threshold, key=lambda name: abs(float(name) - end_probability))
        recall, precision = self.ends_by_threshold[name]
        return replace(self, end_recall=recall, end_precision=precision, end_threshold=float(name))


def controller_names(selected_by: str) -> dict[str, str]:
    """Names of the controllers of a run for people, by their names in the run.

    Args:
        selected_by: Returns by which the best was chosen, ``evolve.select``.
    """
    return {"mean": "CMA mean", "best": "best in dreams" if selected_by == "dream" else "best on validation"}


def held_out_quality(info: Mapping[str, Any], end_probability: float) -> Assessment | None:
    """Quality of M from the manifest of train-mdnrnn.

    Args:
        info: Facts of the manifest.
        end_probability: Probability above which dreams end.

    Returns:
        None if M was not assessed.
    """
    found = info.get("held_out")
    return None if found is None else Assessment(**found).at(end_probability)


def predicted_ends(found: Assessment | None) -> str:
    """Share of the ends that M predicts, in words: a return in dreams says nothing without it."""
    if found is None or found.end_recall is None:
        return "M predicts an unknown share of the ends"
    return f"M predicts {found.end_recall:.0%} of the ends"
