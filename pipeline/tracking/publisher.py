"""Publication of a run's metrics to trackers while it runs, from the files that its stages write.

Workers and stages know nothing of trackers: this thread of the driver reads the stages' metrics every few seconds. How
far each metric was published is recorded in the run, so that a later session continues there. After a kill between the
two, MLflow is asked what it has; the other trackers may have the points of the last seconds twice.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from pipeline.base.errors import WorldModelsError
from pipeline.config.identity import flatten
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, REPORT
from pipeline.data.rounds import rounds_of
from pipeline.stages.table import stages_of
from pipeline.storage import sealed
from pipeline.storage.layout import PAGE, metrics_key, tracker_key, view_key
from pipeline.storage.manifest import read_manifest
from pipeline.storage.store import Store
from pipeline.tracking.tracker import Point, Tracker, make_tracker

logger = logging.getLogger(__name__)

_EVERY_S = 15.0


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
        self._trackers: dict[str, tuple[Tracker, str, dict[str, int]]] = {}

    def __enter__(self) -> Self:
        for name in self._config.metrics.trackers:
            self._begin(name)
        if self._trackers:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._trackers:
            return
        self._stop.set()
        self._thread.join()
        self._publish()
        scores, page = self._scores(), None
        if scores and self._store.exists(view_key(REPORT, PAGE)):
            page = self._store.read(view_key(REPORT, PAGE))
        for name, (tracker, _, _) in self._trackers.items():
            try:
                tracker.finish(scores, page)
            except Exception as failure:  # trackers raise errors of many classes
                logger.warning("%s: the end of the run was not published: %s", name, failure)

    def _begin(self, name: str) -> None:
        """Begin or continue the run in a tracker.

        Raises:
            WorldModelsError: The tracker refuses; before anything expensive has started.
        """
        key = tracker_key(name)
        run_id, marks = uuid4().hex, dict[str, int]()
        if self._store.exists(key):
            known = sealed.read(self._store, key, "the state of a tracker")
            run_id, marks = known["id"], known["marks"]
        else:
            self._store.write(key, sealed.to_bytes({"id": run_id, "marks": marks}))
        values = {**flatten(self._config, "identity"), **flatten(self._config, "growable")}
        try:
            tracker = make_tracker(
                name, project=self._config.metrics.project, run=self._config.name, run_id=run_id, config=values
            )
            for metric, step in tracker.marks().items():
                marks[metric] = max(step, marks.get(metric, step))
        except Exception as error:  # trackers raise errors of many classes
            raise WorldModelsError(
                f"metrics.trackers: {name} does not begin the run: {error}. Check its address and its login, or run "
                "without it: -o metrics.trackers=[]"
            ) from error
        self._trackers[name] = (tracker, run_id, marks)

    def _loop(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._publish()

    def _publish(self) -> None:
        """Send the points that each tracker does not have yet."""
        points = [point for stage in stages_of(self._config) for point in self._points(stage.prefix)]
        for name, (tracker, run_id, marks) in self._trackers.items():
            new = [point for point in points if point.step > marks.get(point.metric, -1)]
            if not new:
                continue
            try:
                tracker.log(new)
                marks.update({point.metric: point.step for point in new})
                self._store.write(tracker_key(name), sealed.to_bytes({"id": run_id, "marks": marks}))
            except Exception as failure:  # trackers raise errors of many classes
                logger.warning("%s: %d points were not published, trying again later: %s", name, len(new), failure)

    def _points(self, prefix: str) -> Sequence[Point]:
        """All points of a stage so far; within a metric, steps ascend."""
        try:
            lines = self._store.read(metrics_key(prefix)).splitlines()
        except FileNotFoundError:
            return []
        points = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line may be half-written
            step, time = int(row.pop("step")), float(row.pop("time"))
            points += [
                Point(f"{prefix}/{name}", step, float(value), time)
                for name, value in row.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ]
        return points

    def _scores(self) -> Mapping[str, float]:
        """Final test scores by name; empty if the last round is not evaluated."""
        manifest = read_manifest(self._store, rounds_of(self._config)[-1].folder(EVALUATION))
        if manifest is None:
            return {}
        scores: dict[str, dict[str, Any]] = manifest.info["controllers"]
        return {f"test/{name}/{key}": float(score[key]) for name, score in scores.items() for key in _SCORE_KEYS}


_SCORE_KEYS = ("mean", "sd", "low", "high", "episodes")
