"""Sides measured in turn in one run: A B A B, so that a machine that drifts drifts for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_ROUNDS = 3


@dataclass(frozen=True)
class Side:
    """What is measured.

    Attributes:
        what: in a few words.
        work: does a piece of work and returns how many units it came to.
    """

    what: str
    work: Callable[[], int]


@dataclass(frozen=True)
class Comparison:
    """What a bench measured.

    Attributes:
        bench: its name.
        unit: of all rates.
        reference_what, ours_what: the two sides of the ratio, in words.
        reference, ours: their rates.
        threads: that each side ran with.
        others: rates of what was measured beside them, in words.
        more: further figures, by name.
        notes: of them, what is shown below the table.
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
        """Ours over the reference's."""
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
) -> Comparison:
    """Run each side for about ``seconds`` in all, in turns, after a warm-up of one piece each."""
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
    return Comparison(
        bench,
        unit,
        reference.what,
        ours.what,
        rate[reference.what],
        rate[ours.what],
        threads,
        {side.what: rate[side.what] for side in others},
    )
