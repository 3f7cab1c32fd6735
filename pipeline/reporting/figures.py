"""Figures of the report as SVG, with colours (light and dark) and font from the page.

Deterministic: the same values give the same bytes with one version of matplotlib.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, NullFormatter

from pipeline.evolution.state import Generation
from pipeline.reporting.findings import Values
from pipeline.reporting.published import Published

# Colours for the light theme, from Okabe & Ito's palette for all kinds of colour vision. In the SVG each becomes the
# page's CSS variable of that name, which has another value in the dark theme.
_INK, FAINT, _GRID = "#1f2328", "#6b7280", "#d9dde3"
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a8559a"
_VARIABLES = {
    _INK: "ink", FAINT: "faint", _GRID: "grid", BLUE: "blue", VERMILLION: "vermillion", GREEN: "green", PURPLE: "purple"
}  # fmt: skip

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "world-models",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "lines.solid_capstyle": "round",
}

RIDGE_FROM = 30  # returns; with fewer, a histogram shows less than the dots
_DOTS_UP_TO = 300
_BARS_UP_TO = 15  # validations


Axis = Literal["generation", "env_steps", "dream_steps"]
_AXES: dict[Axis, str] = {"generation": "generation", "env_steps": "environment steps", "dream_steps": "dream steps"}


def learning_curve(history: Sequence[Generation], published: Published | None, x: Axis, alt: str) -> str:
    """Draw fitness and validation of the run as SVG, with the paper's curve if there is one.

    If candidates were scored in dreams, the validated controllers' returns in dreams and in the environment are drawn.

    Args:
        history: Generations of the run.
        published: Published results; None omits the paper's curve.
        x: Quantity on the x axis.
        alt: Text alternative of the figure.
    """
    dreamt = [row for row in history if row.dream_mean is not None]
    where = " in dreams" if dreamt else ""

    def draw(axes: Axes) -> None:
        at = [getattr(row, x) for row in history]
        few = len(history) <= 40
        axes.fill_between(
            at,
            [row.fitness_min for row in history],
            [row.fitness_max for row in history],
            color=BLUE,
            alpha=0.18,
            linewidth=0,
            label=f"candidates{where}, worst to best",
        )
        axes.plot(
            at,
            [row.fitness_mean for row in history],
            color=BLUE,
            linewidth=1.6,
            marker="o" if few else "",
            markersize=3,
            label=f"mean fitness{where}",
        )
        validated = [row for row in history if row.validation_mean is not None]
        _validation(axes, validated, x, f"validation{' in the environment' if dreamt else ''} ± sd")
        if dreamt:
            axes.plot(
                [getattr(row, x) for row in dreamt],
                np.array([row.dream_mean for row in dreamt], np.float64),
                color=PURPLE,
                linewidth=1.4,
                marker="s",
                markersize=3.5,
                label="the same controllers in dreams",
            )
        if published is not None:
            generations = [generation for generation, _ in published.curve]
            axes.plot(
                generations if x == "generation" else [published.curve_env_steps(g) for g in generations],
                [mean for _, mean in published.curve],
                color=GREEN,
                linewidth=1.2,
                linestyle=(0, (4, 2)),
                marker="D",
                markersize=4.5,
                markerfacecolor="none",
                zorder=3,
                label="World Models, CMA mean",
            )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        axes.set_xlabel(_AXES[x])
        axes.set_ylabel("return")
        legend_above(axes)

    return draw_svg(f"learning-{x}", (6.2, 4.2), draw, alt)


def _validation(axes: Axes, rows: Sequence[Generation], x: Axis, label: str) -> None:
    """Draw validation as points with bars, or as a line in a band if bars would cover the other curves."""
    if not rows:
        return
    at = [getattr(row, x) for row in rows]
    mean = np.array([row.validation_mean for row in rows], np.float64)
    sd = np.array([row.validation_sd for row in rows], np.float64)
    if len(rows) <= _BARS_UP_TO:
        axes.errorbar(
            at, mean, yerr=sd, color=VERMILLION, fmt="o", markersize=4.5, linewidth=1.2, capsize=2.5, label=label
        )
    else:
        axes.fill_between(at, mean - sd, mean + sd, color=VERMILLION, alpha=0.2, linewidth=0)
        axes.plot(at, mean, color=VERMILLION, linewidth=1.4, label=label)


def returns(
    rows: Sequence[tuple[str, Sequence[float], tuple[float, float] | None]],
    reference: tuple[str, float] | None,
    alt: str,
) -> str:
    """Draw distributions of returns as SVG, one row each.

    Args:
        rows: Tuples (label, returns, interval of their mean or None), from top to bottom.
        reference: Label and return of a vertical reference line.
        alt: Text alternative of the figure.
    """
    low = min(min(values) for _, values, _ in rows)
    high = max(max(values) for _, values, _ in rows)
    bins = np.linspace(low, max(high, low + 1), 41)
    rng = np.random.default_rng(0)  # only for the dots' heights

    def draw(axes: Axes) -> None:
        colours = [BLUE if interval else FAINT for _, _, interval in rows]
        for place, ((_, values, interval), colour) in enumerate(zip(reversed(rows), reversed(colours), strict=True)):
            if len(values) >= RIDGE_FROM:
                counts, _ = np.histogram(values, bins)
                heights = place + 0.12 + 0.6 * counts / counts.max()
                axes.stairs(heights, bins, baseline=place + 0.12, fill=True, color=colour, alpha=0.3)
            if len(values) <= _DOTS_UP_TO:
                spread = rng.uniform(-0.09, 0.03, len(values))
                axes.plot(values, place + spread, "o", color=colour, alpha=0.6, markersize=3.5, markeredgewidth=0)
            mean = float(np.mean(values))
            if interval is not None:
                axes.plot(interval, [place - 0.2] * 2, color=_INK, linewidth=1.6)
            axes.plot([mean], [place - 0.2], "D", color=_INK, markersize=5)
        if reference is not None:
            label, value = reference
            axes.axvline(value, color=GREEN, linewidth=1.2, linestyle=(0, (4, 2)), label=label)
            legend_above(axes)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in reversed(rows)])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.45, len(rows) - 0.6 + 0.4 * (len(rows[0][1]) >= RIDGE_FROM))
        axes.set_xlabel("return")

    return draw_svg("returns", (11.5, 1.0 + 0.85 * len(rows)), draw, alt)


def loss(
    name: str,
    training: Sequence[Values],
    held_out: Sequence[Values],
    key: str,
    ylabel: str,
    alt: str,
    *,
    log: bool = False,
) -> str:
    """Draw a training curve and the held-out loss as SVG.

    Args:
        name: Name of the model.
        training: Rows of the training curve.
        held_out: Rows of the held-out loss.
        key: Name of the loss in the rows.
        ylabel: Label of the y axis.
        alt: Text alternative of the figure.
        log: Whether the y axis is logarithmic.
    """

    def draw(axes: Axes) -> None:
        axes.plot(
            [row["step"] for row in training],
            [row[key] for row in training],
            color=BLUE,
            linewidth=1.3,
            label="training",
        )
        axes.plot(
            [row["step"] for row in held_out],
            [row[key] for row in held_out],
            color=VERMILLION,
            linewidth=1.3,
            marker="o",
            markersize=4.5,
            label="held out",
        )
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            axes.tick_params(axis="y", which="minor", labelsize=9)
        axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(ylabel)
        legend_above(axes)

    return draw_svg(f"loss-{name}", (6.2, 3.4), draw, alt)


def legend_above(axes: Axes) -> None:
    """Draw the legend above the axes, in two columns."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.8)


def short_number(value: float, _: object = None) -> str:
    """Format a tick's label: 2M, 150k, 800, 0.5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def draw_svg(name: str, size: tuple[float, float], draw: Callable[[Axes], None], alt: str) -> str:
    """Draw one figure; its name prefixes all ids, so that several figures fit on one page."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Remove everything with an effect outside of the figure: links in the metadata, a style for the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)  # the page's
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1).strip()
