"""The MDN-RNN as an environment for a batch of dreams (World Models, section 4.2 and appendix A.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models.mdnrnn import MdnRnn, State

Array = NDArray[np.float32]

_STEPS_PER_DRAW = 32  # steps per draw of random numbers: a call costs more than the numbers of one step


class DreamStep(NamedTuple):
    """Result of one action in each dream.

    Attributes:
        z: Next latents, (B, Z) float32.
        reward: Rewards that M predicts for the actions, (B,) float32; None if M has no reward head.
        done: Probabilities that the episodes ended, (B,) float32; None if M has no done head.
    """

    z: Array
    reward: Array | None
    done: Array | None


class Dream:
    """A batch of B dreams in lockstep.

    Each dream has its own random stream, so its noise depends on its seed and step only, not on the other dreams. At a
    fixed B and the paper's sizes, this holds bit-for-bit for all its outputs; at another B, or at sizes that do not
    fill the CPU's vector registers, the forward pass may round differently.

    Args:
        mdnrnn: M; set to evaluation mode. Dreams run on its device.
        temperature: Uncertainty of the dream; 1.0 is M's own density, and the paper trains TakeCover at 1.15.

    Raises:
        ValueError: The temperature is not above 0.
    """

    def __init__(self, mdnrnn: MdnRnn, *, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be above 0")
        self.temperature = temperature
        self._mdnrnn = mdnrnn.eval()
        self._device = mdnrnn.heads.weight.device
        self._streams: list[np.random.Generator] = []
        self._z = torch.empty(0)
        self._state: State = mdnrnn.initial_state(0)
        self._steps = 0
        self._uniform = self._noise = torch.empty(0)

    @torch.inference_mode()
    def reset(self, z: Array, *, seeds: Sequence[int], h: Array | None = None, c: Array | None = None) -> Array:
        """Begin B dreams.

        Args:
            z: Initial latents, (B, Z) float32.
            seeds: B seeds, one per dream.
            h: Hidden state of M before ``z``, (B, H) float32; zeros if None.
            c: Cell state of M before ``z``, (B, H) float32; zeros if None.

        Returns:
            Initial latents, ``z``.

        Raises:
            ValueError: The number of seeds differs from the number of dreams.
        """
        batch_size = len(z)
        if len(seeds) != batch_size:
            raise ValueError(f"{len(seeds)} seeds for {batch_size} dreams: each dream needs its own seed")
        self._streams = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        zero_h, zero_c = self._mdnrnn.initial_state(batch_size)
        # Copies, so that the caller may change its arrays later.
        self._z = self._tensor(z.copy())
        self._state = (
            zero_h if h is None else self._tensor(h.copy())[None],
            zero_c if c is None else self._tensor(c.copy())[None],
        )
        self._steps = 0
        return z

    @torch.inference_mode()
    def step(self, actions: Array) -> DreamStep:
        """Act once in every dream; actions: (B, A) float32."""
        ahead = self._steps % _STEPS_PER_DRAW
        if ahead == 0:
            self._draw_ahead()
        self._steps += 1
        hidden, self._state = self._mdnrnn.lstm(
            torch.cat([self._z, self._tensor(actions)], dim=1)[:, None], self._state
        )
        sample = self._mdnrnn.sample(hidden[:, 0], self.temperature, self._uniform[:, ahead], self._noise[:, ahead])
        self._z = sample.z
        return DreamStep(
            self._array(sample.z),
            None if sample.reward is None else self._array(sample.reward),
            None if sample.done_logit is None else self._array(sample.done_logit.sigmoid()),
        )

    def _draw_ahead(self) -> None:
        """Draw random numbers for the next steps.

        Shapes: uniform (B, steps, Z), or (B, steps) for a joint mixture; noise (B, steps, Z).
        """
        shape = (len(self._streams), _STEPS_PER_DRAW, self._mdnrnn.z_size)
        uniform = np.empty(shape[:2] if self._mdnrnn.joint else shape, np.float32)
        noise = np.empty(shape, np.float32)
        for stream, uniform_numbers, normal_numbers in zip(self._streams, uniform, noise, strict=True):
            stream.random(dtype=np.float32, out=uniform_numbers)
            stream.standard_normal(dtype=np.float32, out=normal_numbers)
        self._uniform, self._noise = self._tensor(uniform), self._tensor(noise)

    @property
    def h(self) -> Array:
        """Hidden state of M, (B, H) float32; an input of controllers in addition to z."""
        return self._array(self._state[0][0])

    @property
    def c(self) -> Array:
        """Cell state of M, (B, H) float32."""
        return self._array(self._state[1][0])

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    @staticmethod
    def _array(tensor: torch.Tensor) -> Array:
        return np.array(tensor.cpu())
