"""Film an episode: the scene, the agent's frame, and V's reconstruction of the frame."""

from __future__ import annotations

import io
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.progress import Update
from pipeline.config.agent import AgentConfig
from pipeline.config.schema import EnvConfig
from pipeline.envs.environment import Environment
from pipeline.envs.registry import traits_of
from pipeline.models.vae import frames_to_input, output_to_frames
from pipeline.models.weights import load_vae
from pipeline.rollouts.jobs import RolloutJob
from pipeline.rollouts.loop import RolloutWorker
from pipeline.rollouts.tiles import composed, fitted
from pipeline.rollouts.video import encode_video

Frame = NDArray[np.uint8]

_STEPS_PER_PICTURE = 4
_SCENE = (360, 240)  # width, height
_BATCH = 64  # frames that are decoded at once


@dataclass(frozen=True)
class Film:
    """Film of an episode.

    Attributes:
        video: H.264 in MP4, 480x240 pixels, for the report.
        gif: The same film as a GIF, for places without video support.
        info: Facts about the episode: ``track``, ``episode_return``, ``steps``.
    """

    video: bytes
    gif: bytes
    info: dict[str, Any]


class Camera:
    """Takes a picture every few actions of one lane.

    Args:
        every: Number of actions per picture.

    Attributes:
        scenes: Scenes as rendered for people.
        frames: Agent's frames at the same moments, (64, 64, 3) uint8 each.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self.scenes: list[Image.Image] = []
        self.frames: list[Frame] = []
        self._actions = 0

    def __call__(self, env: Environment, frame: Frame) -> None:
        """Count one action of the lane, and take a picture if it is due."""
        if self._actions % self._every == 0:
            self.scenes.append(fitted(env.render(), _SCENE))
            self.frames.append(frame.copy())
        self._actions += 1


def film(
    env: EnvConfig, agent: AgentConfig, vae_weights: bytes, mdnrnn_weights: bytes, job: RolloutJob
) -> Generator[Update, None, Film]:
    """Run a job's episode and film it; a task for an executor.

    Args:
        env: Section ``env`` of a config.
        agent: Sections of the agent.
        vae_weights: Weights of V as safetensors.
        mdnrnn_weights: Weights of M as safetensors.
        job: Episode to film.
    """
    every = max(1, _STEPS_PER_PICTURE // env.action_repeat)
    camera = Camera(every)
    yield Update(0, 1)
    worker = RolloutWorker(env, agent, vae_weights, mdnrnn_weights, watch=camera)
    ((_, result),) = worker.run([job])
    decoded = _decode(agent, vae_weights, camera.frames)
    tiles = zip(camera.frames, decoded, strict=True)  # the agent's frame, above V's reconstruction
    pictures = [composed(scene, each) for scene, each in zip(camera.scenes, tiles, strict=True)]
    steps = every * env.action_repeat
    per_second = traits_of(env).steps_per_second
    video = encode_video(map(np.asarray, pictures), Fraction(per_second / steps).limit_denominator(1000))
    gif = _to_gif(pictures, int(1000 * steps / per_second))
    yield Update(1, 1, {"return": f"{result.episode_return:.1f}"})
    return Film(video, gif, {"track": job.track, "episode_return": result.episode_return, "steps": result.steps})


@torch.inference_mode()
def _decode(config: AgentConfig, vae_weights: bytes, frames: list[Frame]) -> list[Frame]:
    vae = load_vae(config, vae_weights).eval()
    decoded: list[Frame] = []
    for start in range(0, len(frames), _BATCH):
        mu, _ = vae.encode(frames_to_input(np.stack(frames[start : start + _BATCH])))
        decoded += list(output_to_frames(vae.decode(mu)))
    return decoded


def _to_gif(pictures: Sequence[Image.Image], duration_ms: int) -> bytes:
    """Encode a looping GIF that shows each picture for ``duration_ms`` milliseconds."""
    small = [picture.quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=duration_ms, loop=0, optimize=False)
    return buffer.getvalue()
