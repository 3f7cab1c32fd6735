"""V: the convolutional variational autoencoder (World Models, section A.2 and figure 22)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


class VaeLoss(NamedTuple):
    """Mean losses of a batch, each () float32.

    Attributes:
        total: Loss to minimise.
        reconstruction: Squared error, summed over a frame's values in [0, 1].
        kl: KL divergence from the unit Gaussian in nats, before free bits.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class Vae(nn.Module):
    """Encoder and decoder.

    Args:
        z_size: Number of latent dimensions, Z.
    """

    def __init__(self, z_size: int) -> None:
        super().__init__()
        self.z_size = z_size
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2), nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 128, 4, stride=2), nn.ReLU(),
            nn.Conv2d(128, 256, 4, stride=2), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.mu = nn.Linear(1024, z_size)
        self.logvar = nn.Linear(1024, z_size)
        self.from_z = nn.Linear(z_size, 1024)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(1024, 128, 5, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 5, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 6, stride=2), nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 6, stride=2), nn.Sigmoid(),
        )  # fmt: skip

        # The largest output of each convolution on real frames, for int8 inference; zeros until ``calibrate``.
        self.activation_max: Tensor
        self.register_buffer("activation_max", torch.zeros(4))

    @torch.inference_mode()
    def calibrate(self, frames: Tensor) -> None:
        """Widen the activation ranges to include those of some frames, (B, 3, 64, 64) float in [0, 1]."""
        largest = []
        for layer in self.encoder.children():
            frames = layer(frames)
            if isinstance(layer, nn.ReLU):
                largest.append(frames.max())
        self.activation_max.copy_(torch.maximum(self.activation_max, torch.stack(largest)))

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode frames, (B, 3, 64, 64) float in [0, 1], to mu and logvar, (B, Z) float."""
        features = self.encoder(frames)
        return self.mu(features), self.logvar(features)

    def decode(self, z: Tensor) -> Tensor:
        """Decode z, (B, Z) float, to frames, (B, 3, 64, 64) float in [0, 1]."""
        first = self.decoder[0]
        assert isinstance(first, nn.ConvTranspose2d)
        assert first.bias is not None
        # On a single pixel a transposed convolution is a matrix product, which makes a training step 1.4 times as fast.
        x = functional.linear(self.from_z(z), first.weight.flatten(1).t(), first.bias.repeat_interleave(25))
        x = x.view(-1, 128, 5, 5).contiguous(memory_format=torch.channels_last)
        return self.decoder[1:](x)  # type: ignore[no-any-return]

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, sample and decode.

        Args:
            frames: Frames in [0, 1], (B, 3, 64, 64) float.
            noise: Standard normal random numbers, (B, Z) float.

        Returns:
            Reconstructions (B, 3, 64, 64), mu and logvar (B, Z), all float.
        """
        mu, logvar = self.encode(frames)
        return self.decode(sample_z(mu, logvar, noise)), mu, logvar


def sample_z(mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Compute mu + exp(logvar / 2) * noise for tensors of one shape (Kingma & Welling 2014, section 2.4)."""
    return mu + torch.exp(logvar / 2) * noise


def vae_loss(reconstruction: Tensor, frames: Tensor, mu: Tensor, logvar: Tensor, kl_tolerance: float) -> VaeLoss:
    """Compute the squared error + KL with free bits.

    KL to the unit Gaussian: Kingma & Welling 2014, appendix B. Free bits as in the paper's code: a sample's KL, summed
    over latent dimensions, has no cost below ``kl_tolerance * Z`` nats.

    Args:
        reconstruction: Reconstructions in [0, 1], (B, 3, 64, 64) float.
        frames: Frames in [0, 1], (B, 3, 64, 64) float.
        mu: Means of z, (B, Z) float.
        logvar: Log variances of z, (B, Z) float.
        kl_tolerance: Free bits, in nats per latent dimension.
    """
    squared = (reconstruction.float() - frames.float()).square().sum(dim=(1, 2, 3))
    mu, logvar = mu.float(), logvar.float()
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(dim=1)
    free = kl.clamp(min=kl_tolerance * mu.shape[1])
    return VaeLoss((squared + free).mean(), squared.mean(), kl.mean())


def frames_to_input(frames: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Convert frames, (B, 64, 64, 3) uint8, to V's input, (B, 3, 64, 64) float32 in [0, 1], channels-last in memory."""
    if not frames.flags.writeable:  # frames of a shard are read-only; torch warns about sharing memory with them
        frames = frames.copy()
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).to(torch.float32).div_(255)


def output_to_frames(output: Tensor) -> NDArray[np.uint8]:
    """Convert V's reconstructions, (B, 3, 64, 64) in [0, 1], to frames, (B, 64, 64, 3) uint8."""
    return functional.relu(output * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
