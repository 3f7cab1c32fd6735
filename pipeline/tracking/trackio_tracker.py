"""A run in trackio, which keeps it on this machine or in a Space of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pipeline.tracking.tracker import Point


class TrackioTracker:
    """See ``pipeline.tracking.tracker.Tracker``. Trackio has no artifacts: it gets no report.

    Args:
        run: Run of trackio.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def marks(self) -> Mapping[str, int]:
        """See ``Tracker.marks``."""
        return {}

    def log(self, points: Sequence[Point]) -> None:
        """See ``Tracker.log``."""

        def row(point: Point) -> tuple[str, int]:
            return point.metric.rpartition("/")[0], point.step

        for (_, step), same in groupby(sorted(points, key=row), row):
            self._run.log({point.metric: point.value for point in same}, step=step)

    def finish(self, scores: Mapping[str, float], report: bytes | None, *, failed: bool) -> None:
        """See ``Tracker.finish``."""
        if scores:
            self._run.log(dict(scores))
        self._run.finish()


def make(*, project: str, run: str, run_id: str, config: Mapping[str, Any]) -> TrackioTracker:
    """Begin or continue a run, see ``make_tracker``."""
    import trackio

    return TrackioTracker(trackio.init(project=project, name=f"{run}-{run_id}", resume="allow", config=dict(config)))
