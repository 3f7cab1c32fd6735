"""Statistics of returns, of one run and of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base import seeding

_BOOTSTRAP_SAMPLES = 10_000


def summarise(returns: Sequence[float], seed: int) -> dict[str, float | int]:
    """Compute mean, standard deviation and a 95 % bootstrap interval of the mean (percentiles of resampled means).

    Args:
        returns: Episode returns, at least one.
        seed: Seed of the run.

    Returns:
        Dictionary with the keys ``episodes``, ``mean``, ``sd``, ``low``, ``high`` (bounds of the interval), ``min``
        and ``max``.
    """
    values = np.asarray(returns, np.float64)
    rng = seeding.generator(seed, "evaluate/bootstrap")
    low, high = np.percentile(_resampled_means(values, rng), [2.5, 97.5])
    return {
        "episodes": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "low": float(low),
        "high": float(high),
        "min": float(values.min()),
        "max": float(values.max()),
    }


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds and tracks, or difference of two such means.

    Attributes:
        mean: Mean, or difference.
        low, high: Bounds of its 95 % interval.
        above_zero: Probability that it is above 0.
        seeds: Number of seeds that the interval covers; with 1, it covers tracks alone.
    """

    mean: float
    low: float
    high: float
    above_zero: float
    seeds: int


def estimate(returns: NDArray[np.float64], seed: int) -> Estimate:
    """Estimate a mean over seeds and tracks, by a bootstrap over tracks and Student's t over seeds.

    Three seeds have only ten different resamples, which say little about a fourth seed. So each resample of the
    tracks is moved by a draw of Student's t, with the standard error of the seeds' means. The interval therefore
    covers the true mean in at least 95 % of studies, also with two or three seeds; in just 95 % of them where the
    seeds differ by much more than chance on the tracks.

    Args:
        returns: Returns, or paired differences of returns, (S, T) float64: a row for each seed, a column for each
            track.
        seed: Seed of the bootstrap.
    """
    samples = _samples(returns.mean(axis=0), [(1, returns)], seed)
    return _summarise_samples(float(returns.mean()), samples, len(returns))


def estimate_difference(ours: NDArray[np.float64], theirs: NDArray[np.float64], seed: int) -> Estimate:
    """Estimate the difference of two arms whose seeds are not paired; their tracks are. See ``estimate``.

    Args:
        ours: Returns, (S, T) float64: a row for each seed, a column for each track.
        theirs: Returns of the other arm on the same tracks, (R, T) float64.
        seed: Seed of the bootstrap.
    """
    samples = _samples(ours.mean(axis=0) - theirs.mean(axis=0), [(1, ours), (-1, theirs)], seed)
    return _summarise_samples(float(ours.mean() - theirs.mean()), samples, min(len(ours), len(theirs)))


def _samples(
    by_track: NDArray[np.float64], arms: Sequence[tuple[int, NDArray[np.float64]]], seed: int
) -> NDArray[np.float64]:
    """Means of resampled tracks, each moved by a draw of Student's t for every arm, with its sign."""
    rng = seeding.generator(seed, "compare/bootstrap")
    samples = _resampled_means(by_track, rng)
    for sign, arm in arms:
        if len(arm) > 1:
            error = arm.mean(axis=1).std(ddof=1) / np.sqrt(len(arm))
            samples += sign * error * rng.standard_t(len(arm) - 1, len(samples))
    return samples


def _resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of values that are drawn with replacement, (10,000,)."""
    # In blocks: at once, 10,000 values would take more than a gigabyte.
    blocks = [rng.choice(values, (100, len(values))).mean(axis=1) for _ in range(_BOOTSTRAP_SAMPLES // 100)]
    return np.concatenate(blocks)


def _summarise_samples(mean: float, samples: NDArray[np.float64], seeds: int) -> Estimate:
    low, high = np.percentile(samples, [2.5, 97.5])
    # Equal arms are as likely better as worse.
    above = np.mean(samples > 0) + np.mean(samples == 0) / 2
    return Estimate(mean, float(low), float(high), float(above), seeds)
