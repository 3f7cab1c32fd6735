"""A run in MLflow, at the place that ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.tracking.tracker import Point, page_file

_RUN_ID = "world_models.run_id"
_BATCH = 1000  # metrics in a request, MLflow's limit
_MAX_VALUE = 500  # characters of a parameter, MLflow's limit in its oldest servers
_MAX_PARAMETERS = 100  # in a request


class MlflowTracker:
    """See ``pipeline.tracking.tracker.Tracker``.

    Args:
        client: ``mlflow.MlflowClient``.
        run_id: MLflow's own ID of the run.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def marks(self) -> Mapping[str, int]:
        """See ``Tracker.marks``."""
        names = self._client.get_run(self._run_id).data.metrics
        return {name: max(m.step for m in self._client.get_metric_history(self._run_id, name)) for name in names}

    def log(self, points: Sequence[Point]) -> None:
        """See ``Tracker.log``."""
        from mlflow.entities import Metric

        metrics = [Metric(p.metric, p.value, int(1000 * p.time), p.step) for p in points]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])

    def finish(self, scores: Mapping[str, float], report: bytes | None, *, failed: bool) -> None:
        """See ``Tracker.finish``."""
        for name, value in scores.items():
            self._client.log_metric(self._run_id, name, value)
        if report is not None:
            with page_file(report) as page:
                self._client.log_artifact(self._run_id, page, "report")
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def make(*, project: str, run: str, run_id: str, config: Mapping[str, Any]) -> MlflowTracker:
    """Begin or continue a run, see ``make_tracker``."""
    # The user chose a folder by the URI. Without this, MLflow 3 asks for a database.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    experiment_id = _experiment(client, project)
    found = client.search_runs([experiment_id], f"tags.`{_RUN_ID}` = '{run_id}'")
    if found:
        own_id, present = found[0].info.run_id, found[0].data.params
        client.update_run(own_id, status="RUNNING")
    else:
        own_id, present = client.create_run(experiment_id, tags={_RUN_ID: run_id}, run_name=run).info.run_id, {}
    # A parameter cannot change; a grown key keeps its first value.
    parameters = [Param(key, str(value)[:_MAX_VALUE]) for key, value in config.items() if key not in present]
    for start in range(0, len(parameters), _MAX_PARAMETERS):
        client.log_batch(own_id, params=parameters[start : start + _MAX_PARAMETERS])
    return MlflowTracker(client, own_id)


def _experiment(client: Any, name: str) -> str:
    """ID of an experiment, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)
