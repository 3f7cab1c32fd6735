"""Stage 2: train V on the collected frames."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.base import seeding
from pipeline.base.arrays import Frames
from pipeline.base.progress import Update
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import RECONSTRUCTIONS, ROLLOUTS, VAE, VAE_WEIGHTS, vae_weights
from pipeline.data.frames import FRAME_SHAPE
from pipeline.data.rounds import FIRST, Round, vae_folder
from pipeline.data.shards import episode_steps, read_frames
from pipeline.execution.protocol import Executor, Resources
from pipeline.execution.stage_progress import watched
from pipeline.models import weights
from pipeline.models.vae import frames_to_input, output_to_frames, vae_loss
from pipeline.stages.description import describe_vae
from pipeline.stages.table import TRAIN_VAE
from pipeline.storage.manifest import Record, commit, read_records, sealed_records
from pipeline.storage.store import Store
from pipeline.training.adam import Adam
from pipeline.training.blocks import BlockStream
from pipeline.training.hardware import gpus_for, precision_name, resolve_device, training_precision
from pipeline.training.held_out import HELD_OUT_OF_V, held_out_so_far
from pipeline.training.loop import Fit, Schedule

_PICTURE_FRAMES = 12


@dataclass(frozen=True)
class _FrameBlock:
    """Frames of a block.

    Attributes:
        frames: Frames, (N, 64, 64, 3) uint8.
    """

    frames: Frames

    def arrange(self, order: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
        """See ``LoadedBlock.arrange``: frames are alike."""
        return order

    def batch(self, items: NDArray[np.int64]) -> Frames:
        return self.frames[items]


@dataclass(frozen=True)
class HeldOut:
    """Held-out frames, read from the shards each time they are needed.

    Attributes:
        store: Store to read from.
        records: Records of the shards by name.
        episodes: IDs of the held-out episodes.
        max_frames: Maximum number of frames; the episode that exceeds it is cut.
    """

    store: Store
    records: Mapping[str, Record]
    episodes: Sequence[int]
    max_frames: int

    def frames(self) -> Iterator[Frames]:
        """Yield each held-out episode's frames, (T, 64, 64, 3) uint8, up to ``max_frames`` in total."""
        left = self.max_frames
        for frames in read_frames(self.store, self.records.values(), set(self.episodes)):
            yield frames[:left]
            left -= len(frames)
            if left <= 0:
                return


class VaeObjective:
    """V with its optimiser and loss; see ``pipeline.training.loop.Objective``.

    Args:
        agent: Sections of the agent.
        held_out: Held-out frames.
        before: Weights to start from, as safetensors bytes; None: random.
    """

    def __init__(self, agent: AgentConfig, held_out: HeldOut, before: bytes | None = None) -> None:
        self._config, self._seed = agent.vae, agent.seed
        self._held_out = held_out
        self.device = resolve_device(agent.vae.device)
        self.precision = training_precision(agent.vae.precision, self.device)
        vae = weights.new_vae(agent) if before is None else weights.load_vae(agent, before)
        self.module = vae.to(self.device)
        self.optimizer = Adam(self.module.parameters(), agent.vae.learning_rate)

    def losses(self, batch: Frames, seed_index: int) -> Mapping[str, Tensor]:
        """See ``Objective.losses``."""
        frames = frames_to_input(batch, self.device)
        seed = seeding.derive(self._seed, "vae/noise", seed_index)
        noise = torch.randn(len(batch), self.module.z_size, generator=torch.Generator().manual_seed(seed))
        mixed = self.precision is torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            reconstruction, mu, logvar = self.module(frames, noise.to(self.device))
        loss = vae_loss(reconstruction, frames, mu, logvar, self._config.kl_tolerance)
        return {"loss": loss.total, "reconstruction": loss.reconstruction, "kl": loss.kl}

    def before_step(self) -> None:
        """Do nothing: the paper does not clip V's gradients."""

    def held_out(self) -> Iterator[tuple[int, Frames]]:
        """See ``Objective.held_out``."""
        size = self._config.batch_size
        for frames in self._held_out.frames():
            for start in range(0, len(frames), size):
                batch = frames[start : start + size]
                yield len(batch), batch


