"""A run's controller compared with blind policies, paired by test track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.base.statistics import summarise


@dataclass(frozen=True)
class BaselineRow:
    """A policy, and how much more the run's controller scores on the same tracks.

    Attributes:
        policy: Name of the policy; that of the controller in the first row.
        mean, sd: Mean and standard deviation of its returns.
        low, high: 95 % bootstrap interval of the mean.
        difference: Mean of the controller's return minus the policy's, track by track; None in the controller's row.
        difference_low, difference_high: 95 % bootstrap interval of that mean.
    """

    policy: str
    mean: float
    sd: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def baseline_rows(
    controller: str, returns: Sequence[float], blind: Mapping[str, Sequence[float]], seed: int
) -> list[BaselineRow]:
    """Compare returns, track by track.

    Args:
        controller: Name of the controller.
        returns: Returns of the controller, in the order of the tracks.
        blind: Returns of each policy on the same tracks, in the same order.
        seed: Seed of the run.
    """

    def row(policy: str, values: Sequence[float], **more: float) -> BaselineRow:
        found = summarise(values, seed)
        return BaselineRow(policy, found["mean"], found["sd"], found["low"], found["high"], **more)

    rows = [row(controller, returns)]
    for name, values in blind.items():
        more = summarise([ours - theirs for ours, theirs in zip(returns, values, strict=True)], seed)
        rows.append(
            row(name, values, difference=more["mean"], difference_low=more["low"], difference_high=more["high"])
        )
    return rows


def table(rows: Sequence[BaselineRow], tracks: range) -> list[str]:
    """Write the comparison in Markdown, with its verdict below."""
    lines = [
        f"Returns on {len(tracks):,} test tracks, {tracks.start:,} to {tracks.stop - 1:,}, none used for selection:",
        "",
        "| policy | return | 95 % interval | the controller scores more by | 95 % interval |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        more = ["–", "–"]
        if row.difference is not None:
            more = [f"{row.difference:,.1f}", f"{row.difference_low:,.1f} to {row.difference_high:,.1f}"]
        score = f"{row.mean:,.1f} +- {row.sd:,.1f}"
        lines.append(f"| {row.policy} | {score} | {row.low:,.1f} to {row.high:,.1f} | {more[0]} | {more[1]} |")
    blind = rows[1:]
    best = max(blind, key=lambda row: row.mean)
    assert best.difference_low is not None and best.difference_high is not None
    verdict = "scores about as much as"
    if best.difference_low > 0:
        verdict = "scores more than"
    elif best.difference_high < 0:
        verdict = "scores less than"
    lines += ["", f"The controller {verdict} the best blind policy ({best.policy})."]
    return lines


def to_json(rows: Sequence[BaselineRow]) -> list[dict[str, Any]]:
    """Convert the rows to JSON values."""
    return [asdict(row) for row in rows]
