"""Forward pass with torch: for GPUs, for machines without OpenVINO, and for networks that change in each episode."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.arrays import Array
from pipeline.data.frames import FRAME_SHAPE
from pipeline.models.dream import DreamSample
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.vae import Vae, frames_to_input


class TorchEncoder:
    """V's encoder; see ``pipeline/models/forward.py``.

    Args:
        vae: V; only its encoder is used.
        batch_size: Rows per call, B.
        precision: Precision of convolutions and matrix products.
    """

    def __init__(self, vae: Vae, batch_size: int, precision: torch.dtype = torch.float32) -> None:
        self._precision = precision
        self.batch_size = batch_size
        self.z_size = vae.z_size
        self._vae = vae.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
        """See ``Encoder.__call__``."""
        assert frames.shape == (self.batch_size, *FRAME_SHAPE), frames.shape
        mixed = self._precision is not torch.float32
        with torch.autocast("cpu", dtype=self._precision, enabled=mixed):
            mu, logvar = self._vae.encode(frames_to_input(frames))
        return mu.float().numpy(), logvar.float().numpy()


class TorchRnnStep:
    """One step of M's LSTM; see ``pipeline/models/forward.py``.

    Args:
        mdnrnn: M; only its LSTM is used.
        batch_size: Rows per call, B.
    """

    def __init__(self, mdnrnn: MdnRnn, batch_size: int) -> None:
        self.batch_size = batch_size
        self.hidden_size = mdnrnn.hidden_size
        self._lstm = mdnrnn.lstm.eval()

    @torch.inference_mode()
    def __call__(self, z: Array, action: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """See ``RnnStep.__call__``."""
        assert len(z) == self.batch_size, z.shape
        rnn_input = torch.from_numpy(np.concatenate([z, action], axis=1))[:, None]
        _, (h_next, c_next) = self._lstm(rnn_input, (torch.from_numpy(h)[None], torch.from_numpy(c)[None]))
        return h_next[0].numpy(), c_next[0].numpy()


class TorchDreamStep:
    """A dream step on M's device; see ``DreamStep`` in ``pipeline/models/dream.py``.

    Args:
        mdnrnn: M.
        batch_size: Dreams per call, B.
        temperature: Uncertainty of the dream; 1.0 is M's own density, and the paper trains TakeCover at 1.15.

    Attributes:
        temperature: Uncertainty of the next step; it may be set during a dream.

    Raises:
        ValueError: The temperature is not above 0.
    """

    def __init__(self, mdnrnn: MdnRnn, batch_size: int, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be above 0")
        self.batch_size, self.joint = batch_size, mdnrnn.joint
        self.z_size, self.action_size, self.hidden_size = mdnrnn.z_size, mdnrnn.action_size, mdnrnn.hidden_size
        self._mdnrnn, self.temperature = mdnrnn.eval(), temperature
        self._device = mdnrnn.heads.weight.device

    @torch.inference_mode()
    def __call__(self, z: Array, action: Array, h: Array, c: Array, uniform: Array, noise: Array) -> DreamSample:
        """See ``DreamStep.__call__``."""
        assert len(z) == self.batch_size, z.shape
        rnn_input, h_before, c_before, picks, normal = (
            torch.from_numpy(array).to(self._device)
            for array in (np.concatenate([z, action], axis=1), h, c, uniform, noise)
        )
        hidden, (h_next, c_next) = self._mdnrnn.lstm(rnn_input[:, None], (h_before[None], c_before[None]))
        sample = self._mdnrnn.sample(hidden[:, 0], self.temperature, picks[:, 0] if self.joint else picks, normal)
        return DreamSample(
            sample.z.cpu().numpy(),
            h_next[0].cpu().numpy(),
            c_next[0].cpu().numpy(),
            None if sample.reward is None else sample.reward.cpu().numpy(),
            None if sample.done_logit is None else sample.done_logit.cpu().numpy(),
        )