def frame_stream(
    agent: AgentConfig, store: Store, records: Mapping[str, Record], held_out: Sequence[int]
) -> BlockStream[Frames]:
    """Stream V's training frames in shuffled batches, (N, 64, 64, 3) uint8, without the held-out episodes.

    Args:
        agent: Sections of the agent.
        store: Store of the run.
        records: Records of the shards by name.
        held_out: IDs of the held-out episodes.
    """
    left_out = set(held_out)
    episodes = {episode for record in records.values() for episode in episode_steps(record)}

    def load(block: Sequence[Record], seed: int) -> _FrameBlock:
        counts = [sum(n for e, n in episode_steps(r).items() if e not in left_out) for r in block]
        frames = np.empty((sum(counts), *FRAME_SHAPE), np.uint8)
        start = 0
        for part in read_frames(store, block, episodes - left_out):
            frames[start : start + len(part)] = part
            start += len(part)
        return _FrameBlock(frames)

    return BlockStream(
        records,
        items_of=lambda episode, steps: 0 if episode in left_out else steps,
        load=load,
        batch_size=agent.vae.batch_size,
        block_items=agent.vae.shuffle_frames,
        seed=agent.seed,
        purpose="vae",
    )


def train(config: RunConfig, store: Store, at: Round = FIRST) -> Generator[Update, None, Mapping[str, Any]]:
    """Train V, commit its weights and a picture of reconstructions; the task for the executor. Returns a summary."""
    prefix, before = at.folder(VAE), at.previous
    description = describe_vae(config)
    records = sealed_records(store, (each.folder(ROLLOUTS) for each in at.so_far))
    held_out = held_out_so_far(config, at, config.vae.validation_fraction, HELD_OUT_OF_V)
    stream = frame_stream(config.agent, store, records, held_out)
    held_out_frames = HeldOut(store, records, held_out, config.vae.max_validation_frames)
    start = None if before is None else vae_weights(store, vae_folder(config.rounds, before))
    objective = VaeObjective(config.agent, held_out_frames, start)
    fit = Fit(
        store,
        prefix,
        stream,
        objective,
        Schedule.of(config.vae),
        TRAIN_VAE,
        hardware=f"{objective.device.type} {objective.precision}",
        exact=config.execution.exact,
        continues=at.previous is not None,
    )
    summary = yield from fit.run()
    for _, batch in objective.held_out():
        objective.module.calibrate(frames_to_input(batch, objective.device))
    commit(store, prefix, VAE_WEIGHTS, weights.to_bytes(objective.module, description))
    if RECONSTRUCTIONS not in read_records(store, prefix):
        commit(store, prefix, RECONSTRUCTIONS, picture_of_reconstructions(objective, held_out_frames))
    return {
        **summary,
        "device": str(objective.device),
        "precision": precision_name(objective.precision),
        "storage_wait_s": stream.waiting.seconds,
    }


@torch.inference_mode()
def picture_of_reconstructions(objective: VaeObjective, held_out: HeldOut) -> bytes:
    """Draw a PNG: evenly spaced held-out frames in the upper row, their reconstructions by V below."""
    frames = np.concatenate(list(held_out.frames()))
    chosen = frames[np.linspace(0, len(frames) - 1, min(_PICTURE_FRAMES, len(frames))).astype(int)]
    objective.module.eval()
    mu, _ = objective.module.encode(frames_to_input(chosen, objective.device))
    decoded = output_to_frames(objective.module.decode(mu))
    rows = [np.concatenate(list(row), axis=1) for row in (chosen, decoded)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "PNG")
    return buffer.getvalue()


def run(config: RunConfig, store: Store, executor: Executor, at: Round = FIRST) -> Mapping[str, Any]:
    """Train V as one task, on a GPU if there is one.

    Args:
        config: Config of the run.
        store: Store of the run, fenced by the session.
        executor: Executor of the stage's work.
        at: Round of the stage.
    """
    resources = Resources(config.vae.threads, gpus_for(config.vae.device, executor))
    with watched(executor, TRAIN_VAE, "step") as show:
        return executor.run(train, config, store, at, resources=resources, on_update=show)
