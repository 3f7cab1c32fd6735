"""Results of a run: every number of the report, read from the manifests and records of its stages."""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.config.schema import CollectConfig, RunConfig
from pipeline.data.artifacts import (
    CONTROLLERS,
    DRIVE,
    EVALUATION,
    EVOLUTION,
    GIF_END,
    HISTORY,
    MDNRNN,
    MDNRNN_WEIGHTS,
    ROLLOUTS,
    SUMMARY,
    TEST_EPISODES,
    VAE,
    VAE_WEIGHTS,
    VIDEO_END,
    evaluation_tag_of,
    newest_record,
)
from pipeline.data.quality import Assessment, held_out_quality
from pipeline.data.rounds import FIRST, config_in, rounds_of, vae_folder
from pipeline.evolution.state import Generation
from pipeline.reporting.published import PUBLISHED, Published
from pipeline.reporting.round_rows import RoundRow, all_manifests, folders_of, round_rows
from pipeline.storage.layout import place_and_stage
from pipeline.storage.manifest import Manifest, Record, newest, read_verified
from pipeline.storage.metrics import read_metrics
from pipeline.storage.store import Store

# Maximum points of a training curve: a long training logs tens of thousands, a figure shows a few hundred.
MAX_CURVE_POINTS = 400

# Keys of every manifest, shown apart from stage-specific ones.
_COMMON_INFO = {"seconds", "env_steps", "env_steps_this_session", "code_version", "cpu", "versions"}

Values = dict[str, float]


