"""A small complete run, put together through the storage API: real models and shards, made-up numbers."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from pipeline.config.presets import dump, validate
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import (
    EVALUATION,
    EVOLUTION,
    MDNRNN,
    MDNRNN_WEIGHTS,
    TEST_EPISODES,
    VAE,
    VAE_WEIGHTS,
    newest_record,
    shard_name,
)
from pipeline.data.episodes import Episode, LatentEpisode
from pipeline.data.quality import Assessment
from pipeline.data.rounds import FIRST
from pipeline.data.shards import episodes_to_bytes, latents_to_bytes
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.registry import traits_of
from pipeline.evolution.fitness import scored_jobs
from pipeline.evolution.state import Generation
from pipeline.models import weights
from pipeline.models.controller import ControllerShape
from pipeline.reporting.findings import read_test_returns
from pipeline.rollouts.loop import RolloutWorker
from pipeline.rollouts.video import encode_video
from pipeline.storage.local import LocalStore
from pipeline.storage.manifest import Manifest, commit, read_manifest, read_records, seal, supersede
from pipeline.storage.store import Store

SHARDS, PER_SHARD, Z, A = 3, 2, 4, 3
SECONDS = {"rollouts": 11.5, "vae": 22.25, "latents": 3.0, "mdnrnn": 4.5, "evolution": 77.0, "evaluation": 9.0}
STAGES = {
    "rollouts": "collect",
    "vae": "train-vae",
    "latents": "encode",
    "mdnrnn": "train-mdnrnn",
    "evolution": "evolve",
    "evaluation": "evaluate",
}
VERSIONS = {"python": "3.11.0", "torch": "2.99"}


def make_config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "name": "fake",
        "env": {"max_episode_steps": 40},
        "collect": {"episodes": SHARDS * PER_SHARD, "episode_steps": 40, "episodes_per_shard": PER_SHARD},
        "vae": {"z_size": Z, "validation_fraction": 0.2},
        "mdnrnn": {"hidden_size": 8, "window": 16, "validation_fraction": 0.34},
        "evolve": {"population_size": 4, "episodes": 2, "generations": 6, "validate_every": 2},
        "evaluate": {"episodes": 3},
    }
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (values.setdefault(section, {}) if section else values)[leaf] = value
    return validate(values, "test")


def seal_stage(store: Store, prefix: str, **info: Any) -> None:
    old = read_manifest(store, prefix)
    if old is not None:
        supersede(store, prefix, old)
    common = {"seconds": SECONDS[prefix], "code_version": "c0de", "cpu": "a CPU", "versions": VERSIONS}
    seal(store, prefix, Manifest(STAGES[prefix], {}, {}, {}, read_records(store, prefix), {**common, **info}))


def history(generations: int, validate_every: int) -> list[Generation]:
    rng = np.random.default_rng(generations)
    rows = []
    for n in range(1, generations + 1):
        low, mean, high = sorted(float(x) for x in rng.normal(10 * n, 20, 3))
        validated = n % validate_every == 0
        rows.append(
            Generation(
                n,
                320 * n,
                1.5 * n,
                low,
                mean,
                high,
                5.0,
                0.1,
                9.0 * n if validated else None,
                2.5 if validated else None,
                1e9 + n,
            )
        )
    return rows


def put_evaluation(
    store: Store, generations: int, returns: dict[str, list[float]], *, validate_every: int = 2, video: bytes = b""
) -> dict[str, dict[str, float]]:
    """An evolution taken so far, and its controllers' test episodes; the summary that was committed."""
    rows = history(generations, validate_every)
    commit(store, "evolution", f"history-{generations:06d}.json", json.dumps([asdict(row) for row in rows]).encode())
    seal_stage(store, "evolution", env_steps=rows[-1].env_steps, generations=generations, workers=2)
    tag = f"{generations:06d}-{len(returns['mean']):06d}"
    episodes = [
        {
            "evaluation": tag,
            "generation": generations,
            "controller": name,
            "track": track,
            "episode_return": value,
            "steps": 40,
        }
        for name, values in returns.items()
        for track, value in enumerate(values)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(episodes), buffer)
    commit(store, "evaluation", f"episodes-{tag}.parquet", buffer.getvalue(), rows=len(episodes))
    summary = {
        name: {
            "episodes": len(values),
            "mean": statistics.mean(values),
            "sd": statistics.stdev(values),
            "low": min(values) + 0.25,
            "high": max(values) - 0.25,
            "min": min(values),
            "max": max(values),
        }
        for name, values in returns.items()
    }
    drive: dict[str, Any] = {"controller": "mean", "track": 0, "episode_return": returns["mean"][0], "steps": 40}
    commit(store, "evaluation", f"drive-{tag}.gif", b"GIF89a of " + tag.encode(), folder="files", **drive)
    commit(store, "evaluation", f"drive-{tag}.mp4", video or make_video(generations), folder="files", **drive)
    commit(store, "evaluation", f"summary-{tag}.json", json.dumps(summary).encode(), folder="files")
    came_to = {"engine": "openvino", "precision": "int8"}
    seal_stage(store, "evaluation", env_steps=40 * len(episodes), controllers=summary, **came_to)
    return summary


