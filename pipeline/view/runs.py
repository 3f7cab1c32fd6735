"""The state of runs as JSON: stage, rate, time left, curves, scores, and the last film; a study's runs in order."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.base.errors import DamagedDataError, StorageError, WorldModelsError
from pipeline.config.rounds import RoundsConfig
from pipeline.config.schema import RunConfig
from pipeline.config.study import saved_study
from pipeline.data.artifacts import DRIVE, EVALUATION, EVOLUTION, MDNRNN, RECONSTRUCTIONS, VAE, VIDEO_END
from pipeline.data.rounds import Round, encoded_rounds, episodes_of, rounds_of, shards_of, vae_folder, vae_round
from pipeline.stages.table import (
    COLLECT,
    ENCODE,
    EVALUATE,
    EVOLVE,
    TRAIN_MDNRNN,
    TRAIN_VAE,
    WHOLE_RUN,
    Stage,
    stages_of,
)
from pipeline.storage.layout import CONFIG, begun_key
from pipeline.storage.manifest import newest, read_manifest, read_records, read_verified, stale_inputs
from pipeline.storage.metrics import MetricsRow, read_metrics
from pipeline.storage.run_dir import open_store
from pipeline.storage.saved_config import runs_hint, saved_config
from pipeline.storage.sessions import last_session
from pipeline.storage.store import Store
from pipeline.studies.plan import STUDY, trials_of
from pipeline.view.json_numbers import without_nan

FRESH_S = 1.5  # seconds for which a description is kept, regardless of the number of viewers
_RECENT_ROWS = 20  # rows of metrics over which a rate is measured
_MOST_POINTS = 300  # points per curve

Point = tuple[float, float]


class Runs:
    """A run, or the runs of a study.

    Args:
        run: Location of the run or the study.

    Raises:
        StorageError: There is neither.
    """

    def __init__(self, run: str) -> None:
        store = open_store(run)
        self.study: str | None = None
        self._stores = {"": store}
        if store.exists(STUDY):
            study = saved_study(store.read(STUDY).decode(), store.locate(STUDY))
            self.study = study.name
            where = store.locate()
            self._stores = {trial.name: open_store(f"{where}/{trial.folder}") for trial in trials_of(study)}
        elif not store.exists(CONFIG):
            raise StorageError(
                f"{store.locate()} holds no run and no study: there is no {CONFIG} and no {STUDY}. "
                f"{runs_hint(store) or 'Start one with `world-models run` or `world-models study`'}"
            )
        self._lock = threading.Lock()
        self._described: dict[str, Any] = {}
        self._described_at = -FRESH_S

    def describe(self) -> dict[str, Any]:
        """Describe all runs in plain, finite values; ``runs`` of the result has the order of ``media``."""
        with self._lock:
            if time.monotonic() - self._described_at >= FRESH_S:
                runs = [_describe_or_problem(name, store) for name, store in self._stores.items()]
                self._described = {"study": self.study, "runs": runs}
                self._described_at = time.monotonic()
            return self._described

    def media(self, number: int, what: str) -> bytes | None:
        """The last film of a run, as MP4, or the picture of V's reconstructions, as PNG; None if there is none.

        Args:
            number: Number of the run, from 0.
            what: ``film`` or ``picture``.

        Raises:
            StorageError: It cannot be read.
        """
        stores = list(self._stores.values())
        if number >= len(stores) or not stores[number].exists(CONFIG):
            return None
        find = _film if what == "film" else _picture
        found = find(saved_config(stores[number]).rounds, stores[number])
        return None if found is None else read_verified(stores[number], found[1], found[0])


def _describe_or_problem(name: str, store: Store) -> dict[str, Any]:
    run = {"name": name, "where": store.locate()}
    try:
        if not store.exists(CONFIG):
            return {**run, "waiting": True}
        described: dict[str, Any] = without_nan(describe(store))
        return {**run, **described}
    except WorldModelsError as error:
        # A store that does not answer may do so the next time; damaged data stay damaged.
        passing = isinstance(error, StorageError) and not isinstance(error, DamagedDataError)
        return {**run, "problem": error.for_readers, "passing": passing}
    except (KeyError, TypeError, ValueError) as error:  # metrics carry no checksum
        problem = f"{store.locate()} holds metrics that are no longer whole: {error!r}"
        return {**run, "problem": problem, "passing": False}


def describe(store: Store) -> dict[str, Any]:
    """Describe a run."""
    config = saved_config(store)
    session = last_session(store)
    alive = session is not None and not session.over
    found = [(stage, read_manifest(store, stage.prefix)) for stage in stages_of(config)]
    shared = any(manifest is not None and WHOLE_RUN in manifest.info for _, manifest in found)
    stages, current = [], None
    for stage, manifest in found:
        state = "waiting"
        if manifest is not None:
            state = "out of date" if stale_inputs(store, manifest) else "complete"
        elif shared and not store.exists(begun_key(stage.prefix)):
            state = "not in this folder"  # a pack, or a copy of results
        elif current is None:
            current, state = stage, "under way" if alive else "stopped"
        seconds = None if manifest is None else manifest.info.get("seconds")
        stages.append({"title": stage.title, "state": state, "seconds": seconds})
    film, picture = _film(config.rounds, store), _picture(config.rounds, store)
    return {
        "title": config.name,
        "environment": config.env.id,
        "seed": config.seed,
        "alive": alive,
        "workers": session.workers if session is not None and alive else 0,
        "seen_s": None if session is None else session.age_s,
        "stages": stages,
        "now": None if current is None else _progress(config, store, current),
        "curves": _curves(config, store),
        "scores": _scores(config, store),
        # The key changes with the content, so that the page loads each film once.
        "film": None if film is None else film[1].key,
        "picture": None if picture is None else picture[1].key,
    }


def _progress(config: RunConfig, store: Store, stage: Stage) -> dict[str, Any]:
    """Progress of a stage: done and total in a unit, units per second lately, and seconds left."""
    at, rows = stage.round, read_metrics(store, stage.prefix)
    of_round = config.in_round(at.number)
    unit, total, done_at = "steps", None, _steps(rows)
    if stage.name == COLLECT:
        unit, total = "episodes", len(episodes_of(config, at))
    elif stage.name == ENCODE:
        unit, total = "shards", sum(len(shards_of(config, each)) for each in encoded_rounds(config.rounds, at))
        done_at = [(row["time"], row["shards"]) for row in rows]
    elif stage.name in (TRAIN_VAE, TRAIN_MDNRNN):
        section = of_round.vae if stage.name == TRAIN_VAE else of_round.mdnrnn
        unit, total, done_at = "epochs", section.epochs, [(row["time"], row["epochs"]) for row in rows]
    elif stage.name == EVOLVE:
        unit, total = "generations", of_round.evolve.generations
    elif stage.name == EVALUATE:
        evolved = read_manifest(store, at.folder(EVOLUTION))
        validated = evolved is not None and evolved.info.get("best_validation") is not None
        controllers = 2 if validated and config.evaluate.controllers == "both" else 1
        unit, total = "episodes", controllers * config.evaluate.episodes
    done = done_at[-1][1] if done_at else 0
    rate, left = None, None
    recent = done_at[-_RECENT_ROWS:]
    if len(recent) > 1 and recent[-1][0] > recent[0][0] and recent[-1][1] > recent[0][1]:
        rate = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
        left = None if total is None else max(0.0, (total - done) / rate)
    return {"title": stage.title, "unit": unit, "done": done, "total": total, "rate": rate, "left_s": left}


def _steps(rows: Sequence[MetricsRow]) -> list[Point]:
    return [(row["time"], row["step"]) for row in rows]


def _curves(config: RunConfig, store: Store) -> list[dict[str, Any]]:
    """Learning curves of V, M and C of all rounds, each with its validation."""
    curves = []
    for at in rounds_of(config.rounds):
        suffix = "" if config.rounds.count == 1 else f", round {at.number}"
        if vae_round(config.rounds, at) == at:
            rows = read_metrics(store, at.folder(VAE))
            curves.append(_curve(f"V{suffix}: loss", "step", rows, {"training": "loss", "held out": "held_out_loss"}))
        rows = read_metrics(store, at.folder(MDNRNN))
        names = {"training": "nll", "held out": "held_out_nll"}
        curves.append(_curve(f"M{suffix}: nats per dimension", "step", rows, names))
        rows = read_metrics(store, at.folder(EVOLUTION))
        names = {"best candidate": "fitness_max", "mean": "fitness_mean", "validation": "validation_mean"}
        curves.append(_curve(f"C{suffix}: return", "generation", rows, names))
    return [curve for curve in curves if curve["series"]]


def _curve(title: str, x: str, rows: Sequence[MetricsRow], names: Mapping[str, str]) -> dict[str, Any]:
    """A curve of several series: their points, and the number of values that cannot be drawn."""
    series = []
    for name, key in names.items():
        present = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        points = [point for point in present if math.isfinite(point[1])]
        if points:
            series.append({"name": name, "points": _thinned(points), "not_finite": len(present) - len(points)})
    return {"title": title, "x": x, "series": series}


def _thinned(points: list[Point]) -> list[Point]:
    every = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def _scores(config: RunConfig, store: Store) -> dict[str, Any] | None:
    """Test scores of the latest evaluated round, by controller."""
    for at in reversed(rounds_of(config.rounds)):
        manifest = read_manifest(store, at.folder(EVALUATION))
        if manifest is not None:
            scores: dict[str, Any] = manifest.info["controllers"]
            return scores
    return None


_Found = tuple[str, Any]


def _film(rounds: RoundsConfig, store: Store) -> _Found | None:
    return _latest(rounds, store, lambda at: at.folder(EVALUATION), DRIVE, VIDEO_END)


def _picture(rounds: RoundsConfig, store: Store) -> _Found | None:
    return _latest(rounds, store, lambda at: vae_folder(rounds, at), RECONSTRUCTIONS)


def _latest(
    rounds: RoundsConfig, store: Store, folder: Callable[[Round], str], start: str, end: str = ""
) -> _Found | None:
    """Prefix of a stage and record of the newest object with such a name, of the latest round that has one."""
    for at in reversed(rounds_of(rounds)):
        prefix = folder(at)
        manifest = read_manifest(store, prefix)
        record = newest(read_records(store, prefix) if manifest is None else manifest.records, start, end)
        if record is not None:
            return prefix, record
    return None
