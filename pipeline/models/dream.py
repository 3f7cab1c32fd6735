"""The MDN-RNN as an environment for dreams in lockstep (World Models, section 4.2 and appendix A.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.base.arrays import Array

_STEPS_PER_DRAW = 32  # steps per draw of random numbers: a call costs more than the numbers of one step


class DreamSample(NamedTuple):
    """Result of one action in each dream; the arrays are valid until the next call.

    Attributes:
        z: Next latents, (B, Z) float32.
        h, c: Next hidden and cell states of M, (B, H) float32.
        reward: Rewards that M predicts for the actions, (B,) float32; None if M has no reward head.
        end_logit: Logits of the episodes' ends, (B,) float32; None if M has no done head.
    """

    z: Array
    h: Array
    c: Array
    reward: Array | None
    end_logit: Array | None


class DreamStep(Protocol):
    """M's whole step: the LSTM, the heads and the sample of the next z, in batches of one fixed size.

    At a fixed batch size, the bits of a row's result do not depend on its position or on the other rows.

    Attributes:
        batch_size: Dreams per call, B.
        z_size, action_size, hidden_size: Sizes Z, A and H.
        joint: Whether one component is drawn for the whole z.
    """

    batch_size: int
    z_size: int
    action_size: int
    hidden_size: int
    joint: bool

    def __call__(self, z: Array, action: Array, h: Array, c: Array, uniform: Array, noise: Array) -> DreamSample:
        """Compute the next step.

        Args:
            z: Latents, (B, Z) float32.
            action: Actions, (B, A) float32.
            h: Hidden state, (B, H) float32.
            c: Cell state, (B, H) float32.
            uniform: Random numbers in [0, 1) that pick the components, (B, Z) float32, or (B, 1) for a joint mixture.
            noise: Standard normal random numbers, (B, Z) float32.
        """


class Dream:
    """Dreams in lockstep, in the slots 0 .. n-1.

    Each dream has its own random stream, so its noise depends on its seed and its step only. M runs on batches of one
    fixed size, as many as cover the active slots.

    Args:
        step: M's step.
        slots: Largest number of dreams, S.

    Attributes:
        z: Latents, (S', Z) float32, S' being S rounded up to whole batches.
        h, c: Hidden and cell states of M, (S', H) float32; inputs of controllers in addition to z.
    """

    def __init__(self, step: DreamStep, slots: int) -> None:
        self._step = step
        size = step.batch_size
        rows = -(-slots // size) * size
        self.z = np.zeros((rows, step.z_size), np.float32)
        self.h = np.zeros((rows, step.hidden_size), np.float32)
        self.c = np.zeros_like(self.h)
        self._actions = np.zeros((rows, step.action_size), np.float32)
        self._rewards = np.zeros(rows, np.float32)
        self._end_logits = np.zeros(rows, np.float32)
        self._streams: list[np.random.Generator | None] = [None] * rows
        self._drawn = np.zeros(rows, np.int64)
        self._uniform = np.zeros((rows, _STEPS_PER_DRAW, 1 if step.joint else step.z_size), np.float32)
        self._noise = np.zeros((rows, _STEPS_PER_DRAW, step.z_size), np.float32)
        self._rows = np.arange(rows)

    def begin(
        self, slot: int, z: Array, stream: np.random.Generator, h: Array | None = None, c: Array | None = None
    ) -> None:
        """Begin a dream in a slot.

        Args:
            slot: Slot of the dream.
            z: Initial latent, (Z,) float32.
            stream: Random stream of the dream.
            h: Hidden state of M before ``z``, (H,) float32; zeros if None.
            c: Cell state of M before ``z``, (H,) float32; zeros if None.
        """
        self.z[slot] = z
        self.h[slot] = 0 if h is None else h
        self.c[slot] = 0 if c is None else c
        self._streams[slot], self._drawn[slot] = stream, _STEPS_PER_DRAW

    def reset(self, z: Array, *, seeds: Sequence[int], h: Array | None = None, c: Array | None = None) -> None:
        """Begin a dream in each of the first slots.

        Args:
            z: Initial latents, (N, Z) float32.
            seeds: N seeds, one per dream.
            h: Hidden states of M before ``z``, (N, H) float32; zeros if None.
            c: Cell states of M before ``z``, (N, H) float32; zeros if None.

        Raises:
            ValueError: The number of seeds differs from the number of dreams.
        """
        if len(seeds) != len(z):
            raise ValueError(f"{len(seeds)} seeds for {len(z)} dreams: each dream needs its own seed")
        for slot, seed in enumerate(seeds):
            stream = np.random.Generator(np.random.PCG64(seed))
            self.begin(slot, z[slot], stream, None if h is None else h[slot], None if c is None else c[slot])

    def move(self, source: int, target: int) -> None:
        """Move a dream to another slot."""
        for array in (self.z, self.h, self.c, self._drawn, self._uniform, self._noise):
            array[target] = array[source]
        self._streams[target] = self._streams[source]

    def step(self, actions: Array) -> DreamSample:
        """Act once in each of the first N dreams.

        Args:
            actions: Actions, (N, A) float32.

        Returns:
            Results of the N dreams, whose ``z``, ``h`` and ``c`` are views of the attributes.
        """
        active = len(actions)
        self._actions[:active] = actions
        self._draw_ahead(active)
        # Slots beyond the active ones pad the last batch, with any random numbers, and stay as they are.
        at = np.minimum(self._drawn, _STEPS_PER_DRAW - 1)
        has_reward = has_end = False
        for start in range(0, active, self._step.batch_size):
            rows = slice(start, start + self._step.batch_size)
            each = self._rows[rows]
            sample = self._step(
                self.z[rows],
                self._actions[rows],
                self.h[rows],
                self.c[rows],
                self._uniform[each, at[rows]],
                self._noise[each, at[rows]],
            )
            count = min(self._step.batch_size, active - start)
            kept = slice(start, start + count)
            self.z[kept], self.h[kept], self.c[kept] = sample.z[:count], sample.h[:count], sample.c[:count]
            if has_reward := sample.reward is not None:
                self._rewards[kept] = sample.reward[:count]
            if has_end := sample.end_logit is not None:
                self._end_logits[kept] = sample.end_logit[:count]
        self._drawn[:active] += 1
        return DreamSample(
            self.z[:active],
            self.h[:active],
            self.c[:active],
            self._rewards[:active] if has_reward else None,
            self._end_logits[:active] if has_end else None,
        )

    def _draw_ahead(self, active: int) -> None:
        """Draw random numbers for the next steps of the active dreams that have used up theirs."""
        for slot in np.flatnonzero(self._drawn[:active] == _STEPS_PER_DRAW):
            stream = self._streams[slot]
            assert stream is not None, "an active dream has begun"
            stream.random(dtype=np.float32, out=self._uniform[slot])
            stream.standard_normal(dtype=np.float32, out=self._noise[slot])
            self._drawn[slot] = 0
