"""Figures of a comparison as SVG, see ``pipeline/reporting/figures.py``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipeline.comparison.arms import Arm, RunResult
from pipeline.comparison.scores import ArmScore
from pipeline.reporting.figures import (
    BLUE,
    FAINT,
    GREEN,
    PURPLE,
    VERMILLION,
    draw_svg,
    legend_above,
    short_number,
)
from pipeline.reporting.published import PublishedScore

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # with more arms than colours
_POINTS = 100

AXES = {"env_steps": "environment steps", "seconds": "hours of evolution", "generation": "generation"}


def scores(rows: Sequence[ArmScore], published: Sequence[PublishedScore], alt: str) -> str:
    """Draw each arm's mean with its interval, and its seeds as dots; published means as crosses below.

    Args:
        rows: Scores of the arms, from top to bottom.
        published: Published scores.
        alt: Text alternative of the figure.
    """
    labels = [row.name for row in rows] + [score.name for score in published]

    def draw(axes: Axes) -> None:
        for index, row in enumerate(rows):
            place, colour = len(labels) - 1 - index, _COLOURS[index % len(_COLOURS)]
            axes.plot([row.score.low, row.score.high], [place, place], color=colour, linewidth=2.4)
            axes.plot(row.seed_means, [place - 0.22] * len(row.seed_means), "o", color=colour, alpha=0.7, markersize=4)
            axes.plot([row.score.mean], [place], "D", color=colour, markersize=6.5)
        for index, score in enumerate(published):
            axes.plot([score.mean], [len(published) - 1 - index], "x", color=FAINT, markersize=6)
        axes.set_yticks(range(len(labels)), list(reversed(labels)))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.set_xlabel("mean return")

    return draw_svg("scores", (11.5, 1.0 + 0.5 * len(labels)), draw, alt)


def learning_curves(arms: Sequence[Arm], x: str, alt: str) -> str | None:
    """Draw each arm's validation returns: the mean over its seeds, in a band from the lowest to the highest.

    Args:
        arms: Arms.
        x: Quantity on the x axis, a key of ``AXES``.
        alt: Text alternative of the figure.

    Returns:
        The figure; None if no run was validated.
    """
    curves = [(arm, curve) for arm in arms if (curve := band(arm.runs, x)) is not None]
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for index, (arm, (at, values)) in enumerate(curves):
            colour = _COLOURS[index % len(_COLOURS)]
            dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
            if len(values) > 1:
                axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
            marker = "o" if len(at) == 1 else ""
            axes.plot(
                at, values.mean(axis=0), color=colour, linestyle=dashes, marker=marker, linewidth=1.6,
                label=f"{arm.name} ({len(arm.runs)} seed{'s' * (len(arm.runs) != 1)})",
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        axes.set_xlabel(AXES[x])
        axes.set_ylabel("validation return")
        legend_above(axes)

    return draw_svg(f"curves-{x}", (6.2, 4.2), draw, alt)


def band(runs: Sequence[RunResult], x: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Validation returns of runs at the same points of an axis, by linear interpolation.

    Args:
        runs: Runs of an arm.
        x: Quantity of the axis, a key of ``AXES``.

    Returns:
        Points within the range that all validated runs cover, (P,) float64, and the returns of each of these runs,
        (S, P) float64; None if no run was validated or the ranges have nothing in common.
    """
    scale = 3600.0 if x == "seconds" else 1.0
    curves = []
    for run in runs:
        rows = [row for row in run.history if row.validation_mean is not None]
        if rows:
            at = np.array([getattr(row, x) for row in rows], np.float64) / scale
            curves.append((at, np.array([row.validation_mean for row in rows], np.float64)))
    if not curves:
        return None
    low, high = max(at[0] for at, _ in curves), min(at[-1] for at, _ in curves)
    if low > high:
        return None
    points = np.linspace(low, high, _POINTS if high > low else 1)
    return points, np.stack([np.interp(points, at, values) for at, values in curves])
