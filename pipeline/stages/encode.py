"""Stage 3: the collected frames become latents, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import RunConfig
from pipeline.executor import Executor
from pipeline.metrics import MetricsLog
from pipeline.models.forward import encode_all, make_encoder
from pipeline.progress import Progress, Update
from pipeline.storage.manifest import Record, commit, read_records, read_verified, require_manifest
from pipeline.storage.shards import LatentEpisode, latents_to_bytes, read_episodes
from pipeline.storage.store import Store

PREFIX = "latents"
ROLLOUTS = "rollouts"
VAE, VAE_WEIGHTS = "vae", "vae.safetensors"


@dataclass(frozen=True)
class EncodeJob:
    """One shard of frames to encode; ``id`` is its name, and that of the shard of latents."""

    id: str
    record: Record = field(repr=False)


class EncodeWorker:
    """Encodes shards and commits them; the plain class behind an encoding actor."""

    def __init__(self, config: RunConfig, store: Store, vae_weights: bytes) -> None:
        self._encoder = make_encoder(config, vae_weights, config.encode.batch_size)
        self._store = store

    def run(self, jobs: Sequence[EncodeJob]) -> Iterator[tuple[str, Record]]:
        for job in jobs:
            yield job.id, self._encode(job.record)

    def _encode(self, record: Record) -> Record:
        latents = []
        for episode in read_episodes(self._store, record):
            mu, logvar = encode_all(self._encoder, episode.frames)
            latents.append(
                LatentEpisode(
                    episode.id, mu, logvar, episode.actions, episode.rewards, episode.terminated, episode.truncated
                )
            )
        return commit(
            self._store,
            PREFIX,
            record.name,
            latents_to_bytes(latents),
            rows=record.rows,
            episodes=record.info["episodes"],
        )


def run(config: RunConfig, store: Store, executor: Executor) -> Mapping[str, Any]:
    """Encode whatever shards are not committed yet."""
    frames = require_manifest(store, ROLLOUTS).records
    vae = require_manifest(store, VAE).records
    present = read_records(store, PREFIX)
    missing = [EncodeJob(name, record) for name, record in frames.items() if name not in present]
    total = sum(record.rows for record in frames.values())
    done = restored = total - sum(job.record.rows for job in missing)
    with Progress("encode", "frame") as show:
        show(Update(done, total, restored=restored))
        metrics = MetricsLog(store, PREFIX, [{"step": restored, "time": time.time(), "shards": len(present)}])
        if missing:
            vae_weights = read_verified(store, vae[VAE_WEIGHTS])
            with executor.pool(EncodeWorker, config, store, vae_weights, jobs_per_call=1) as pool:
                for count, (_, record) in enumerate(pool.map(missing), len(present) + 1):
                    done += record.rows
                    metrics.log(done, {"shards": count})
                    show(Update(done, total, restored=restored))
    return {"frames": total}
