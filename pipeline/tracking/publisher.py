"""Publication of a run's metrics to trackers while it runs, from the files that its stages write.

Workers and stages know nothing of trackers: this thread of the driver reads the stages' metrics every few seconds. How
far each metric was published is recorded in the run, so that a later session continues there. After a kill between the
two, MLflow reports its last step; the other trackers may have the points of the last seconds twice.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from pipeline.base.errors import LeaseError, WorldModelsError
from pipeline.config.identity import flatten
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, REPORT
from pipeline.data.rounds import rounds_of
from pipeline.stages.table import stages_of
from pipeline.storage import sealed_json
from pipeline.storage.layout import PAGE, tracker_key, view_key
from pipeline.storage.manifest import read_manifest
from pipeline.storage.metrics import read_metrics
from pipeline.storage.store import Store
from pipeline.tracking.tracker import Point, Tracker, make_tracker

logger = logging.getLogger(__name__)

_EVERY_S = 15.0
_PATIENCE_S = 20.0  # for a request under way, at the end of a session
_SCORE_KEYS = ("mean", "sd", "low", "high", "episodes")


@dataclass
class _Session:
    """A tracker of this session.

    Attributes:
        tracker: The tracker.
        run_id: ID of the run there.
        marks: Last published step of each metric.
        scored: Digest of the evaluation whose scores were published; empty before.
    """

    tracker: Tracker
    run_id: str
    marks: dict[str, int]
    scored: str

    def to_bytes(self) -> bytes:
        """Serialise all but the tracker."""
        return sealed_json.to_bytes({"id": self.run_id, "marks": self.marks, "scored": self.scored})


class Publisher:
    """Publishes a run to the trackers of its config; a context manager around the stages.

    A tracker that fails does not end the run: the failure is logged, and the points are sent again later.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
    """

    def __init__(self, config: RunConfig, store: Store) -> None:
        self._config, self._store = config, store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="trackers", daemon=True)
        self._sessions: dict[str, _Session] = {}

    def __enter__(self) -> Self:
        for name in self._config.metrics.trackers:
            self._begin(name)
        if self._sessions:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._sessions:
            return
        self._stop.set()
        # A stop waits for no server, and a driver that has lost its run writes nothing more. The next session publishes
        # the missing points.
        if isinstance(error, KeyboardInterrupt | LeaseError):
            return
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            logger.warning("a tracker does not answer; the next session publishes the missing points")
            return
        self._publish()
        for name, session in self._sessions.items():
            try:
                self._finish(name, session, failed=error is not None)
            except Exception as failure:  # trackers raise errors of many classes
                logger.warning("%s: the end of the run was not published: %s", name, failure)

    def _begin(self, name: str) -> None:
        """Begin or continue the run in a tracker.

        Raises:
            WorldModelsError: The tracker refuses; before anything expensive has started.
        """
        key = tracker_key(name)
        known: dict[str, Any] = {"id": uuid4().hex, "marks": {}, "scored": ""}
        if self._store.exists(key):
            known = sealed_json.read(self._store, key, "the state of a tracker")
        else:
            self._store.write(key, sealed_json.to_bytes(known))
        marks = known["marks"]
        values = {**flatten(self._config, "identity"), **flatten(self._config, "growable")}
        try:
            tracker = make_tracker(
                name, project=self._config.metrics.project, run=self._config.name, run_id=known["id"], config=values
            )
            for metric, step in tracker.marks().items():
                marks[metric] = max(step, marks.get(metric, step))
        except Exception as error:  # trackers raise errors of many classes
            raise WorldModelsError(
                f"metrics.trackers: {name} cannot start the run: {error}. Check its address and its login, or run "
                "without it: -o metrics.trackers=[]"
            ) from error
        self._sessions[name] = _Session(tracker, known["id"], marks, known["scored"])

    def _loop(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._publish()

    def _publish(self) -> None:
        """Send the points that each tracker does not have yet."""
        try:
            points = [point for stage in stages_of(self._config) for point in self._points(stage.prefix)]
        except Exception as failure:  # storage that does not answer now may do so later
            logger.warning("cannot read the metrics for publishing; trying again later: %s", failure)
            return
        for name, session in self._sessions.items():
            new = [point for point in points if point.step > session.marks.get(point.metric, -1)]
            if not new:
                continue
            try:
                # First, because a driver that has lost its run cannot write, and must send nothing.
                self._store.write(tracker_key(name), session.to_bytes())
                session.tracker.log(new)
                session.marks.update({point.metric: point.step for point in new})
                self._store.write(tracker_key(name), session.to_bytes())
            except LeaseError:
                return
            except Exception as failure:  # trackers raise errors of many classes
                logger.warning("%s: %d points were not published, trying again later: %s", name, len(new), failure)

    def _finish(self, name: str, session: _Session, *, failed: bool) -> None:
        """End the session in a tracker; publish the scores and the report, unless an earlier session has."""
        manifest = read_manifest(self._store, rounds_of(self._config.rounds)[-1].folder(EVALUATION))
        page = view_key(REPORT, PAGE)
        scores: dict[str, float] = {}
        report = None
        if manifest is not None and session.scored != manifest.digest and self._store.exists(page):
            found: dict[str, dict[str, Any]] = manifest.info["controllers"]
            scores = {f"test/{who}/{key}": float(score[key]) for who, score in found.items() for key in _SCORE_KEYS}
            report, session.scored = self._store.read(page), manifest.digest
        session.tracker.finish(scores, report, failed=failed)
        self._store.write(tracker_key(name), session.to_bytes())

    def _points(self, prefix: str) -> Sequence[Point]:
        """All points of a stage so far; within a metric, steps ascend."""
        points = []
        for row in read_metrics(self._store, prefix):
            step, time = int(row.pop("step")), float(row.pop("time"))
            points += [
                Point(f"{prefix}/{name}", step, float(value), time)
                for name, value in row.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ]
        return points
