"""Experiment trackers: real MLflow in a folder and W&B offline, a stand-in for trackio; every point once."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError, LeaseError, StorageError, WorldModelsError
from pipeline.cli.run import run_config
from pipeline.storage import sealed_json
from pipeline.storage.layout import foreign_keys, metrics_key, tracker_key
from pipeline.storage.local import LocalStore
from pipeline.storage.maintenance import check_run
from pipeline.storage.manifest import require_manifest
from pipeline.tracking import publisher
from pipeline.tracking.tracker import Point
from tests.counting import counting_config

PREFIXES = ("rollouts", "vae", "latents", "mdnrnn", "evolution", "evaluation")


def config_of(*trackers: str, **keys: Any) -> Any:
    return counting_config({"metrics.trackers": [*trackers], "metrics.project": "tests", **keys})


def expected(store: LocalStore) -> dict[str, list[tuple[int, float]]]:
    """Points of each metric, from the files of the run."""
    found: dict[str, list[tuple[int, float]]] = {}
    for prefix in PREFIXES:
        for line in store.read(metrics_key(prefix)).splitlines():
            row = json.loads(line)
            step = row.pop("step")
            del row["time"]
            for name, value in row.items():
                if isinstance(value, int | float):
                    found.setdefault(f"{prefix}/{name}", []).append((step, float(value)))
    return found


def interrupted(run_dir: Path, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the evaluation, and stop there."""

    def stop(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="full"):
        patched.setattr("pipeline.stages.evaluate.run_test_episodes", stop)
        run_config(config, str(run_dir), "run")


def test_mlflow_has_every_point_once_and_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    config, run_dir = config_of("mlflow"), tmp_path / "run"
    interrupted(run_dir, config, monkeypatch)
    # As after a kill before the published steps were recorded: MLflow itself knows them.
    store = LocalStore(run_dir)
    known = sealed_json.read(store, tracker_key("mlflow"), "a tracker")
    assert known["marks"]
    store.write(tracker_key("mlflow"), sealed_json.to_bytes({**known, "marks": {}}))
    run_config(config, str(run_dir), "run")
    run_config(config, str(run_dir), "run")  # a complete run once more

    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "counting"
    for name, points in expected(store).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((metric.step, metric.value) for metric in history) == sorted(points), name
    assert run.data.params["evolve.sigma"] == "0.5"
    scores = require_manifest(store, "evaluation").info["controllers"]
    assert run.data.metrics["test/mean/mean"] == pytest.approx(scores["mean"]["mean"])
    assert len(client.get_metric_history(run.info.run_id, "test/mean/mean")) == 1
    page = Path(client.download_artifacts(run.info.run_id, "report/index.html"))
    assert page.read_bytes() == store.read("report/index.html")
    assert foreign_keys(store) == [] and check_run(store).problems == []


