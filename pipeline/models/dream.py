"""The MDN-RNN as an environment, for a batch of dreams at once. World Models, section 4.2 and appendix A.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models.mdnrnn import MdnRnn, State

Array = NDArray[np.float32]

_DRAWN_AHEAD = 32  # steps for which a stream is asked at a time: a call costs more than the numbers of a step


class DreamStep(NamedTuple):
    """What one action of each dream led to.

    Attributes:
        z: (B, Z) float32, the next latents.
        reward: (B,) float32, what M expects the actions to have earned; None where M has no reward head.
        done: (B,) float32, the probability that the episodes ended there; None where M has no done head.
    """

    z: Array
    reward: Array | None
    done: Array | None


class Dream:
    """B dreams in lockstep.

    Each dream draws from a random stream of its own, so its noise depends on its seed and its steps, never on its
    neighbours. At a fixed B and the paper's sizes that holds for all it gives, to the bit; at another B, or at sizes
    that do not fill the CPU's vectors, the forward pass may round otherwise.

    Args:
        mdnrnn: M; it is put in evaluation mode. Dreams run on its device.
        temperature: how uncertain the dream is; 1.0 is M's own density, the paper trains TakeCover at 1.15.
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
            z: (B, Z) float32, where they begin.
            seeds: B seeds, one for each dream's stream.
            h, c: (B, H) float32, M's state before it sees ``z``; zeros if None.

        Returns:
            ``z``.
        """
        batch_size = len(z)
        if len(seeds) != batch_size:
            raise ValueError(f"{len(seeds)} seeds for {batch_size} dreams: each needs one of its own")
        self._streams = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        zero_h, zero_c = self._mdnrnn.initial_state(batch_size)
        # Copies: what the caller does to its arrays later is not to reach the dream.
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
        ahead = self._steps % _DRAWN_AHEAD
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
        """Random numbers for the next steps: uniform (B, steps, Z), joint (B, steps); noise (B, steps, Z)."""
        shape = (len(self._streams), _DRAWN_AHEAD, self._mdnrnn.z_size)
        uniform = np.empty(shape[:2] if self._mdnrnn.joint else shape, np.float32)
        noise = np.empty(shape, np.float32)
        for stream, uniform_numbers, normal_numbers in zip(self._streams, uniform, noise, strict=True):
            stream.random(dtype=np.float32, out=uniform_numbers)
            stream.standard_normal(dtype=np.float32, out=normal_numbers)
        self._uniform, self._noise = self._tensor(uniform), self._tensor(noise)

    @property
    def h(self) -> Array:
        """(B, H) float32, M's hidden state, which controllers see beside z."""
        return self._array(self._state[0][0])

    @property
    def c(self) -> Array:
        """(B, H) float32, M's cell state."""
        return self._array(self._state[1][0])

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    @staticmethod
    def _array(tensor: torch.Tensor) -> Array:
        return np.array(tensor.cpu())
