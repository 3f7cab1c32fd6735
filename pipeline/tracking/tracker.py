"""The tracker protocol, and the trackers by name."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from pipeline.base.extras import require_extra


@dataclass(frozen=True)
class Point:
    """One value of a metric.

    Attributes:
        metric: Name of the metric, such as ``vae/loss``.
        step: Step of the stage.
        value: Finite value.
        time: Unix time in seconds.
    """

    metric: str
    step: int
    value: float
    time: float


class Tracker(Protocol):
    """A run in an experiment tracker. It is continued by every later tracker with the same ID."""

    def marks(self) -> Mapping[str, int]:
        """Last step of each metric that the tracker is known to have; empty if it cannot be asked."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points; within a metric, steps ascend."""

    def finish(self, scores: Mapping[str, float], report: bytes | None, *, failed: bool) -> None:
        """End the session.

        Args:
            scores: Final scores by name; empty if there are none yet, or if an earlier session gave them.
            report: The report's page; None likewise.
            failed: Whether the session ended with an error.
        """


def rows_of(points: Sequence[Point]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Group points into rows: (stage, step, values by metric), ordered by stage and step."""

    def row(point: Point) -> tuple[str, int]:
        return point.metric.rpartition("/")[0], point.step

    for (stage, step), same in groupby(sorted(points, key=row), row):
        yield stage, step, {point.metric: point.value for point in same}


@contextmanager
def page_file(report: bytes) -> Iterator[str]:
    """Path of a temporary file with the report's page."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "index.html"
        page.write_bytes(report)
        yield str(page)


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of some trackers are installed; they have the trackers' names.

    Raises:
        ConfigError: One is not; the message names the command that installs it.
    """
    for name in names:
        require_extra(name, name, f"metrics.trackers = {list(names)}")


def make_tracker(name: str, *, project: str, run: str, run_id: str, config: Mapping[str, Any]) -> Tracker:
    """Begin or continue a run in a tracker.

    Args:
        name: Name of the tracker.
        project: Name of the project, or of the experiment.
        run: Name of the run.
        run_id: ID of the run, the same in all of its sessions.
        config: Values of the config by dotted key.
    """
    module = importlib.import_module(f"pipeline.tracking.{name}_tracker")
    tracker: Tracker = module.make(project=project, run=run, run_id=run_id, config=config)
    return tracker