def records_of(data: bytes) -> Iterator[bytes]:
    """Records of W&B's offline file: a header of 7 bytes, then LevelDB's log, in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too short for a record: padding
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only part of a record, or its last one
            yield whole
            whole = b""


def offline_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of all sessions that W&B has written for its server."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for raw in records_of(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(raw)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return rows


def test_wandb_offline_has_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    config, run_dir = config_of("wandb"), tmp_path / "run"
    interrupted(run_dir, config, monkeypatch)
    run_config(config, str(run_dir), "run")
    found: dict[str, list[tuple[int, float]]] = {}
    for row in offline_history(tmp_path):
        for name, value in row.items():
            prefix, _, leaf = name.rpartition("/")
            if prefix and leaf != "step":
                found.setdefault(name, []).append((row[f"{prefix}/step"], value))
    assert {name: sorted(points) for name, points in found.items()} == {
        name: sorted(points) for name, points in expected(LocalStore(run_dir)).items()
    }
    ids = {path.stem.removeprefix("run-") for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert len(ids) == 1, "both sessions are one run"


class Recorder:
    """A tracker that keeps its points, and fails at chosen times."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.failures = 1
        self.scores: Mapping[str, float] = {}

    def marks(self) -> Mapping[str, int]:
        return {}

    def log(self, points: Sequence[Point]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is away")
        self.points += points

    def finish(self, scores: Mapping[str, float], report: bytes | None, *, failed: bool) -> None:
        self.scores = scores
        self.failed = failed


def test_failing_tracker_gets_its_points_later_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(publisher, "make_tracker", lambda name, **_: recorder)
    monkeypatch.setattr(publisher, "_EVERY_S", 0.05)
    with caplog.at_level("WARNING"):
        assert run_config(config_of("mlflow"), str(tmp_path / "run"), "run") == 0
    assert "trying again later: the server is away" in caplog.text
    found: dict[str, list[tuple[int, float]]] = {}
    for point in recorder.points:
        found.setdefault(point.metric, []).append((point.step, point.value))
    assert found == expected(LocalStore(tmp_path / "run"))
    assert recorder.scores["test/mean/episodes"] == 4


def test_driver_without_its_lease_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.failures = 0
    monkeypatch.setattr(publisher, "make_tracker", lambda name, **_: recorder)
    store = LocalStore(tmp_path / "run")

    def lost() -> None:
        raise LeaseError("another driver has the run")

    with pytest.raises(LeaseError), publisher.Publisher(config_of("mlflow"), store) as published:
        store.write(metrics_key("vae"), b'{"step": 1, "time": 0.0, "loss": 2.0}\n')
        published._store = store.guarded(lost)
        published._publish()
        raise LeaseError("another driver has the run")
    assert recorder.points == []


def test_stop_does_not_wait_for_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(publisher, "make_tracker", lambda name, **_: recorder)
    monkeypatch.setattr(recorder, "finish", None)
    store = LocalStore(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), publisher.Publisher(config_of("mlflow"), store):
        store.write(metrics_key("vae"), b'{"step": 1, "time": 0.0, "loss": 2.0}\n')
        raise KeyboardInterrupt
    assert recorder.failures == 1, "nothing was sent"


def test_refusing_tracker_ends_the_run_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unknown://place")
    with pytest.raises(WorldModelsError, match=r"mlflow cannot start the run.*metrics.trackers=\[\]"):
        run_config(config_of("mlflow"), str(tmp_path / "run"), "run")
    assert not (tmp_path / "run" / "rollouts").exists()


def test_missing_tracker_is_named_with_its_install_command(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"\[\'trackio\'\] needs the package trackio, .*pip install 'world-models-ray\[trackio\]'"
    ):
        run_config(config_of("trackio"), str(tmp_path / "run"), "run")
    assert not (tmp_path / "run").exists()


def test_trackio_gets_points_config_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that has trackio's signatures: its package pins another version of Pillow."""
    logged: list[tuple[dict[str, float], int | None]] = []
    begun: list[dict[str, Any]] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.append((metrics, step))

        def finish(self) -> None:
            logged.append(({}, None))

    def init(project: str, name: str | None = None, resume: str = "never", config: dict[str, Any] | None = None) -> Run:
        begun.append({"project": project, "name": name, "resume": resume, "config": config})
        return Run()

    module = types.ModuleType("trackio")
    module.init = init  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "trackio", module)
    run_config(config_of("trackio"), str(tmp_path / "run"), "collect")
    run_config(config_of("trackio"), str(tmp_path / "run"), "train-vae")
    assert [run["resume"] for run in begun] == ["allow"] * 2 and begun[0]["name"] == begun[1]["name"]
    found = {(name, step) for metrics, step in logged for name in metrics}
    wanted = {
        (f"{prefix}/{name}", row["step"])
        for prefix in ("rollouts", "vae")
        for row in map(json.loads, LocalStore(tmp_path / "run").read(metrics_key(prefix)).splitlines())
        for name, value in row.items()
        if name not in ("step", "time") and isinstance(value, int | float)
    }
    assert found == wanted
