"""M's dream running ahead of the present: several samples, their pictures, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.base.arrays import Array, Frames
from pipeline.data.frames import FRAME_SHAPE
from pipeline.models.steered_dream import SteeredDream

STEPS, SAMPLES = 30, 4
SHOWN = (0, 4, 9, 14, 19, 24, 29)  # steps that are decoded
ROWS = 2  # samples that are shown
_GLOW = np.array([255, 170, 60], np.float32)  # colour of the largest spread
_LARGEST = 64.0  # standard deviation of a colour value at which the glow is full


@dataclass(frozen=True)
class Ahead:
    """Expectation of M for the next steps.

    Attributes:
        frames: V's pictures of the first samples, (ROWS, len(SHOWN), 64, 64, 3) uint8 RGB.
        apart: Standard deviation of each pixel over the samples, as a glow, (len(SHOWN), 64, 64, 3) uint8 RGB.
        spread: Standard deviation of z over the samples, root mean square over its dimensions, (STEPS,) float32.
        reward: Mean over the samples of the predicted rewards, (STEPS,) float32; None if M has no reward head.
        end_probability: Mean probability of an end, (STEPS,) float32; None if M has no done head.
    """

    frames: Frames
    apart: Frames
    spread: Array
    reward: Array | None
    end_probability: Array | None


def look_ahead(dream: SteeredDream, decode: Callable[[Array], Frames]) -> Ahead:
    """Continue the dreams for ``STEPS`` steps.

    Args:
        dream: ``SAMPLES`` dreams that begin now.
        decode: V's decoder: (N, Z) float32 to (N, 64, 64, 3) uint8.
    """
    dreamt = [dream.step() for _ in range(STEPS)]
    z = np.stack([each.z for each in dreamt], axis=1)  # (samples, steps, Z)
    shown = z[:, SHOWN]
    frames = decode(shown.reshape(-1, shown.shape[-1])).reshape(SAMPLES, len(SHOWN), *FRAME_SHAPE)
    deviation = frames.astype(np.float32).std(axis=0).mean(axis=-1, keepdims=True)
    return Ahead(
        frames[:ROWS],
        (np.clip(deviation / _LARGEST, 0, 1) * _GLOW).astype(np.uint8),
        np.sqrt(np.square(z.std(axis=0)).mean(axis=-1)),
        _mean([each.reward for each in dreamt]),
        _mean([each.end_probability for each in dreamt]),
    )


def _mean(steps: list[Array | None]) -> Array | None:
    present = [step for step in steps if step is not None]
    return np.stack(present).mean(axis=1) if present else None
