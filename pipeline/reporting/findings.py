"""What a run came to: every figure of the report, read from the manifests and records of its stages."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.base.errors import DamagedDataError
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import (
    CONTROLLERS,
    DRIVE,
    EVALUATION,
    EVOLUTION,
    HISTORY,
    LATENTS,
    MDNRNN,
    MDNRNN_WEIGHTS,
    ROLLOUTS,
    SUMMARY,
    TEST_EPISODES,
    VAE,
    VAE_WEIGHTS,
)
from pipeline.evolution.state import Generation
from pipeline.reporting.published import PUBLISHED, Published
from pipeline.storage.layout import metrics_key
from pipeline.storage.manifest import Manifest, Record, newest, read_verified, require_manifest
from pipeline.storage.store import Store

PREFIXES = (ROLLOUTS, VAE, LATENTS, MDNRNN, EVOLUTION, EVALUATION)

# Points of a training curve, at most: a long training logs tens of thousands, a figure shows a few hundred.
MAX_CURVE_POINTS = 400

# What every manifest carries, shown apart from what only some do.
_COMMON_INFO = {"seconds", "env_steps", "env_steps_this_session", "code_version", "cpu", "versions"}

Values = dict[str, float]


@dataclass(frozen=True)
class Score:
    """A controller on the test tracks.

    Attributes:
        controller: ``"mean"`` (of CMA-ES) or ``"best"`` (on validation).
        episodes: driven.
        mean, sd, min, max: of the returns.
        low, high: 95 % bootstrap interval of the mean.
    """

    controller: str
    episodes: int
    mean: float
    sd: float
    low: float
    high: float
    min: float
    max: float


@dataclass(frozen=True)
class Baseline:
    """The random policy that collected the data.

    Attributes:
        policy: its name.
        episode_steps: its episodes were cut after so many.
        exploring_starts: share of them that began anywhere on the road, at speed.
        returns: of its episodes.
        mean, sd: of them.
    """

    policy: str
    episode_steps: int
    exploring_starts: float
    returns: list[float]
    mean: float
    sd: float


@dataclass(frozen=True)
class LossCurve:
    """A training: rows of ``step`` and the losses by name.

    Attributes:
        training: means over consecutive logged steps, at most ``MAX_CURVE_POINTS`` rows.
        held_out: one row an epoch.
    """

    training: list[Values]
    held_out: list[Values]


@dataclass(frozen=True)
class StageRow:
    """What a stage took, and what it says of itself; ``env_steps`` is None where it drives nothing."""

    name: str
    seconds: float
    env_steps: int | None
    size_bytes: int
    facts: dict[str, str | int | float]


@dataclass(frozen=True)
class Drive:
    """A filmed episode, as the report shows it."""

    controller: str
    track: int
    episode_return: float
    steps: int


@dataclass(frozen=True)
class Findings:
    """A run's figures.

    Attributes:
        tag: names the evaluation that this is of: generation and episodes.
        scores: one a controller, that of the headline first.
        returns: controller to the returns of its test episodes, in the order of tracks.
        history: one row a generation.
        frames: collected.
        engine, precision: that V's encoder had on the test tracks; what `auto` came to there.
        directory: what commands are given for the run: its URL, or ``.`` for a folder, inside of which they are typed.
        files: key in the store of each file that people look for, by what it holds.
        published: of the run's environment, None where there is nothing to stand beside.
        cpus, code_versions: all that the stages were made on, usually one of each.
        versions: of libraries, of the last stage.
    """

    name: str
    environment: str
    seed: int
    directory: str
    tag: str
    scores: list[Score]
    returns: dict[str, list[float]]
    history: list[Generation]
    baseline: Baseline
    frames: int
    vae: LossCurve
    mdnrnn: LossCurve
    mdnrnn_init: str
    drive: Drive | None
    files: dict[str, str]
    stages: list[StageRow]
    engine: str
    precision: str
    published: Published | None
    cpus: list[str]
    code_versions: list[str]
    versions: dict[str, str]
    config: dict[str, Any]

    @property
    def headline(self) -> Score:
        """The controller that validation chose, where there is one: nothing here is chosen on the test tracks."""
        return self.scores[0]

    @property
    def env_steps(self) -> int:
        """Driven by all stages."""
        return sum(stage.env_steps or 0 for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Spent by all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def validations(self) -> list[Generation]:
        """The generations whose mean drove the validation tracks."""
        return [row for row in self.history if row.validation_mean is not None]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        values = asdict(self)
        if self.published is not None:
            values["published"]["curve"] = [
                {"generation": generation, "env_steps": self.published.curve_env_steps(generation), "mean": mean}
                for generation, mean in self.published.curve
            ]
        return {
            "headline": {**asdict(self.headline), "env_steps": self.env_steps, "seconds": self.seconds},
            **values,
        }


def gather(config: RunConfig, store: Store) -> Findings:
    """Read everything the report shows, but for pictures.

    Raises:
        StorageError: a stage is not complete.
        DamagedDataError: what a record commits is missing or changed.
    """
    manifests = {prefix: require_manifest(store, prefix) for prefix in PREFIXES}
    evaluation = manifests[EVALUATION].records
    summary_record = newest(evaluation, SUMMARY)
    history_record = newest(manifests[EVOLUTION].records, HISTORY)
    if summary_record is None or history_record is None:
        raise DamagedDataError(
            f"{store.locate('evaluation')} or {store.locate('evolution')} is sealed without a summary or a history: "
            "it was not made by this pipeline. Remove its MANIFEST.json and run the same command again."
        )
    summary = json.loads(read_verified(store, summary_record))
    infos = [manifest.info for manifest in manifests.values()]
    return Findings(
        name=config.name,
        environment=config.env.id,
        seed=config.seed,
        # Never a path of this machine: the page may be shown to anyone.
        directory=store.locate() if "://" in store.locate() else ".",
        tag=summary_record.name.removeprefix(SUMMARY).removesuffix(".json"),
        # "best" before "mean": the headline is the first.
        scores=[Score(controller=name, **summary[name]) for name in sorted(summary)],
        returns=read_test_returns(store, newest(evaluation, TEST_EPISODES)),
        history=[Generation(**row) for row in json.loads(read_verified(store, history_record))],
        baseline=_baseline(config, manifests[ROLLOUTS].records),
        frames=sum(record.rows for record in manifests[ROLLOUTS].records.values()),
        vae=read_losses(store, VAE),
        mdnrnn=read_losses(store, MDNRNN),
        mdnrnn_init=config.mdnrnn.init,
        drive=_drive(newest(evaluation, DRIVE, ".webm")),
        files=_files(manifests),
        stages=[_stage(manifest) for manifest in manifests.values()],
        engine=manifests[EVALUATION].info.get("engine", "not recorded"),
        precision=manifests[EVALUATION].info.get("precision", "not recorded"),
        published=PUBLISHED.get(config.env.id),
        cpus=sorted({str(info["cpu"]) for info in infos}),
        code_versions=sorted({str(info["code_version"]) for info in infos}),
        versions=dict(manifests[EVALUATION].info["versions"]),
        config=config.model_dump(mode="json"),
    )


def read_test_returns(store: Store, record: Record | None) -> dict[str, list[float]]:
    """Controller to the returns of its test episodes, in the order of tracks."""
    returns: dict[str, list[float]] = {}
    if record is not None:
        table = pq.read_table(io.BytesIO(read_verified(store, record)), columns=["controller", "episode_return"])
        for row in table.to_pylist():
            returns.setdefault(row["controller"], []).append(row["episode_return"])
    return returns


def _baseline(config: RunConfig, records: Mapping[str, Record]) -> Baseline:
    returns = [float(value) for record in records.values() for value in record.info["returns"]]
    return Baseline(
        policy=config.collect.policy,
        episode_steps=config.collect.episode_steps,
        exploring_starts=config.collect.exploring_starts,
        returns=returns,
        mean=float(np.mean(returns)),
        sd=float(np.std(returns, ddof=min(1, len(returns) - 1))),
    )


def _drive(record: Record | None) -> Drive | None:
    return None if record is None else Drive(**record.info)


def _files(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    evolution, evaluation = manifests[EVOLUTION].records, manifests[EVALUATION].records
    files = {
        "V's weights": newest(manifests[VAE].records, VAE_WEIGHTS),
        "M's weights": newest(manifests[MDNRNN].records, MDNRNN_WEIGHTS),
        "the controllers": newest(evolution, CONTROLLERS),
        "every generation": newest(evolution, HISTORY),
        "every test episode": newest(evaluation, TEST_EPISODES),
        "the drive as a GIF": newest(evaluation, DRIVE, ".gif"),
        "the drive as a video": newest(evaluation, DRIVE, ".webm"),
    }
    return {what: record.key for what, record in files.items() if record is not None}


def _stage(manifest: Manifest) -> StageRow:
    info = manifest.info
    return StageRow(
        name=manifest.stage,
        seconds=float(info["seconds"]),
        env_steps=info.get("env_steps"),
        size_bytes=sum(record.size_bytes for record in manifest.records.values()),
        facts={k: v for k, v in info.items() if k not in _COMMON_INFO and isinstance(v, str | int | float)},
    )


def read_losses(store: Store, prefix: str) -> LossCurve:
    """A stage's training curve. Metrics are a view: where there are none, the curve is empty."""
    training: list[Values] = []
    held_out: list[Values] = []
    try:
        lines = store.read(metrics_key(prefix)).splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        try:
            row: Values = json.loads(line)
        except ValueError:
            continue  # a kill may cut the last line short
        row.pop("time")
        if "held_out_loss" in row:
            held_out.append({name.removeprefix("held_out_"): value for name, value in row.items()})
        else:
            training.append(row)
    return LossCurve(thinned(training, MAX_CURVE_POINTS), held_out)


def thinned(rows: Sequence[Values], limit: int) -> list[Values]:
    """At most ``limit`` rows: means of equally many consecutive rows (the last may be of fewer), at their last step."""
    size = -(-len(rows) // limit)
    return [
        {name: float(np.mean([row[name] for row in rows[i : i + size]])) for name in rows[i]}
        | {"step": rows[i : i + size][-1]["step"]}
        for i in range(0, len(rows), max(1, size))
    ]
