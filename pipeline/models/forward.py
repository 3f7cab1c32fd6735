"""The forward pass that rollouts and the encode stage use: V's encoder and M's step, in batches of one fixed size.

At a fixed batch size a row's result does not depend, to the bit, on its position or its neighbours; at another batch
size it may. So callers give exactly ``batch_size`` rows, padding the last batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.vae import Vae, frames_to_input

Array = NDArray[np.float32]


def sample_z(mu: Array, logvar: Array, noise: Array) -> Array:
    """z = mu + exp(logvar / 2) * noise, any one shape: what ``vae.sample_z`` is to torch."""
    z: Array = mu + np.exp(logvar * np.float32(0.5)) * noise
    return z


class Encoder:
    """V's encoder.

    Args:
        vae: the whole V; only its encoder is used.
        batch_size: B, rows of every call.
    """

    def __init__(self, vae: Vae, batch_size: int) -> None:
        self.batch_size = batch_size
        self.z_size = vae.z_size
        self._vae = vae.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
        """frames: (B, 64, 64, 3) uint8. Returns mu and logvar, (B, Z) float32."""
        assert frames.shape == (self.batch_size, 64, 64, 3), frames.shape
        mu, logvar = self._vae.encode(frames_to_input(frames))
        return mu.numpy(), logvar.numpy()

    def encode_all(self, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
        """Any number of frames (N, 64, 64, 3) uint8, batch by batch, the last one padded. Returns (N, Z) twice."""
        count = len(frames)
        mu = np.empty((count, self.z_size), np.float32)
        logvar = np.empty_like(mu)
        batch = np.zeros((self.batch_size, 64, 64, 3), np.uint8)
        for start in range(0, count, self.batch_size):
            rows = min(self.batch_size, count - start)
            batch[:rows] = frames[start : start + rows]
            batch[rows:] = 0
            batch_mu, batch_logvar = self(batch)
            mu[start : start + rows], logvar[start : start + rows] = batch_mu[:rows], batch_logvar[:rows]
        return mu, logvar


class RnnStep:
    """One step of M's LSTM; its heads are not needed to drive.

    Args:
        mdnrnn: the whole M.
        batch_size: B, rows of every call.
    """

    def __init__(self, mdnrnn: MdnRnn, batch_size: int) -> None:
        self.batch_size = batch_size
        self.hidden_size = mdnrnn.hidden_size
        self._lstm = mdnrnn.lstm.eval()

    @torch.inference_mode()
    def __call__(self, z: Array, action: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """z (B, Z), action (B, A), h and c (B, H), all float32. Returns the next h and c."""
        assert len(z) == self.batch_size, z.shape
        rnn_input = torch.from_numpy(np.concatenate([z, action], axis=1))[:, None]
        _, (h_next, c_next) = self._lstm(rnn_input, (torch.from_numpy(h)[None], torch.from_numpy(c)[None]))
        return h_next[0].numpy(), c_next[0].numpy()