def random_controllers(
    config: RunConfig, names: Sequence[str] = ("best", "mean"), *, seed: int = 4, scale: float = 0.3
) -> dict[str, NDArray[np.float32]]:
    """Random parameters by name, drawn in the order of the names."""
    shape = ControllerShape.of_agent(config.agent, traits_of(config.env).actions.size)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, scale, shape.num_parameters).astype(np.float32) for name in names}


def random_agent(config: RunConfig, controllers: Mapping[str, NDArray[np.float32]] | None = None) -> TrainedAgent:
    """An agent with random networks; its controllers are ``random_controllers`` unless given."""
    return TrainedAgent(
        config,
        FIRST,
        weights.to_bytes(weights.new_vae(config.agent)),
        weights.to_bytes(weights.new_mdnrnn(config.agent, traits_of(config.env).actions.size)),
        controllers or random_controllers(config),
    )


def put_trained(store: Store, trained: TrainedAgent) -> None:
    """Write a run whose evolution has this agent."""
    store.write("config.yaml", dump(trained.config).encode())
    commit(store, VAE, VAE_WEIGHTS, trained.vae_weights)
    commit(store, MDNRNN, MDNRNN_WEIGHTS, trained.mdnrnn_weights)
    commit(store, EVOLUTION, "controllers-000001.safetensors", save(dict(trained.controllers)), best_generation=1)
    for prefix in (VAE, MDNRNN, EVOLUTION):
        seal(store, prefix, Manifest(prefix, {}, {}, {}, read_records(store, prefix), {}))


def evaluated(trained: TrainedAgent, episodes: Sequence[int]) -> list[float]:
    """Returns of the evaluation on test tracks."""
    config = trained.config
    worker = RolloutWorker(config.test_env, config.agent, trained.vae_weights, trained.mdnrnn_weights)
    jobs = scored_jobs(
        config.seed, purpose="test", generation=0, candidate=0, parameters=trained.controllers["best"],
        first_track=config.tracks.test.start, episodes=episodes, max_steps=config.env.max_episode_steps,
    )  # fmt: skip
    results = dict(worker.run(jobs))
    return [results[job.id].episode_return for job in jobs]


def returns_of(run_dir: Path) -> dict[str, list[float]]:
    """Returns of the newest test episodes of a run."""
    store = LocalStore(run_dir)
    return read_test_returns(store, newest_record(store, EVALUATION, TEST_EPISODES))


def put_agent(store: Store, config: RunConfig) -> None:
    """The config, and controllers that do little, for an evolution that is not sealed yet."""
    store.write("config.yaml", dump(config).encode())
    commit(store, "evolution", "controllers-000006.safetensors", save(random_controllers(config)), best_generation=6)


