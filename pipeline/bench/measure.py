"""Measurement of several sides in turns (A B A B), so that machine drift affects all sides equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_ROUNDS = 3


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        what: Description in a few words.
        work: Function that does a piece of work and returns its number of units.
    """

    what: str
    work: Callable[[], int]


@dataclass(frozen=True)
class BenchResult:
    """Result of a bench.

    Attributes:
        bench: Name of the bench.
        unit: Unit of all rates.
        reference_what, ours_what: Descriptions of the two sides of the ratio.
        reference, ours: Rates of the two sides.
        threads: Number of threads of each side.
        others: Rates of further sides, by description.
        more: Further values, by name.
        notes: Lines to show below the table.
    """

    bench: str
    unit: str
    reference_what: str
    ours_what: str
    reference: float
    ours: float
    threads: int
    others: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Our rate divided by the reference's."""
        return self.ours / self.reference


def compare(
    bench: str,
    unit: str,
    reference: Side,
    ours: Side,
    *,
    seconds: float,
    threads: int,
    others: Sequence[Side] = (),
) -> BenchResult:
    """Run each side in turns, after a warm-up of one piece of work each.

    Args:
        bench: Name of the bench.
        unit: Unit of all rates.
        reference: Side to compare with.
        ours: Side of the pipeline.
        seconds: Approximate total seconds of each side.
        threads: Number of threads of each side.
        others: Further sides.
    """
    sides = [reference, ours, *others]
    for side in sides:
        side.work()
    totals = {side.what: [0.0, 0.0] for side in sides}
    for _ in range(_ROUNDS):
        for side in sides:
            began = time.perf_counter()
            units = 0
            while time.perf_counter() - began < seconds / _ROUNDS:
                units += side.work()
            totals[side.what][0] += units
            totals[side.what][1] += time.perf_counter() - began
    rate = {what: units / spent for what, (units, spent) in totals.items()}
    return BenchResult(
        bench,
        unit,
        reference.what,
        ours.what,
        rate[reference.what],
        rate[ours.what],
        threads,
        {side.what: rate[side.what] for side in others},
    )
