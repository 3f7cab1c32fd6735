"""The forward pass that rollouts and the encode stage use: V's encoder and M's step, in batches of one fixed size.

At a fixed batch size a row's result does not depend, to the bit, on its position or its neighbours; at another batch
size it may. So callers give exactly ``batch_size`` rows, padding the last batch.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import RunConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.models.precision import resolve_precision

Array = NDArray[np.float32]


class Encoder(Protocol):
    """V's encoder.

    Attributes:
        batch_size: B, rows of every call.
        z_size: Z.
    """

    batch_size: int
    z_size: int

    def __call__(self, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
        """frames: (B, 64, 64, 3) uint8. Returns mu and logvar, (B, Z) float32, good until the next call."""


class RnnStep(Protocol):
    """One step of M's LSTM; its heads are not needed to drive.

    Attributes:
        batch_size: B, rows of every call.
        hidden_size: H.
    """

    batch_size: int
    hidden_size: int

    def __call__(self, z: Array, action: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """z (B, Z), action (B, A), h and c (B, H), all float32. Returns the next h and c, good until the next call."""


def make_encoder(config: RunConfig, vae_weights: bytes, batch_size: int) -> Encoder:
    """V's encoder on the engine and at the precision of ``config.rollouts``.

    Args:
        config: the run's.
        vae_weights: safetensors bytes.
        batch_size: B.

    Raises:
        DamagedDataError: the weights are not this config's.
    """
    precision = resolve_precision(config.rollouts)
    if config.rollouts.engine == "openvino":
        from pipeline.models.openvino_forward import OpenVinoEncoder

        return OpenVinoEncoder(vae_weights, config.vae.z_size, batch_size, precision)
    import torch

    from pipeline.models.torch_forward import TorchEncoder
    from pipeline.models.weights import load_into, new_vae

    vae = new_vae(config)
    load_into(vae, vae_weights, "the VAE's weights")
    return TorchEncoder(vae, batch_size, torch.bfloat16 if precision == "bfloat16" else torch.float32)


def make_rnn_step(config: RunConfig, mdnrnn_weights: bytes, batch_size: int, action_size: int) -> RnnStep:
    """M's step on the engine of ``config.rollouts``, always in float32.

    Raises:
        DamagedDataError: the weights are not this config's.
    """
    if config.rollouts.engine == "openvino":
        from pipeline.models.openvino_forward import OpenVinoRnnStep

        return OpenVinoRnnStep(mdnrnn_weights, config.vae.z_size + action_size, config.mdnrnn.hidden_size, batch_size)
    from pipeline.models.torch_forward import TorchRnnStep
    from pipeline.models.weights import load_into, new_mdnrnn

    mdnrnn = new_mdnrnn(config, action_size)
    load_into(mdnrnn, mdnrnn_weights, "the MDN-RNN's weights")
    return TorchRnnStep(mdnrnn, batch_size)


def sample_z(mu: Array, logvar: Array, noise: Array) -> Array:
    """z = mu + exp(logvar / 2) * noise, any one shape: what ``vae.sample_z`` is to torch."""
    z: Array = mu + np.exp(logvar * np.float32(0.5)) * noise
    return z


def encode_all(encoder: Encoder, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Any number of frames (N, 64, 64, 3) uint8, batch by batch, the last one padded. Returns mu and logvar, (N, Z)."""
    count = len(frames)
    mu = np.empty((count, encoder.z_size), np.float32)
    logvar = np.empty_like(mu)
    batch = np.zeros((encoder.batch_size, *FRAME_SHAPE), np.uint8)
    for start in range(0, count, encoder.batch_size):
        rows = min(encoder.batch_size, count - start)
        batch[:rows] = frames[start : start + rows]
        batch[rows:] = 0
        batch_mu, batch_logvar = encoder(batch)
        mu[start : start + rows], logvar[start : start + rows] = batch_mu[:rows], batch_logvar[:rows]
    return mu, logvar
