"""``bench fidelity``: the effect of fast computation on results: rounding in V's encoder, and drawing of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ConfigError
from pipeline.base.statistics import summarise
from pipeline.base.threads import num_threads
from pipeline.bench.fanout import bounded_workers
from pipeline.bench.table import FIDELITY
from pipeline.bench.trained import TrainedRun
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import EVALUATION, ROLLOUTS, TEST_EPISODES
from pipeline.data.rounds import latest_round
from pipeline.data.shards import episode_steps, read_frames
from pipeline.evolution.fitness import run_episodes, scored_jobs
from pipeline.evolution.pools import open_rollout_pool
from pipeline.execution.protocol import Executor
from pipeline.models.forward import encode_all, make_encoder
from pipeline.models.precision import encoder_precision, native_precisions
from pipeline.reporting.findings import read_test_returns
from pipeline.storage.manifest import newest, require_manifest
from pipeline.storage.store import Store

_FRAMES = 2000


@dataclass(frozen=True)
class Fidelity:
    """Result of one rendering and precision on the test tracks.

    Attributes:
        rendering, engine, precision: Rendering of the frames; engine and precision of V's encoder.
        mu_error: Mean absolute error of mu against torch in float32, in standard deviations of mu; None for torch in
            float32 itself.
        mu_error_max: Largest such error.
        mean, low, high: Mean return over the tracks, and its 95 % interval.
        difference, difference_low, difference_high: Mean difference of returns from the first row's, track by track,
            and its 95 % interval.
    """

    rendering: str
    engine: str
    precision: str
    mu_error: float | None
    mu_error_max: float | None
    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


def bench_fidelity(run: TrainedRun, store: Store, executor: Callable[[RunConfig], Executor]) -> list[Fidelity]:
    """Run a run's best controller on its test tracks.

    Args:
        run: Trained run.
        store: Store of that run.
        executor: Factory of executors.

    Returns:
        Results: Gymnasium's drawing first, as evaluated by the run, then the pipeline's at every native precision.

    Raises:
        ConfigError: The run has not evaluated its best controller on Gymnasium's drawing.
    """
    evaluated = _evaluated(store, run.config)
    frames = _some_frames(store)
    torch_mu = _mu(_with_precision(run.config, "torch", "float32"), run, frames)
    own = encoder_precision(run.config.rollouts)
    seed = run.config.seed  # as `evaluate` draws its interval
    rows = [_row("gymnasium", run.config.rollouts.engine, own, None, torch_mu, evaluated, evaluated, seed)]
    native = native_precisions()
    torchs = [("torch", precision) for precision in native if precision != "int8"]
    for engine, precision in [*torchs, *(("openvino", precision) for precision in native)]:
        config = _with_precision(run.config, engine, precision)
        mu = None if (engine, precision) == ("torch", "float32") else _mu(config, run, frames)
        rows.append(_row("texture", engine, precision, mu, torch_mu, _returns(config, run, executor), evaluated, seed))
    return rows


def fidelity_lines(rows: list[Fidelity]) -> list[str]:
    """Write the results as a Markdown table."""
    lines = [
        "| frames drawn by | encoder | error of mu, in sd | largest | mean return, 95 % interval | against the first |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        errors = "| | " if row.mu_error is None else f"| {row.mu_error:.4f} | {row.mu_error_max:.3f} "
        lines.append(
            f"| {row.rendering} | {row.engine} {row.precision} {errors}"
            f"| {row.mean:.1f} ({row.low:.1f} to {row.high:.1f}) "
            f"| {row.difference:+.1f} ({row.difference_low:+.1f} to {row.difference_high:+.1f}) |"
        )
    return lines


def fidelity_to_json(rows: list[Fidelity]) -> dict[str, object]:
    """Convert to JSON values; the reference is Gymnasium's drawing, ours the run's own precision."""
    ours = next(row for row in rows[1:] if (row.engine, row.precision) == (rows[0].engine, rows[0].precision))
    return {
        "bench": FIDELITY,
        "unit": "mean return",
        "reference": rows[0].mean,
        "ours": ours.mean,
        "ratio": ours.mean / rows[0].mean,
        "rows": [asdict(row) for row in rows],
    }


def _row(
    rendering: str,
    engine: str,
    precision: str,
    mu: NDArray[np.float32] | None,
    torch_mu: NDArray[np.float32],
    returns: list[float],
    reference: list[float],
    seed: int,
) -> Fidelity:
    error = None if mu is None else np.abs(mu - torch_mu) / torch_mu.std(axis=0)
    score = summarise(returns, seed)
    difference = summarise([ours - theirs for ours, theirs in zip(returns, reference, strict=True)], seed)
    return Fidelity(
        rendering,
        engine,
        precision,
        None if error is None else float(error.mean()),
        None if error is None else float(error.max()),
        score["mean"],
        score["low"],
        score["high"],
        difference["mean"],
        difference["low"],
        difference["high"],
    )


def _with_precision(config: RunConfig, engine: str, precision: str) -> RunConfig:
    values = config.model_dump()
    values["rollouts"] |= {"engine": engine, "precision": precision}
    values["env"] |= {"rendering": "texture"}
    values["execution"] |= {"workers": bounded_workers(config.execution.workers)}
    return RunConfig.model_validate(values)


def _some_frames(store: Store) -> NDArray[np.uint8]:
    records = require_manifest(store, ROLLOUTS).records.values()
    episodes = {episode for record in records for episode in episode_steps(record)}
    frames: list[NDArray[np.uint8]] = []
    for part in read_frames(store, records, episodes):
        frames.append(part)
        if sum(map(len, frames)) >= _FRAMES:
            break
    return np.concatenate(frames)[:_FRAMES]


def _mu(config: RunConfig, run: TrainedRun, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    with num_threads(1):
        return encode_all(make_encoder(config.agent, run.vae_weights, config.rollouts.micro_batch), frames)[0]


def _returns(config: RunConfig, run: TrainedRun, executor: Callable[[RunConfig], Executor]) -> list[float]:
    jobs = scored_jobs(
        config.seed,
        purpose="test",
        generation=0,
        candidate=0,
        parameters=run.controller,
        first_track=config.tracks.test.start,
        episodes=range(config.evaluate.episodes),
        max_steps=config.env.max_episode_steps,
    )
    on = executor(config)
    try:
        with open_rollout_pool(on, config.env, config.agent, run.vae_weights, run.mdnrnn_weights) as pool:
            results = run_episodes(pool, jobs, lambda *_: None, require_finite=True)
    finally:
        on.close()
    return [results[job.id].episode_return for job in jobs]


def _evaluated(store: Store, config: RunConfig) -> list[float]:
    """Returns of the best controller on the test tracks in order, from the run's evaluation."""
    evaluation = latest_round(config.rounds, store, EVALUATION).folder(EVALUATION)
    record = newest(require_manifest(store, evaluation).records, TEST_EPISODES)
    returns = read_test_returns(store, record).get("best", [])
    if config.evaluate.rendering != "gymnasium" or len(returns) != config.evaluate.episodes:
        raise ConfigError(
            f"{store.locate()} has not evaluated its best controller on Gymnasium's drawing, which bench fidelity "
            "compares with (evaluate.rendering: gymnasium, evaluate.controllers: best or both)"
        )
    return returns
