"""Stage 3: encode the collected frames to latents, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.base import seeding
from pipeline.base.progress import Progress, Update
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import LATENTS, ROLLOUTS, VAE, vae_weights
from pipeline.data.episodes import LatentEpisode
from pipeline.data.rounds import FIRST, Round, encoded_rounds, vae_folder, vae_round
from pipeline.data.shards import episodes_in, latents_to_bytes, read_frames
from pipeline.data.streaming import READ_AHEAD, StorageWait, commit_behind, read_ahead
from pipeline.execution.protocol import Executor, Resources
from pipeline.execution.stage_progress import watched
from pipeline.models.forward import encode_all, make_encoder
from pipeline.models.precision import resolved
from pipeline.stages.table import ENCODE
from pipeline.storage.manifest import Record, commit, read_records, require_manifest, require_records, sealed_records
from pipeline.storage.metrics import MetricsLog
from pipeline.storage.store import Store
from pipeline.training.held_out import HELD_OUT_OF_V, held_out_of_round

_SHARDS_AT_ONCE = READ_AHEAD + 2  # per worker: shards read ahead, one being encoded, one being committed


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
        agent: Sections of the agent.
        batch_size: Frames in a forward pass.
        store: Store to read frames from and commit latents to.
        folder: Folder of the latents.
        vae_weights: Weights of V as safetensors bytes.

    Attributes:
        waiting: Time spent waiting for storage, in seconds.
    """

    def __init__(self, agent: AgentConfig, batch_size: int, store: Store, folder: str, vae_weights: bytes) -> None:
        self.waiting = StorageWait()
        self._encoder = make_encoder(agent, vae_weights, batch_size)
        self._store, self._folder = store, folder

    def run(self, jobs: Iterable[EncodeJob]) -> Iterator[tuple[str, Record]]:
        """Encode and commit the shards, yielding (job ID, record) for each."""
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
            self._folder,
            record.name,
            latents_to_bytes(latents),
            rows=record.rows,
            episodes=record.info["episodes"],
        )


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Encode the uncommitted shards: with a new V of all rounds so far, else of this round alone.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    v, folder = vae_round(config.rounds, at), at.folder(LATENTS)
    frames = sealed_records(store, (each.folder(ROLLOUTS) for each in encoded_rounds(config.rounds, at)))
    present = read_records(store, folder)
    missing = [EncodeJob(name, record) for name, record in frames.items() if name not in present]
    total = sum(record.rows for record in frames.values())
    done = restored = total - sum(job.record.rows for job in missing)
    rows = [{"step": restored, "time": time.time(), "shards": len(present)}]
    with watched(executor, ENCODE, "frame") as show, MetricsLog(store, folder, rows) as metrics:
        show(Update(done, total, restored=restored))
        if missing:
            with executor.pool(
                EncodeWorker,
                config.agent,
                config.encode.batch_size,
                store,
                folder,
                vae_weights(store, v.folder(VAE)),
                jobs_at_once=_SHARDS_AT_ONCE,
            ) as pool:
                for count, (_, record) in enumerate(pool.map(missing), len(present) + 1):
                    done += record.rows
                    metrics.log(done, {"shards": count})
                    show(Update(done, total, restored=restored, metrics={"encoded_frames": record.rows}))
    require_records(store, folder, frames.keys())
    info = {"frames": total, **resolved(config.rollouts, exact=config.execution.exact)}
    if at != FIRST:  # V's training measures it on the games of the first round
        with Progress("V on the agent's own games", "frame") as shown:
            info["reconstruction"] = executor.run(
                reconstruction_error, config, store, at, resources=Resources(config.vae.threads), on_update=shown
            )
    return info


def reconstruction_error(config: RunConfig, store: Store, at: Round) -> Generator[Update, None, float]:
    """Squared error of V's reconstructions of a round's held-out frames, summed over a frame; a task.

    z is sampled, as in the held-out loss of V's training.
    """
    # torch is imported here, not at the top: workers that encode do not need it.
    import torch

    from pipeline.models.vae import frames_to_input
    from pipeline.models.weights import load_vae

    vae = load_vae(config.agent, vae_weights(store, vae_folder(config.rounds, at))).eval()
    held_out = held_out_of_round(config, at, config.vae.validation_fraction, HELD_OUT_OF_V)
    records = require_manifest(store, at.folder(ROLLOUTS)).records.values()
    size, total, count = config.vae.batch_size, 0.0, 0
    generator = torch.Generator().manual_seed(seeding.derive(config.seed, "encode/reconstruction", at.number))
    with torch.inference_mode():
        for frames in read_frames(store, records, set(held_out)):
            for start in range(0, len(frames), size):
                batch = frames_to_input(frames[start : start + size])
                noise = torch.randn(len(batch), vae.z_size, generator=generator)
                total += float((vae(batch, noise)[0] - batch).square().sum())
                count += len(batch)
            yield Update(count, config.vae.max_validation_frames)
            if count >= config.vae.max_validation_frames:
                break
    return total / count
