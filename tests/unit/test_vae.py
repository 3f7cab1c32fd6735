"""V: the paper's architecture, and a loss that agrees with torch.distributions and numpy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pipeline.models.vae import Vae, frames_to_input, output_to_frames, sample_z, vae_loss

Z = 6


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def random_frames(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A reconstruction, frames, mu and logvar."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return draw(size, 3, 64, 64), draw(size, 3, 64, 64), 4 * draw(size, Z) - 2, 4 * draw(size, Z) - 3


def exact_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """(B,) float64, by torch.distributions."""
    mu, logvar = mu.double(), logvar.double()
    unit = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return kl_divergence(Normal(mu, (logvar / 2).exp()), unit).sum(1)


# ---- architecture


def test_vae_of_the_paper_has_its_number_of_parameters() -> None:
    assert sum(p.numel() for p in Vae(32).parameters()) == 4_348_547


def test_shapes_and_ranges() -> None:
    vae = Vae(Z)
    frames = torch.rand(3, 3, 64, 64)
    mu, logvar = vae.encode(frames)
    assert mu.shape == logvar.shape == (3, Z)
    assert vae.decode(mu).shape == (3, 3, 64, 64)
    reconstruction, mu_again, logvar_again = vae(frames, torch.zeros(3, Z))
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1
    torch.testing.assert_close(mu_again, mu)
    torch.testing.assert_close(logvar_again, logvar)
    torch.testing.assert_close(reconstruction, vae.decode(mu))


def test_decoder_gets_the_sampled_z() -> None:
    vae = Vae(Z)
    frames, noise = torch.rand(3, 3, 64, 64), torch.randn(3, Z)
    reconstruction, mu, logvar = vae(frames, noise)
    torch.testing.assert_close(reconstruction, vae.decode(mu + logvar.exp().sqrt() * noise))


def test_z_is_sampled_with_the_mean_and_variance_of_the_encoding() -> None:
    mu, logvar = torch.tensor([1.0, -2.0]), torch.log(torch.tensor([0.25, 9.0]))
    z = sample_z(
        mu.expand(200_000, 2), logvar.expand(200_000, 2), torch.randn(200_000, 2, generator=torch.manual_seed(0))
    )
    # Standard errors of these means and variances are at most 0.007 and 0.03.
    torch.testing.assert_close(z.mean(0), mu, atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), logvar.exp(), atol=0.15, rtol=0)


# ---- loss


def test_the_loss_agrees_with_torch_distributions_and_numpy() -> None:
    reconstruction, frames, mu, logvar = batch(5)
    loss = vae_loss(reconstruction, frames, mu, logvar, kl_tolerance=0.0)
    squared = ((reconstruction.double().numpy() - frames.double().numpy()) ** 2).sum((1, 2, 3)).mean()
    kl = exact_kl(mu, logvar).mean()
    np.testing.assert_allclose(loss.reconstruction, squared, rtol=1e-5)
    np.testing.assert_allclose(loss.kl, kl, rtol=1e-5)
    np.testing.assert_allclose(loss.total, squared + kl, rtol=1e-5)


def test_free_bits_apply_per_sample_and_not_per_dimension() -> None:
    frames = torch.zeros(2, 3, 64, 64)
    # Sample 0: one dimension with 2 nats, the others with none: below 0.5 * 6 nats in all, so all of it is free,
    # though that dimension is above 0.5. Sample 1: 6 * 0.72 nats.
    mu = torch.zeros(2, Z)
    mu[0, 0] = 2.0
    mu[1] = 1.2
    logvar = torch.zeros(2, Z)
    torch.testing.assert_close(exact_kl(mu, logvar), torch.tensor([2.0, 4.32], dtype=torch.float64))
    loss = vae_loss(frames, frames, mu, logvar, kl_tolerance=0.5)
    np.testing.assert_allclose(loss.total, (max(2.0, 3.0) + max(4.32, 3.0)) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss.kl, (2.0 + 4.32) / 2, rtol=1e-6)


def test_kl_has_a_gradient_only_above_the_tolerance() -> None:
    frames = torch.zeros(2, 3, 64, 64)
    mu = torch.tensor([[0.1] * Z, [1.2] * Z], requires_grad=True)
    logvar = torch.tensor([[0.05] * Z, [-0.4] * Z], requires_grad=True)
    kl = exact_kl(mu, logvar)
    assert kl[0] < 0.5 * Z < kl[1]
    vae_loss(frames, frames, mu, logvar, kl_tolerance=0.5).total.backward()
    got_mu, got_logvar = mu.grad, logvar.grad
    want_mu, want_logvar = torch.autograd.grad(kl[1] / 2, (mu, logvar))
    assert got_mu is not None
    assert got_logvar is not None
    assert not got_mu[0].any()
    assert not got_logvar[0].any()
    torch.testing.assert_close(got_mu, want_mu)
    torch.testing.assert_close(got_logvar, want_logvar)


def test_loss_is_computed_in_float32_for_any_network_precision() -> None:
    reconstruction, frames, mu, logvar = (tensor.bfloat16() for tensor in batch(5))
    loss = vae_loss(reconstruction, frames, mu, logvar, kl_tolerance=0.5)
    assert {part.dtype for part in loss} == {torch.float32}
    exact = vae_loss(reconstruction.float(), frames.float(), mu.float(), logvar.float(), kl_tolerance=0.5)
    assert loss == exact


# ---- frames


def test_frames_are_converted_to_channels_first_in_0_to_1() -> None:
    frames = random_frames(2)
    values = frames_to_input(frames)
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values.numpy(), frames.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255))


def test_frames_survive_conversion_in_both_directions() -> None:
    frames = random_frames(2)
    np.testing.assert_array_equal(output_to_frames(frames_to_input(frames)), frames)


@pytest.mark.parametrize(("value", "byte"), [(0.0, 0), (1.0, 255), (0.5 / 255 - 1e-5, 0), (1.6 / 255, 2), (-0.1, 0)])
def test_output_is_rounded_and_not_truncated(value: float, byte: int) -> None:
    assert (output_to_frames(torch.full((1, 3, 64, 64), value)) == byte).all()


def test_read_only_frames_are_accepted_without_a_warning() -> None:
    frames = random_frames(1)
    before = frames.copy()
    frames.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frames_to_input(frames).fill_(0)
    finally:
        torch.set_warn_always(False)
    np.testing.assert_array_equal(frames, before)
