"""Stage 3: encode the collected frames to latents, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.base.progress import Update
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import LATENTS, ROLLOUTS, vae_weights
from pipeline.data.episodes import LatentEpisode
from pipeline.data.shards import episodes_in, latents_to_bytes
from pipeline.data.streaming import READ_AHEAD, StorageWait, commit_behind, read_ahead
from pipeline.execution.protocol import Executor
from pipeline.execution.watching import watched
from pipeline.models.forward import encode_all, make_encoder
from pipeline.models.precision import resolved
from pipeline.storage.manifest import Record, commit, read_records, require_manifest, require_records
from pipeline.storage.metrics import MetricsLog
from pipeline.storage.store import Store

PREFIX = LATENTS
SHARDS_AT_ONCE = READ_AHEAD + 2  # per worker: shards read ahead, one being encoded, one being committed


@dataclass(frozen=True)
class EncodeJob:
    """One shard of frames to encode.

    Attributes:
        id: Name of the shard, and of the resulting shard of latents.
        record: Record of the shard of frames.
    """

    id: str
    record: Record = field(repr=False)


class EncodeWorker:
    """Encodes shards and commits them; the plain class behind an encoding actor.

    Args:
        config: Config of the run.
        store: Store to read frames from and commit latents to.
        vae_weights: Weights of V as safetensors bytes.

    Attributes:
        waiting: Time spent waiting for storage, in seconds.
    """

    def __init__(self, config: RunConfig, store: Store, vae_weights: bytes) -> None:
        self.waiting = StorageWait()
        self._encoder = make_encoder(config.agent, vae_weights, config.encode.batch_size)
        self._store = store

    def run(self, jobs: Iterable[EncodeJob]) -> Iterator[tuple[str, Record]]:
        """Encode and commit the shards, yielding (job id, record) for each."""
        shards = read_ahead(self._store, (job.record for job in jobs), self.waiting)
        return commit_behind(((record.name, self._encode(record, data)) for record, data in shards), self.waiting)

    def _encode(self, record: Record, data: bytes) -> Callable[[], Record]:
        """Encode a shard's bytes; returns a function that commits the latents."""
        latents = []
        for episode in episodes_in(data, self._store.locate(record.key)):
            mu, logvar = encode_all(self._encoder, episode.frames)
            latents.append(
                LatentEpisode(
                    episode.id,
                    episode.track,
                    mu,
                    logvar,
                    episode.actions,
                    episode.rewards,
                    episode.terminated,
                    episode.truncated,
                )
            )
        return partial(
            commit,
            self._store,
            PREFIX,
            record.name,
            latents_to_bytes(latents),
            rows=record.rows,
            episodes=record.info["episodes"],
        )


def run(config: RunConfig, store: Store, executor: Executor) -> Mapping[str, Any]:
    """Encode the shards that are not committed yet."""
    frames = require_manifest(store, ROLLOUTS).records
    present = read_records(store, PREFIX)
    missing = [EncodeJob(name, record) for name, record in frames.items() if name not in present]
    total = sum(record.rows for record in frames.values())
    done = restored = total - sum(job.record.rows for job in missing)
    rows = [{"step": restored, "time": time.time(), "shards": len(present)}]
    with watched(executor, "encode", "frame") as show, MetricsLog(store, PREFIX, rows) as metrics:
        show(Update(done, total, restored=restored))
        if missing:
            with executor.pool(EncodeWorker, config, store, vae_weights(store), jobs_at_once=SHARDS_AT_ONCE) as pool:
                for count, (_, record) in enumerate(pool.map(missing), len(present) + 1):
                    done += record.rows
                    metrics.log(done, {"shards": count})
                    show(Update(done, total, restored=restored, metrics={"encoded_frames": record.rows}))
    require_records(store, PREFIX, frames.keys())
    return {"frames": total, **resolved(config)}
