"""Forward pass of rollouts, dreams and the encode stage, in batches of one fixed size.

At a fixed batch size, the bits of a row's result do not depend on its position or on the other rows; at another batch
size they may differ. Callers therefore always pass exactly ``batch_size`` rows and pad the last batch.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.base.arrays import Array
from pipeline.config.agent import AgentConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.models.dream import DreamStep
from pipeline.models.precision import encoder_precision


class Encoder(Protocol):
    """V's encoder.

    Attributes:
        batch_size: Rows per call, B.
        z_size: Number of latent dimensions, Z.
    """

    batch_size: int
    z_size: int

    def __call__(self, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
        """Encode frames, (B, 64, 64, 3) uint8, to mu and logvar, (B, Z) float32, valid until the next call."""


class RnnStep(Protocol):
    """One step of M's LSTM; rollouts do not need M's heads.

    Attributes:
        batch_size: Rows per call, B.
        hidden_size: Size of the hidden state, H.
    """

    batch_size: int
    hidden_size: int

    def __call__(self, z: Array, action: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """Compute the next h and c, valid until the next call.

        Args:
            z: Latents, (B, Z) float32.
            action: Actions, (B, A) float32.
            h: Hidden state, (B, H) float32.
            c: Cell state, (B, H) float32.
        """


def make_encoder(config: AgentConfig, vae_weights: bytes, batch_size: int) -> Encoder:
    """Create V's encoder on the engine and at the precision of ``config.rollouts``.

    Args:
        config: Sections of the agent.
        vae_weights: Weights of V as safetensors bytes.
        batch_size: Rows per call, B.

    Raises:
        DamagedDataError: The weights do not belong to this config.
    """
    precision = encoder_precision(config.rollouts)
    if config.rollouts.engine == "openvino":
        from pipeline.models.openvino_forward import OpenVinoEncoder

        return OpenVinoEncoder(vae_weights, config.vae.z_size, batch_size, precision)
    import torch

    from pipeline.models.torch_forward import TorchEncoder
    from pipeline.models.weights import load_vae

    vae = load_vae(config, vae_weights)
    return TorchEncoder(vae, batch_size, torch.bfloat16 if precision == "bfloat16" else torch.float32)


def make_rnn_step(config: AgentConfig, mdnrnn_weights: bytes, batch_size: int, action_size: int) -> RnnStep:
    """Create M's step on the engine of ``config.rollouts``, always in float32.

    Args:
        config: Sections of the agent.
        mdnrnn_weights: Weights of M as safetensors bytes.
        batch_size: Rows per call, B.
        action_size: Length of an action, A.

    Raises:
        DamagedDataError: The weights do not belong to this config.
    """
    if config.rollouts.engine == "openvino":
        from pipeline.models.openvino_forward import OpenVinoRnnStep

        return OpenVinoRnnStep(mdnrnn_weights, config.vae.z_size + action_size, config.mdnrnn.hidden_size, batch_size)
    from pipeline.models.torch_forward import TorchRnnStep
    from pipeline.models.weights import load_mdnrnn

    return TorchRnnStep(load_mdnrnn(config, action_size, mdnrnn_weights), batch_size)


def make_dream_step(
    config: AgentConfig,
    mdnrnn_weights: bytes,
    batch_size: int,
    action_size: int,
    temperature: float,
    *,
    on_gpu: bool = False,
) -> DreamStep:
    """Create M's whole step in float32, on the engine of ``config.rollouts`` or with torch on a GPU.

    On a GPU, cuDNN may compute the LSTM in TF32.

    Args:
        config: Sections of the agent.
        mdnrnn_weights: Weights of M as safetensors bytes.
        batch_size: Dreams per call, B.
        action_size: Length of an action, A.
        temperature: Uncertainty of the dream; 1.0 is M's own density.
        on_gpu: Whether M runs on a GPU.

    Raises:
        DamagedDataError: The weights do not belong to this config.
    """
    if config.rollouts.engine == "openvino" and not on_gpu:
        from pipeline.models.openvino_dream import OpenVinoDreamStep

        return OpenVinoDreamStep(
            mdnrnn_weights,
            config.mdnrnn,
            z_size=config.vae.z_size,
            action_size=action_size,
            batch_size=batch_size,
            temperature=temperature,
        )
    from pipeline.models.torch_forward import TorchDreamStep
    from pipeline.models.weights import load_mdnrnn

    mdnrnn = load_mdnrnn(config, action_size, mdnrnn_weights)
    return TorchDreamStep(mdnrnn.cuda() if on_gpu else mdnrnn, batch_size, temperature)


def sample_z(mu: Array, logvar: Array, noise: Array) -> Array:
    """Compute mu + exp(logvar / 2) * noise for arrays of one shape; the numpy version of ``vae.sample_z``."""
    z: Array = mu + np.exp(logvar * np.float32(0.5)) * noise
    return z


def encode_all(encoder: Encoder, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Encode any number of frames in batches, padding the last one.

    Args:
        encoder: V's encoder.
        frames: Frames, (N, 64, 64, 3) uint8.

    Returns:
        Arrays mu and logvar, (N, Z) float32.
    """
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
