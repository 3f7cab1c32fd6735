"""Film of a decoded dream next to the real frames that it starts from."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.base import seeding
from pipeline.base.arrays import Frames
from pipeline.base.progress import Update
from pipeline.config.schema import RunConfig
from pipeline.data.artifacts import LATENTS, MDNRNN, ROLLOUTS, mdnrnn_weights, vae_weights
from pipeline.data.episodes import LatentEpisode
from pipeline.data.rounds import Round, rounds_of, vae_folder
from pipeline.data.shards import episode_steps, read_episodes, read_latents
from pipeline.models.dream import Dream
from pipeline.models.torch_forward import TorchDreamStep
from pipeline.models.vae import output_to_frames
from pipeline.models.weights import load_mdnrnn, load_vae
from pipeline.rollouts.video import encode_video
from pipeline.storage.manifest import Record, require_manifest
from pipeline.storage.store import Store
from pipeline.training.held_out import HELD_OUT_OF_M, held_out_of_round

TEMPERATURE = 1.0  # M's own density

# CarRacing zooms in during its first 50 steps; M sees these steps and a few more before it dreams.
_WARM_UP_STEPS = 60
_DREAM_STEPS = 180
_COLUMNS_BEFORE, _COLUMNS_AFTER = 3, 9
_VIDEO_PICTURES = 80
_GAP = 2
_BAR = 3
_ENLARGED = 4
_AWAKE, _DREAMING = (140, 140, 140), (213, 94, 0)


@dataclass(frozen=True)
class DreamFilm:
    """A dream: M sees an episode's first steps, then continues on its own predictions with the recorded actions.

    Attributes:
        episode: Episode ID.
        episode_return: Return of the real episode.
        unseen: Whether the episode was excluded from M's training.
        warm_up_steps: Number of real steps that M saw.
        dream_steps: Number of dreamt steps.
        shown_steps: Steps shown as columns.
        latent_errors: Root mean squared distance of dreamt from real latents, per latent dimension, for each dreamt
            step.
        real: PNGs of the real frames at the shown steps.
        decoded: PNGs of V's decoded frames at the shown steps, from real latents during the warm-up and from dreamt
            ones after it.
        video: MP4 of the real frames (left) and the decoded ones (right), under a grey bar during the warm-up and an
            orange one after it.
    """

    episode: int
    episode_return: float
    unseen: bool
    warm_up_steps: int
    dream_steps: int
    shown_steps: list[int]
    latent_errors: list[float]
    real: list[bytes]
    decoded: list[bytes]
    video: bytes


def film_dream(config: RunConfig, store: Store) -> Generator[Update, None, DreamFilm | None]:
    """Dream and film it in the last round, as a task for an executor.

    Args:
        config: Config of the run.
        store: Store of the run.

    Yields:
        Progress.

    Returns:
        Film; None if every episode has fewer than two steps.
    """
    yield Update(0, 1)
    at = rounds_of(config.rounds)[-1]
    collected = require_manifest(store, at.folder(ROLLOUTS))
    rollouts, actions_per_second = collected.records, collected.info["steps_per_second"] / config.env.action_repeat
    chosen = _choose(config, at, rollouts)
    if chosen is None:
        return None
    name, episode_id, episode_return, unseen = chosen
    latents_record = require_manifest(store, at.folder(LATENTS)).records[name]
    latents = next(item for item in read_latents(store, latents_record) if item.id == episode_id)
    real = next(item for item in read_episodes(store, rollouts[name]) if item.id == episode_id).frames

    warm_up = min(_WARM_UP_STEPS, max(1, len(latents) // 3))
    steps = min(len(latents), warm_up + _DREAM_STEPS)
    z = np.concatenate([latents.mu[:warm_up], _dream(config, store, at, latents, warm_up, steps)])
    decoded = _decode(config, store, at, z)
    shown = [
        *_spread(0, warm_up, _COLUMNS_BEFORE),
        *_spread(warm_up, steps, _COLUMNS_AFTER),
    ]
    errors = np.sqrt(np.square(z[warm_up:] - latents.mu[warm_up:steps]).mean(axis=1))
    yield Update(1, 1)
    return DreamFilm(
        episode=episode_id,
        episode_return=episode_return,
        unseen=unseen,
        warm_up_steps=warm_up,
        dream_steps=steps - warm_up,
        shown_steps=shown,
        latent_errors=[float(error) for error in errors],
        real=[_png(real[step]) for step in shown],
        decoded=[_png(decoded[step]) for step in shown],
        video=_video(real[:steps], decoded, warm_up, actions_per_second),
    )


def _choose(config: RunConfig, at: Round, rollouts: Mapping[str, Record]) -> tuple[str, int, float, bool] | None:
    """Choose the held-out episode of M with the highest return, as the most eventful one; without any, of all episodes.

    Returns:
        Name of the shard, episode ID, return, and whether the episode was excluded from M's training; None if every
        episode has fewer than two steps.
    """
    episodes = {
        episode: (name, episode_return)
        for name, record in rollouts.items()
        for (episode, steps), episode_return in zip(episode_steps(record).items(), record.info["returns"], strict=True)
        if steps >= 2
    }
    unseen = {episode for record in rollouts.values() for episode in episode_steps(record)}
    if config.mdnrnn.init == "trained":
        # The same draw as in training.
        unseen = set(held_out_of_round(config, at, config.mdnrnn.validation_fraction, HELD_OUT_OF_M))
    candidates = sorted(unseen & episodes.keys()) or sorted(episodes)
    if not candidates:
        return None
    best = max(candidates, key=lambda episode: episodes[episode][1])
    return episodes[best][0], best, float(episodes[best][1]), best in unseen


@torch.inference_mode()
def _dream(
    config: RunConfig, store: Store, at: Round, latents: LatentEpisode, warm_up: int, steps: int
) -> NDArray[np.float32]:
    """Dream z of the steps ``warm_up .. steps``, (N, Z) float32, from the latents before them and all actions."""
    mdnrnn = load_mdnrnn(config.agent, latents.actions.shape[1], mdnrnn_weights(store, at.folder(MDNRNN)))
    state = mdnrnn.eval().initial_state(1)
    if warm_up > 1:
        z, actions = (torch.from_numpy(array[None, : warm_up - 1]) for array in (latents.mu, latents.actions))
        _, state = mdnrnn(z, actions, state)
    h, c = (part[0].numpy() for part in state)
    dream = Dream(TorchDreamStep(mdnrnn, 1, TEMPERATURE), 1)
    dream.reset(latents.mu[warm_up - 1 : warm_up], seeds=[seeding.derive(config.seed, "report/dream")], h=h, c=c)
    return np.concatenate([dream.step(latents.actions[t - 1 : t]).z.copy() for t in range(warm_up, steps)])


@torch.inference_mode()
def _decode(config: RunConfig, store: Store, at: Round, z: NDArray[np.float32]) -> Frames:
    """Decode z (N, Z) to frames (N, 64, 64, 3) uint8."""
    vae = load_vae(config.agent, vae_weights(store, vae_folder(config.rounds, at))).eval()
    size = config.encode.batch_size
    batches = (torch.from_numpy(z[start : start + size]) for start in range(0, len(z), size))
    return np.concatenate([output_to_frames(vae.decode(batch)) for batch in batches])


def _spread(start: int, stop: int, count: int) -> list[int]:
    """At most ``count`` steps from ``start`` to ``stop - 1``, both included, evenly."""
    return [int(step) for step in np.linspace(start, stop - 1, min(count, stop - start)).round()]


def _png(frame: Frames) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _video(real: Frames, decoded: Frames, warm_up: int, actions_per_second: float) -> bytes:
    """Encode both side by side at the environment's speed, with each pixel enlarged to a square."""
    steps, height, width, _ = real.shape
    every = max(1, -(-steps // _VIDEO_PICTURES))
    pictures = []
    for step in range(0, steps, every):
        canvas = np.full((_BAR + height, 2 * width + _GAP, 3), _AWAKE, np.uint8)
        canvas[:_BAR, width + _GAP :] = _AWAKE if step < warm_up else _DREAMING
        canvas[_BAR:, :width] = real[step]
        canvas[_BAR:, width + _GAP :] = decoded[step]
        pictures.append(canvas.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1))
    return encode_video(pictures, Fraction(actions_per_second / every).limit_denominator(1000))
