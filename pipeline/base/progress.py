"""Progress of long steps: a bar on a terminal, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from tqdm import tqdm

from pipeline.base.formatting import duration

_LINE_EVERY_S = 10.0

# Counters: the increase since the last update.
Counted = Literal["episodes", "env_steps", "encoded_frames"]
# Gauges: the current value.
Measured = Literal[
    "progress_ratio",
    "generation",
    "fitness_mean",
    "fitness_max",
    "validation_mean",
    "sigma",
    "loss",
    "held_out_loss",
]
Metrics = Mapping[Counted | Measured, float]


@dataclass(frozen=True)
class Update:
    """State of a step.

    Attributes:
        done: Units finished.
        total: Units in total.
        shown: Values to display, by name.
        restored: Units of ``done`` that an earlier session finished; excluded from the rate.
        metrics: Metrics to publish for external monitoring.
    """

    done: int
    total: int
    shown: Mapping[str, Any] = field(default_factory=dict)
    restored: int = 0
    metrics: Metrics = field(default_factory=dict)


class Progress:
    """Display of updates on standard error, with rate and time left.

    Args:
        title: Name of the step, for example the stage's name.
        unit: Name of one unit, for example ``"frame"``.
    """

    def __init__(self, title: str, unit: str) -> None:
        self.title = title
        self.unit = unit
        self._bar: tqdm[Any] | None = None
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last_line = self._began
        self._last: Update | None = None
        self._printed: Update | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last is not None and self._last is not self._printed:
            self._line(self._last)

    def __call__(self, update: Update) -> None:
        """Show an update; cheap enough to call for every result."""
        self._last = update
        if self._terminal:
            if self._bar is None:
                self._bar = tqdm(
                    desc=self.title,
                    unit=f" {self.unit}s",
                    total=update.total,
                    initial=update.restored,
                    dynamic_ncols=True,
                    unit_scale=update.total >= 10_000,
                )
            self._bar.total = update.total
            self._bar.set_postfix(update.shown, refresh=False)
            self._bar.update(update.done - self._bar.n)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._line(update)

    def _line(self, update: Update) -> None:
        self._last_line = time.monotonic()
        self._printed = update
        elapsed = self._last_line - self._began
        rate = (update.done - update.restored) / elapsed if elapsed > 0 else 0.0
        left = duration((update.total - update.done) / rate) if rate > 0 else "?"
        shown = "".join(f", {name} {value}" for name, value in update.shown.items())
        print(
            f"{self.title}: {update.done:,} of {update.total:,} {self.unit}s, {rate:,.1f}/s, {left} left{shown}",
            file=sys.stderr,
            flush=True,
        )
