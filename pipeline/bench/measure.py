"""Two sides measured in turn in one run: A B A B, so that a machine that drifts drifts for both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_ROUNDS = 3


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        what: in a few words.
        work: does a small piece of work and returns how many units it came to.
    """

    what: str
    work: Callable[[], int]


@dataclass(frozen=True)
class Comparison:
    """What a bench measured.

    Attributes:
        bench: its name.
        unit: of both rates.
        reference_what, ours_what: the sides, in words.
        reference, ours: rates.
        threads: that each side ran with.
    """

    bench: str
    unit: str
    reference_what: str
    ours_what: str
    reference: float
    ours: float
    threads: int

    @property
    def ratio(self) -> float:
        """Ours over the reference's."""
        return self.ours / self.reference


def compare(bench: str, unit: str, reference: Side, ours: Side, *, seconds: float, threads: int) -> Comparison:
    """Run each side for about ``seconds`` in all, in turns, after a warm-up of one piece each."""
    for side in (reference, ours):
        side.work()
    totals = {side.what: [0.0, 0.0] for side in (reference, ours)}
    for _ in range(_ROUNDS):
        for side in (reference, ours):
            began = time.perf_counter()
            units = 0
            while time.perf_counter() - began < seconds / _ROUNDS:
                units += side.work()
            totals[side.what][0] += units
            totals[side.what][1] += time.perf_counter() - began
    rate = {what: units / spent for what, (units, spent) in totals.items()}
    return Comparison(bench, unit, reference.what, ours.what, rate[reference.what], rate[ours.what], threads)
