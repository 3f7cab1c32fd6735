"""A run in trackio, which keeps it on this machine or in a Space of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.tracking.tracker import Point, rows_of


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
        for _, step, values in rows_of(points):
            self._run.log(values, step=step)

    def finish(self, scores: Mapping[str, float], report: bytes | None, *, failed: bool) -> None:
        """See ``Tracker.finish``."""
        if scores:
            self._run.log(dict(scores))
        self._run.finish()


def make(*, project: str, run: str, run_id: str, config: Mapping[str, Any]) -> TrackioTracker:
    """Begin or continue a run, see ``make_tracker``."""
    import trackio

    return TrackioTracker(trackio.init(project=project, name=f"{run}-{run_id}", resume="allow", config=dict(config)))
