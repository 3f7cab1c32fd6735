"""Statistics of returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    # In blocks: at once, 10,000 episodes would take more than a gigabyte.
    blocks = [rng.choice(values, (100, len(values))).mean(axis=1) for _ in range(_BOOTSTRAP_SAMPLES // 100)]
    means = np.concatenate(blocks)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "episodes": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "low": float(low),
        "high": float(high),
        "min": float(values.min()),
        "max": float(values.max()),
    }