def make_video(shade: int) -> bytes:
    """A film of 25 pictures, two seconds long."""
    pictures = [np.full((240, 480, 3), 5 * number + shade, np.uint8) for number in range(25)]
    return encode_video(pictures, Fraction(25, 2))


def put_data(
    store: Store,
    config: RunConfig,
    lengths: Iterable[int] = (30, 40, 35, 40, 31, 33),
    seen: NDArray[np.uint8] | None = None,
) -> list[float]:
    """Frames and latents; returns the episodes' returns.

    Args:
        store, config: Store and config of the run.
        lengths: Lengths of the episodes.
        seen: Frames of every episode, (T, 64, 64, 3); None for noise.
    """
    rng = np.random.default_rng(0)
    steps = list(lengths)
    all_returns = []
    for shard in range(SHARDS):
        frames, latents = [], []
        for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            length = steps[number]
            actions = rng.uniform(-1, 1, (length, A)).astype(np.float32)
            rewards = rng.integers(-8, 8, length).astype(np.float32)
            ends = np.zeros(length, np.bool_), np.zeros(length, np.bool_)
            mu = rng.standard_normal((length, Z), dtype=np.float32)
            pixels = rng.integers(0, 255, (length, 64, 64, 3)).astype(np.uint8) if seen is None else seen[:length]
            frames.append(Episode(number, number, pixels, actions, rewards, *ends, final_frame=pixels[-1]))
            latents.append(LatentEpisode(number, number, mu, -np.ones_like(mu), actions, rewards, *ends))
        facts: dict[str, Any] = {
            "rows": sum(map(len, frames)),
            "episodes": [[episode.id, len(episode)] for episode in frames],
        }
        returns = [float(episode.rewards.sum()) for episode in frames]
        all_returns += returns
        commit(store, "rollouts", shard_name(shard), episodes_to_bytes(frames), returns=returns, **facts)
        commit(store, "latents", shard_name(shard), latents_to_bytes(latents), **facts)
    seal_stage(store, "rollouts", env_steps=sum(steps), env_steps_this_session=7, steps_per_second=50.0)
    seal_stage(store, "latents", frames=sum(steps))
    picture = io.BytesIO()
    Image.new("RGB", (128, 128), "green").save(picture, "PNG")
    commit(store, "vae", "vae.safetensors", weights.to_bytes(weights.new_vae(config.agent)))
    commit(store, "vae", "reconstructions.png", picture.getvalue())
    commit(store, "mdnrnn", "mdnrnn.safetensors", weights.to_bytes(weights.new_mdnrnn(config.agent, A)))
    seal_stage(store, "vae", steps=40, device="cpu", best_epoch=1)
    quality = {"held_out": vars(HELD_OUT)} if config.mdnrnn.init == "trained" else {}
    seal_stage(store, "mdnrnn", steps=20, init=config.mdnrnn.init, **quality)
    return all_returns


HELD_OUT = Assessment(
    episodes=17, nll=1.234, reward_error=0.25, reward_correlation=0.75, ends=16, end_recall=0.875, end_precision=None,
    dream_error=0.5, copy_error=1.5,
)  # fmt: skip

VAE_ROWS: list[dict[str, float]] = [
    {"step": 20, "time": 1.0, "loss": 130.5, "reconstruction": 120.0, "kl": 9.5},
    {"step": 40, "time": 2.0, "loss": 60.5, "reconstruction": 50.0, "kl": 12.0},
    {"step": 40, "time": 2.0, "held_out_loss": 62.5, "held_out_reconstruction": 48.0, "held_out_kl": 14.5},
]
MDNRNN_ROWS: list[dict[str, float]] = [
    {"step": 10, "time": 1.0, "loss": 1.5, "nll": 1.4},
    {"step": 10, "time": 1.0, "held_out_loss": 1.3, "held_out_nll": 1.2},
]


def put_metrics(store: Store) -> None:
    for prefix, rows in (("vae", VAE_ROWS), ("mdnrnn", MDNRNN_ROWS)):
        store.write(f"{prefix}/metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
