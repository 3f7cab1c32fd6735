"""Dreams that advance step by step from one moment of an episode, steered by the controller or by somebody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.arrays import Array, Frames
from pipeline.data.frames import FRAME_SHAPE
from pipeline.models.dream import Dream

if TYPE_CHECKING:
    from pipeline.models.torch_forward import TorchDreamStep


class Moment(NamedTuple):
    """State of an agent at one observation.

    Attributes:
        z: Latents, (Z,) float32.
        h, c: Hidden and cell states of M before ``z``, (H,) float32.
    """

    z: Array
    h: Array
    c: Array


class Dreamt(NamedTuple):
    """Result of one step of N dreams.

    Attributes:
        z: Next latents, (N, Z) float32.
        action: Actions that led there, as M sees them, (N, A) float32.
        reward: Rewards that M predicts, (N,) float32; None if M has no reward head.
        end_probability: Probability that M gives to an end, (N,) float32; None if M has no done head.
    """

    z: Array
    action: Array
    reward: Array | None
    end_probability: Array | None


@dataclass(frozen=True)
class Imagined:
    """Dreams that all begin at one moment of an episode.

    Attributes:
        frames: V's pictures of the dreamt latents, (N, steps, 64, 64, 3) uint8 RGB.
        z: Dreamt latents, (N, steps, Z) float32.
        actions: Actions as M sees them, (N, steps, A) float32; the first leads to the first frame.
        rewards: Rewards that M predicts, (N, steps) float32; None if M has no reward head.
        end_probabilities: Probability that M gives to an end at each step, (N, steps) float32; None if M has no done
            head.
    """

    frames: Frames
    z: Array
    actions: Array
    rewards: Array | None
    end_probabilities: Array | None


def imagined(steps: Sequence[Dreamt], decode: Callable[[Array], Frames]) -> Imagined:
    """Put the steps of N dreams together.

    Args:
        steps: Steps of all dreams, in order.
        decode: V's decoder: latents, (M, Z) float32, to frames, (M, 64, 64, 3) uint8 RGB.
    """
    z = np.stack([step.z for step in steps], axis=1)
    return Imagined(
        decode(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:2], *FRAME_SHAPE),
        z,
        np.stack([step.action for step in steps], axis=1),
        _stack([step.reward for step in steps]),
        _stack([step.end_probability for step in steps]),
    )


def _stack(parts: Sequence[Array | None]) -> Array | None:
    """Values of N dreams at each step, (N, steps) float32; None if M has no such head."""
    present = [part for part in parts if part is not None]
    return np.stack(present, axis=1) if present else None


class SteeredDream:
    """N dreams that begin at one moment and differ in their noise.

    Args:
        step: M's step for N dreams, with torch, because its temperature can change during a dream.
        choose: Controller: actions as M sees them, (N, A) float32, from z, h and c of all dreams.
        moment: Moment at which the dreams begin.
        seeds: Seeds of the noise, one for each dream.
    """

    def __init__(
        self,
        step: TorchDreamStep,
        choose: Callable[[Array, Array, Array], Array],
        moment: Moment,
        seeds: Sequence[int],
    ) -> None:
        self._step, self._choose, self._count = step, choose, len(seeds)
        self._dream = Dream(step, self._count)
        z, h, c = (np.repeat(array[None], self._count, axis=0) for array in moment)
        self._dream.reset(z, seeds=seeds, h=h, c=c)

    @property
    def temperature(self) -> float:
        """Uncertainty of the next step; 1.0 is M's own density."""
        return self._step.temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be above 0")
        self._step.temperature = temperature

    @property
    def moment(self) -> Moment:
        """Present moment of the first dream."""
        return Moment(self._dream.z[0].copy(), self._dream.h[0].copy(), self._dream.c[0].copy())

    def step(self, action: Array | None = None) -> Dreamt:
        """Act once in every dream.

        Args:
            action: Action of somebody else as M sees it, (A,) float32, in all dreams; None for the controller's own.
        """
        state = (array[: self._count] for array in (self._dream.z, self._dream.h, self._dream.c))
        chosen = self._choose(*state) if action is None else np.repeat(action[None], self._count, axis=0)
        sample = self._dream.step(chosen)
        logits = sample.end_logit
        return Dreamt(
            sample.z.copy(),
            chosen,
            None if sample.reward is None else sample.reward.copy(),
            None if logits is None else (1 / (1 + np.exp(-logits))).astype(np.float32),
        )
