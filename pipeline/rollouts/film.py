"""A drive as a moving picture: the scene, what the agent sees of it, and what V makes of that."""

from __future__ import annotations

import io
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import RunConfig
from pipeline.envs.environment import Environment
from pipeline.models.vae import frames_to_input, output_to_frames
from pipeline.models.weights import load_into, new_vae
from pipeline.progress import Update
from pipeline.rollouts.loop import RolloutJob, RolloutWorker

Frame = NDArray[np.uint8]

STEPS_PER_SECOND = 50  # CarRacing's own clock
_EVERY = 4  # of its steps per picture
_SCENE = (360, 240)  # width, height
_TILE = 120


class Camera:
    """Takes a picture every few actions of one lane."""

    def __init__(self, every: int) -> None:
        self._every = every
        self.scenes: list[Image.Image] = []
        self.frames: list[Frame] = []
        self._actions = 0

    def __call__(self, env: Environment, frame: Frame) -> None:
        if self._actions % self._every == 0:
            self.scenes.append(Image.fromarray(env.render()).resize(_SCENE, Image.Resampling.BOX))
            self.frames.append(frame.copy())
        self._actions += 1


def film(
    config: RunConfig, vae_weights: bytes, mdnrnn_weights: bytes, job: RolloutJob
) -> Generator[Update, None, tuple[bytes, dict[str, Any]]]:
    """Drive a job's episode and film it: the GIF's bytes, and what the drive came to. A task for an executor."""
    every = max(1, _EVERY // config.env.action_repeat)
    camera = Camera(every)
    yield Update(0, 1)
    worker = RolloutWorker(config, vae_weights, mdnrnn_weights, watch=camera)
    ((_, result),) = worker.run([job])
    decoded = _decode(config, vae_weights, camera.frames)
    gif = _to_gif(camera.scenes, camera.frames, decoded, every * config.env.action_repeat)
    yield Update(1, 1, {"return": f"{result.episode_return:.1f}"})
    return gif, {"track": job.track, "episode_return": result.episode_return, "steps": result.steps}


@torch.inference_mode()
def _decode(config: RunConfig, vae_weights: bytes, frames: list[Frame]) -> list[Frame]:
    vae = new_vae(config).eval()
    load_into(vae, vae_weights, "the VAE's weights")
    decoded: list[Frame] = []
    for start in range(0, len(frames), config.encode.batch_size):
        mu, _ = vae.encode(frames_to_input(np.stack(frames[start : start + config.encode.batch_size])))
        decoded += list(output_to_frames(vae.decode(mu)))
    return decoded


def _to_gif(scenes: list[Image.Image], frames: list[Frame], decoded: list[Frame], steps: int) -> bytes:
    """The scene on the left; on the right the agent's frame above its reconstruction.

    Args:
        steps: of the environment, from one picture to the next.
    """
    pictures = []
    for scene, frame, reconstruction in zip(scenes, frames, decoded, strict=True):
        picture = Image.new("RGB", (_SCENE[0] + _TILE, _SCENE[1]))
        picture.paste(scene, (0, 0))
        for row, tile in enumerate((frame, reconstruction)):
            picture.paste(
                Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.NEAREST), (_SCENE[0], row * _TILE)
            )
        pictures.append(picture.quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=1000 * steps // STEPS_PER_SECOND,
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()