@dataclass(frozen=True)
class Score:
    """Score of a controller on the test tracks.

    Attributes:
        controller: ``"mean"`` (the CMA mean) or ``"best"`` (the best on validation).
        episodes: Number of episodes.
        mean, sd, min, max: Statistics of the returns.
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
    """Result of the random policy that collected the data.

    Attributes:
        policy: Name of the policy.
        episode_steps: Maximum steps of its episodes.
        exploring_starts: Share of episodes that began anywhere on the road, at speed.
        returns: Returns of its episodes.
        mean, sd: Mean and standard deviation of the returns.
    """

    policy: str
    episode_steps: int
    exploring_starts: float
    returns: list[float]
    mean: float
    sd: float


@dataclass(frozen=True)
class LossCurve:
    """Curves of a training: rows of ``step`` and the losses by name.

    Attributes:
        training: Means over consecutive logged steps, at most ``MAX_CURVE_POINTS`` rows.
        held_out: Held-out losses, one row per epoch.
    """

    training: list[Values]
    held_out: list[Values]


@dataclass(frozen=True)
class StageRow:
    """Cost and facts of a stage; ``env_steps`` is None if it runs no episodes."""

    name: str
    seconds: float
    env_steps: int | None
    size_bytes: int
    facts: dict[str, str | int | float]


@dataclass(frozen=True)
class FilmedDrive:
    """A filmed episode, as shown in the report."""

    controller: str
    track: int
    episode_return: float
    steps: int


@dataclass(frozen=True)
class Findings:
    """Results of a run; with several rounds, of the last one.

    Attributes:
        tag: Name of the evaluation: its generation and number of episodes.
        scores: Score of each controller, the headline's first.
        returns: Returns of each controller's test episodes, in the order of tracks.
        history: Statistics of each generation.
        frames: Number of collected frames.
        mdnrnn_held_out: Quality of M on held-out episodes; None if it was not trained.
        engine, precision: Engine and resolved precision of V's encoder on the test tracks.
        rounds: Rounds side by side; empty if there is only one.
        directory: Run directory for commands: its URL, or ``.`` for a folder, in which commands are to be run.
        files: Key in the store of each file of interest, by description.
        published: Published results on the run's environment; None if there are none.
        config: Config of the run, in its last round.
        cpus, code_versions: All kinds of CPU and code versions of the stages, usually one each.
        versions: Library versions of the last stage.
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
    mdnrnn_held_out: Assessment | None
    drive: FilmedDrive | None
    files: dict[str, str]
    stages: list[StageRow]
    rounds: list[RoundRow]
    engine: str
    precision: str
    published: Published | None
    cpus: list[str]
    code_versions: list[str]
    versions: dict[str, str]
    config: dict[str, Any]

    @property
    def headline(self) -> Score:
        """Score of the controller that validation chose, if any: nothing is selected on the test tracks."""
        return self.scores[0]

    @property
    def env_steps(self) -> int:
        """Environment steps of all stages."""
        return sum(stage.env_steps or 0 for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Time of all stages, in seconds."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def dreaming(self) -> bool:
        """Whether candidates were scored in dreams."""
        return bool(self.config["evolve"]["environment"] == "dream")

    @property
    def validations(self) -> list[Generation]:
        """Generations with a validation."""
        return [row for row in self.history if row.validation_mean is not None]

    @property
    def selected_by(self) -> str:
        """Returns by which the best controller was chosen: ``"game"`` or ``"dream"``."""
        return str(self.config["evolve"]["select"])

    @property
    def chosen(self) -> Generation | None:
        """The generation of the best controller; None if there was no validation."""
        if self.selected_by == "dream":
            return max(self.validations, key=lambda row: row.dream_mean or 0.0, default=None)
        return self.best_validation

    @property
    def best_validation(self) -> Generation | None:
        """The generation with the highest validation mean; None if there was no validation."""
        return max(self.validations, key=lambda row: row.validation_mean or 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
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
    """Read all results that the report shows, except pictures.

    Raises:
        StorageError: A stage is not complete.
        DamagedDataError: Committed data is missing or changed.
    """
    everything, last = all_manifests(config.rounds, store), rounds_of(config.rounds)[-1]
    manifests = {name: everything[folder] for name, folder in folders_of(config.rounds, last).items()}
    evaluation = manifests[EVALUATION].records
    summary_record = newest_record(store, last.folder(EVALUATION), SUMMARY)
    summary = json.loads(read_verified(store, summary_record))
    history = newest_record(store, last.folder(EVOLUTION), HISTORY)
    infos = [manifest.info for manifest in everything.values()]
    vae = read_losses(store, vae_folder(config.rounds, last))
    first_vae = vae if last == FIRST else read_losses(store, VAE)
    best = min((row for row in first_vae.held_out), key=lambda row: row["loss"], default={})
    return Findings(
        name=config.name,
        environment=config.env.id,
        seed=config.seed,
        # Never a path of this machine: the page may be published.
        directory=store.locate() if "://" in store.locate() else ".",
        tag=evaluation_tag_of(summary_record.name),
        # "best" before "mean": the headline is the first.
        scores=[Score(controller=name, **summary[name]) for name in sorted(summary)],
        returns=read_test_returns(store, newest(evaluation, TEST_EPISODES)),
        history=[Generation(**row) for row in json.loads(read_verified(store, history))],
        baseline=_baseline(config.collect, everything[ROLLOUTS].records),
        frames=sum(r.rows for at in last.so_far for r in everything[at.folder(ROLLOUTS)].records.values()),
        vae=vae,
        mdnrnn=read_losses(store, last.folder(MDNRNN)),
        mdnrnn_init=config.mdnrnn.init,
        mdnrnn_held_out=held_out_quality(manifests[MDNRNN].info, config.dream.end_probability),
        drive=_drive(newest(evaluation, DRIVE, VIDEO_END)),
        files=_files(manifests),
        stages=[_stage(folder, manifest) for folder, manifest in everything.items()],
        rounds=round_rows(config, store, everything, best.get("reconstruction")),
        engine=manifests[EVALUATION].info.get("engine", "not recorded"),
        precision=manifests[EVALUATION].info.get("precision", "not recorded"),
        published=PUBLISHED.get(config.env.id),
        cpus=sorted({str(info["cpu"]) for info in infos}),
        code_versions=sorted({str(info["code_version"]) for info in infos}),
        versions=dict(manifests[EVALUATION].info["versions"]),
        config=config_in(config, last).model_dump(mode="json"),
    )


def read_test_returns(store: Store, record: Record | None) -> dict[str, list[float]]:
    """Read the returns of each controller's test episodes, in the order of tracks."""
    returns: dict[str, list[float]] = {}
    if record is not None:
        table = pq.read_table(io.BytesIO(read_verified(store, record)), columns=["controller", "episode_return"])
        for row in table.to_pylist():
            returns.setdefault(row["controller"], []).append(row["episode_return"])
    return returns


def _baseline(collect: CollectConfig, records: Mapping[str, Record]) -> Baseline:
    returns = [float(value) for record in records.values() for value in record.info["returns"]]
    return Baseline(
        policy=collect.policy,
        episode_steps=collect.episode_steps,
        exploring_starts=collect.exploring_starts,
        returns=returns,
        mean=float(np.mean(returns)),
        sd=float(np.std(returns, ddof=min(1, len(returns) - 1))),
    )


def _drive(record: Record | None) -> FilmedDrive | None:
    return None if record is None else FilmedDrive(**record.info)


def _files(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    evolution, evaluation = manifests[EVOLUTION].records, manifests[EVALUATION].records
    files = {
        "V's weights": newest(manifests[VAE].records, VAE_WEIGHTS),
        "M's weights": newest(manifests[MDNRNN].records, MDNRNN_WEIGHTS),
        "the controllers": newest(evolution, CONTROLLERS),
        "every generation": newest(evolution, HISTORY),
        "every test episode": newest(evaluation, TEST_EPISODES),
        "the drive as a GIF": newest(evaluation, DRIVE, GIF_END),
        "the drive as a video": newest(evaluation, DRIVE, VIDEO_END),
    }
    return {
        what: posixpath.join(record.run, record.key)
        for what, record in files.items()
        if record is not None and not posixpath.isabs(record.run)
    }


def _stage(folder: str, manifest: Manifest) -> StageRow:
    info, (of_round, _) = manifest.info, place_and_stage(folder)
    return StageRow(
        name=f"{manifest.stage}, {of_round}" if of_round else manifest.stage,
        seconds=float(info["seconds"]),
        env_steps=info.get("env_steps"),
        size_bytes=sum(record.size_bytes for record in manifest.records.values()),
        facts={k: v for k, v in info.items() if k not in _COMMON_INFO and isinstance(v, str | int | float)},
    )


def read_losses(store: Store, prefix: str) -> LossCurve:
    """Read a stage's training curve; without a metrics file the curve is empty."""
    training: list[Values] = []
    held_out: list[Values] = []
    for row in read_metrics(store, prefix):
        row.pop("time")
        if "held_out_loss" in row:
            held_out.append({name.removeprefix("held_out_"): value for name, value in row.items()})
        else:
            training.append(row)
    return LossCurve(thinned(training, MAX_CURVE_POINTS), held_out)


def thinned(rows: Sequence[Values], limit: int) -> list[Values]:
    """Reduce rows to at most ``limit`` means over blocks of equal size (except the last), each at its last step."""
    size = -(-len(rows) // limit)
    return [
        {name: float(np.mean([row[name] for row in rows[i : i + size]])) for name in rows[i]}
        | {"step": rows[i : i + size][-1]["step"]}
        for i in range(0, len(rows), max(1, size))
    ]
