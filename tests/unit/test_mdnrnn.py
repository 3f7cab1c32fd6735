"""M: its density against torch.distributions, its bounds, and the recovery of a known mixture."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pipeline.data.episodes import LatentEpisode
from pipeline.models.mdnrnn import MdnRnn, Mixture, mixture_nll, sample_mixture
from pipeline.stages.train_mdnrnn import MdnRnnObjective
from pipeline.training import hardware
from pipeline.training.windows import WindowBlock, Windows
from tests.counting import counting_config

Kind = Literal["factored", "joint"]
Z, K = 3, 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def mdnrnn(**changes: Any) -> MdnRnn:
    arguments: dict[str, Any] = {"z_size": Z, "action_size": 2, "hidden_size": 8, "mixtures": K}
    return MdnRnn(**{**arguments, **changes})


def random_mixture(kind: Kind, *leading: int, seed: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(Z, K) if kind == "factored" else (K,), (Z, K), (Z, K)]
    logits, mu, log_sigma = (torch.randn(*leading, *shape, generator=generator) for shape in shapes)
    return Mixture(logits.log_softmax(-1), 2 * mu, 0.5 * log_sigma)


def exact(mixture: Mixture, temperature: float = 1.0) -> MixtureSameFamily:
    """The same density by torch.distributions: batch shape (..., Z) factored; (...), event (Z,) joint."""
    logits = mixture.logpi.double() / temperature
    mu, sigma = mixture.mu.double(), mixture.log_sigma.double().exp() * math.sqrt(temperature)
    if mixture.logpi.dim() == mixture.mu.dim():
        return MixtureSameFamily(Categorical(logits=logits), Normal(mu, sigma))
    components = Independent(Normal(mu.transpose(-1, -2), sigma.transpose(-1, -2)), 1)
    return MixtureSameFamily(Categorical(logits=logits), components)


# ---- architecture


def test_model_of_the_paper_has_its_number_of_parameters() -> None:
    """422,368 in the paper. torch's LSTM has a second bias, 4 x 256, that adds to the first."""
    model = MdnRnn(z_size=32, action_size=3, hidden_size=256, mixtures=5)
    assert sum(p.numel() for p in model.parameters()) == 422_368 + 4 * 256


@pytest.mark.parametrize(("kind", "logpi_shape"), [("factored", (2, 5, Z, K)), ("joint", (2, 5, K))])
def test_shapes_of_a_prediction(kind: Kind, logpi_shape: tuple[int, ...]) -> None:
    model = mdnrnn(mixture=kind, reward_head=True, done_head=True)
    prediction, (h, c) = model(torch.randn(2, 5, Z), torch.randn(2, 5, 2))
    assert prediction.mixture.logpi.shape == logpi_shape
    assert prediction.mixture.mu.shape == prediction.mixture.log_sigma.shape == (2, 5, Z, K)
    assert prediction.reward is not None
    assert prediction.done_logit is not None
    assert prediction.reward.shape == prediction.done_logit.shape == (2, 5)
    assert h.shape == c.shape == (1, 2, 8)
    torch.testing.assert_close(prediction.mixture.logpi.exp().sum(-1), torch.ones(logpi_shape[:-1]))


def test_unrequested_heads_do_not_exist() -> None:
    prediction, _ = mdnrnn()(torch.randn(2, 5, Z), torch.randn(2, 5, 2))
    assert prediction.reward is None
    assert prediction.done_logit is None
    with_heads = sum(p.numel() for p in mdnrnn(reward_head=True, done_head=True).parameters())
    assert with_heads - sum(p.numel() for p in mdnrnn().parameters()) == 2 * (8 + 1)


def test_single_steps_equal_the_whole_sequence() -> None:
    model = mdnrnn(reward_head=True)
    z, action = torch.randn(2, 6, Z), torch.randn(2, 6, 2)
    whole, _ = model(z, action)
    state = model.initial_state(2)
    for t in range(6):
        step, state = model(z[:, t : t + 1], action[:, t : t + 1], state)
        torch.testing.assert_close(step.mixture.mu[:, 0], whole.mixture.mu[:, t])
        torch.testing.assert_close(step.mixture.logpi[:, 0], whole.mixture.logpi[:, t])
        torch.testing.assert_close(step.reward[:, 0], whole.reward[:, t])


def test_prediction_depends_only_on_the_past() -> None:
    model = mdnrnn()
    z, action = torch.randn(1, 6, Z), torch.randn(1, 6, 2)
    before, _ = model(z, action)
    z[:, 3], action[:, 4] = 5.0, 5.0
    after, _ = model(z, action)
    same = (before.mixture.mu == after.mixture.mu).all(-1).all(-1)[0]
    assert same.tolist() == [True, True, True, False, False, False]


# ---- likelihood


def test_the_factored_likelihood_agrees_with_torch_distributions() -> None:
    mixture = random_mixture("factored", 2, 5)
    z = 2 * torch.randn(2, 5, Z)
    expected = -exact(mixture).log_prob(z.double()).mean(-1)
    np.testing.assert_allclose(mixture_nll(mixture, z), expected, rtol=2e-5)


def test_the_joint_likelihood_agrees_with_torch_distributions() -> None:
    mixture = random_mixture("joint", 2, 5)
    z = 2 * torch.randn(2, 5, Z)
    expected = -exact(mixture).log_prob(z.double()) / Z
    np.testing.assert_allclose(mixture_nll(mixture, z), expected, rtol=2e-5)


@pytest.mark.parametrize("kind", ["factored", "joint"])
def test_the_likelihood_is_finite_far_from_every_component(kind: Kind) -> None:
    logpi, mu, _ = random_mixture(kind, 1)
    mixture = Mixture(logpi, mu, torch.full_like(mu, -7.0))
    z = torch.full((1, Z), 30.0)
    nll = mixture_nll(mixture, z)
    assert torch.isfinite(nll).all()
    expected = -exact(mixture).log_prob(z.double()).mean() / (Z if kind == "joint" else 1)
    np.testing.assert_allclose(nll.mean(), expected, rtol=1e-4)


# ---- log sigma's bounds


def log_sigma_of(raw: Tensor, low: float, high: float) -> Tensor:
    """The log sigma that a model computes from raw outputs with its own heads."""
    model = mdnrnn(z_size=1, mixtures=1, hidden_size=1, log_sigma_bounds=(low, high))
    with torch.no_grad():
        model.heads.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]))
        model.heads.bias.zero_()
    return model.predict(raw[:, None]).mixture.log_sigma[:, 0, 0]


@settings(deadline=None)
@given(low=st.floats(-10, 5), width=st.floats(0.01, 40))
def test_log_sigma_stays_within_its_bounds_for_any_input(low: float, width: float) -> None:
    high = low + width
    raw = torch.tensor([-1e30, -1e6, -100.0, -1.0, 0.0, 1.0, 100.0, 1e6, 1e30])
    log_sigma = log_sigma_of(raw, low, high).detach()
    assert torch.all(log_sigma >= low - 1e-5)
    assert torch.all(log_sigma <= high + 1e-5)
    assert torch.all(log_sigma.diff() >= 0)
    np.testing.assert_allclose(log_sigma[[0, -1]], [low, high], atol=2e-5)


def test_log_sigma_keeps_a_gradient_beyond_its_bounds() -> None:
    raw = torch.linspace(-60, 60, 241, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_sigma_of(raw, -7.0, 7.0).sum(), raw)
    assert torch.all(gradient > 0)


def test_log_sigma_is_its_input_well_within_its_bounds() -> None:
    raw = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(log_sigma_of(raw, -12.0, 12.0).detach(), raw, atol=1e-4, rtol=0)


# ---- sampling


def draw(mixture: Mixture, temperature: float, count: int) -> Tensor:
    """(count, Z) from a mixture without leading axes."""
    generator = torch.Generator().manual_seed(1)
    many = Mixture(*(part.expand(count, *part.shape) for part in mixture))
    uniform = torch.rand(many.logpi.shape[:-1], generator=generator)
    return sample_mixture(many, temperature, uniform, torch.randn(count, Z, generator=generator))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("kind", ["factored", "joint"])
def test_samples_have_the_moments_of_the_tempered_mixture(kind: Kind, temperature: float) -> None:
    """Temperature divides the logits and multiplies the variances (World Models, section A.3)."""
    mixture = random_mixture(kind)
    count = 200_000
    samples, density = draw(mixture, temperature, count).double(), exact(mixture, temperature)
    deviation = density.variance.sqrt()
    error = 5 / math.sqrt(count)  # five standard errors of a standardised mean
    assert torch.all((samples.mean(0) - density.mean).abs() < error * deviation)
    kurtosis = ((samples - density.mean) / deviation).pow(4).mean(0)
    assert torch.all((samples.var(0) / density.variance - 1).abs() < error * kurtosis.sqrt())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_samples_have_the_distribution_function_of_the_tempered_mixture(temperature: float) -> None:
    mixture = random_mixture("factored")
    count = 50_000
    samples = draw(mixture, temperature, count).double().sort(0).values
    empirical = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    distance = (exact(mixture, temperature).cdf(samples) - empirical).abs().max()
    assert distance < 2.2 / math.sqrt(count)  # Kolmogorov-Smirnov, far beyond the 99.9 % point


def test_a_joint_mixture_picks_one_component_for_all_dimensions() -> None:
    mu = torch.tensor([[-5.0, 5.0]]).expand(Z, 2)
    mixture = Mixture(torch.log(torch.tensor([0.3, 0.7])), mu, torch.full((Z, 2), -2.0))
    signs = draw(mixture, 1.0, 10_000).sign()
    assert torch.all(signs == signs[:, :1])
    np.testing.assert_allclose((signs[:, 0] > 0).double().mean(), 0.7, atol=0.03)


def test_a_factored_mixture_picks_a_component_for_each_dimension() -> None:
    mu = torch.tensor([[-5.0, 5.0]]).expand(Z, 2)
    mixture = Mixture(torch.log(torch.tensor([[0.5, 0.5]])).expand(Z, 2), mu, torch.full((Z, 2), -2.0))
    signs = draw(mixture, 1.0, 10_000).sign()
    np.testing.assert_allclose((signs[:, 0] == signs[:, 1]).double().mean(), 0.5, atol=0.03)


@pytest.mark.parametrize("kind", ["factored", "joint"])
def test_ends_of_the_uniform_range_pick_the_outer_components(kind: Kind) -> None:
    mixture = random_mixture(kind)
    for value, component in ((0.0, 0), (1 - 2**-24, K - 1)):
        uniform = torch.full(mixture.logpi.shape[:-1], value)
        torch.testing.assert_close(sample_mixture(mixture, 1.0, uniform, torch.zeros(Z)), mixture.mu[:, component])


# ---- training


def objective(kind: Kind = "factored", **overrides: Any) -> MdnRnnObjective:
    config = counting_config(
        {
            "vae.z_size": 2,
            "mdnrnn.hidden_size": 4,
            "mdnrnn.mixtures": 2,
            "mdnrnn.mixture": kind,
            "mdnrnn.learning_rate": 2e-2,
            "mdnrnn.precision": "float32",
            **{f"mdnrnn.{key}": value for key, value in overrides.items()},
        }
    )
    return MdnRnnObjective(config.agent, 2, WindowBlock([], 1, np.random.default_rng()))


def windows(mu: np.ndarray[Any, Any], logvar: float) -> Windows:
    """All of an array (B, T + 1, 2) as unpadded windows, with actions of zero."""
    size, length = mu.shape[0], mu.shape[1] - 1
    ones = np.ones((size, length), np.float32)
    zeros = np.zeros_like(ones)
    return Windows(
        mu.astype(np.float32), np.full(mu.shape, logvar, np.float32), np.zeros((size, length, 2), np.float32),
        zeros, zeros, ones, ones,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["factored", "joint"])
def test_training_recovers_a_known_mixture_from_data(kind: Kind, one_thread: None) -> None:
    """Latents drawn independently from a mixture: at the optimum M predicts that mixture after any past.

    Part of the spread is in the latents, part in their logvar: z must be sampled from both.
    """
    means = np.array([[-2.0, 1.0], [2.0, -1.0]])  # (dimension, component)
    sigmas = np.array([[0.3, 0.8], [0.5, 0.4]])
    weight = 0.3 if kind == "joint" else np.array([0.3, 0.6])  # of the first component
    logvar = math.log(0.2**2)

    rng = np.random.default_rng(0)

    def batch() -> Windows:
        shape = (48, 13, 2)
        choice = rng.random(shape if kind == "factored" else (*shape[:2], 1))
        first = np.broadcast_to(choice < weight, shape)
        dimension = np.arange(2)
        component = np.where(first, 0, 1)
        spread = np.sqrt(sigmas[dimension, component] ** 2 - 0.2**2)
        return windows(means[dimension, component] + spread * rng.standard_normal(shape), logvar)

    fit = objective(kind)
    steps = 700
    rate = fit.optimizer.learning_rate
    for step in range(steps):
        fit.optimizer.learning_rate = rate * (1 - 0.98 * step / steps)
        fit.optimizer.zero_grad()
        fit.losses(batch(), step)["loss"].backward()
        fit.before_step()
        fit.optimizer.step()

    latents = torch.from_numpy(batch().mu[:, :-1])
    prediction, _ = fit.module(latents, torch.zeros(48, 12, 2))
    logpi, mu, log_sigma = (part.detach().mean((0, 1)) for part in prediction.mixture)
    for dimension in range(2):
        # Which component is called the first is arbitrary.
        order = mu[dimension].argsort().tolist()
        want = np.argsort(means[dimension])
        pi = logpi.exp() if kind == "joint" else logpi[dimension].exp()
        first = weight if kind == "joint" else weight[dimension]  # type: ignore[index]
        np.testing.assert_allclose(mu[dimension][order], means[dimension][want], atol=0.1)
        np.testing.assert_allclose(log_sigma[dimension][order].exp(), sigmas[dimension][want], atol=0.05)
        np.testing.assert_allclose(pi[order], np.array([first, 1 - first])[want], atol=0.05)


def some_windows(seed: int = 3) -> Windows:
    """Windows of a long and a short episode: the short one is padded."""
    rng = np.random.default_rng(seed)

    def episode(steps: int) -> LatentEpisode:
        flags = np.zeros(steps, np.bool_)
        ends = flags.copy()
        ends[-1] = True
        mu, logvar = rng.standard_normal((2, steps, 2)).astype(np.float32)
        actions = rng.standard_normal((steps, 2)).astype(np.float32)
        return LatentEpisode(0, 0, mu, logvar, actions, rng.standard_normal(steps).astype(np.float32), ends, flags)

    block = WindowBlock([episode(12), episode(4)], 6, rng)
    return block.batch(np.arange(len(block)))


@pytest.mark.skipif(not hardware.runs_lstm(torch.bfloat16), reason="torch computes no LSTM in it on this CPU")
def test_bfloat16_loss_is_close_to_the_float32_loss() -> None:
    batch = some_windows()
    narrow, wide = (objective("factored", precision=p).losses(batch, 0)["loss"].item() for p in ("bfloat16", "float32"))
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=0.02)


@pytest.mark.parametrize("kind", ["factored", "joint"])
def test_training_loss_is_the_masked_mean_of_torch_densities(kind: Kind) -> None:
    batch = some_windows()._replace(logvar=np.full((3, 7, 2), -80.0, np.float32))  # z is mu, to the bit
    fit = objective(kind, reward_weight=0.7, done_weight=2.0, done_positive_weight=10.0)
    losses = fit.losses(batch, 0)
    z = torch.from_numpy(batch.mu)
    prediction, _ = fit.module(z[:, :-1], torch.from_numpy(batch.actions))
    log_density = exact(prediction.mixture).log_prob(z[:, 1:].double()).detach()
    nll, squared, entropy = [], [], []
    assert prediction.reward is not None and prediction.done_logit is not None
    steps = [6, 6, 4]  # rows of the two windows of the long episode, and of the short one
    has_next = [6, 5, 3]  # the last row of an episode has no successor
    for row in range(3):
        for t in range(steps[row]):
            p = 1 / (1 + math.exp(-prediction.done_logit[row, t].item()))
            done = (row, t) in ((1, 5), (2, 3))
            entropy.append(-10 * math.log(p) if done else -math.log(1 - p))
            squared.append((prediction.reward[row, t].item() - float(batch.rewards[row, t])) ** 2)
        nll += [float(-log_density[row, t].sum() / 2) for t in range(has_next[row])]
    assert int(batch.has_next.sum()) == len(nll)
    np.testing.assert_allclose(losses["nll"].item(), np.mean(nll), rtol=1e-5)
    np.testing.assert_allclose(losses["reward"].item(), np.mean(squared), rtol=1e-5)
    np.testing.assert_allclose(losses["done"].item(), np.mean(entropy), rtol=1e-5)
    total = np.mean(nll) + 0.7 * np.mean(squared) + 2 * np.mean(entropy)
    np.testing.assert_allclose(losses["loss"].item(), total, rtol=1e-5)


def test_padding_changes_neither_loss_nor_gradient() -> None:
    batch = some_windows()
    fit = objective(reward_weight=1.0, done_weight=1.0)

    def gradient(windows: Windows) -> list[Tensor]:
        fit.optimizer.zero_grad()
        fit.losses(windows, 5)["loss"].backward()
        return [p.grad.clone() for p in fit.module.parameters() if p.grad is not None]

    before = gradient(batch)
    padded = 1 - np.asarray(batch.real)
    garbage = batch._replace(
        mu=batch.mu + 9 * np.pad(padded, ((0, 0), (0, 1)))[..., None].astype(np.float32),
        actions=batch.actions + 9 * padded[..., None].astype(np.float32),
        rewards=batch.rewards + 9 * padded.astype(np.float32),
        done=batch.done + padded.astype(np.float32),
    )
    assert padded.any()
    for a, b in zip(before, gradient(garbage), strict=True):
        torch.testing.assert_close(a, b)


def test_batch_of_last_rows_has_zero_likelihood_and_finite_gradients() -> None:
    batch = some_windows()
    fit = objective()
    loss = fit.losses(batch._replace(has_next=np.zeros_like(batch.has_next)), 0)["loss"]
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in fit.module.parameters())


def test_z_is_sampled_per_batch_and_reproducible_per_step() -> None:
    fit, batch = objective(), some_windows()
    assert fit.losses(batch, 1)["loss"] == fit.losses(batch, 1)["loss"]
    assert fit.losses(batch, 1)["loss"] != fit.losses(batch, 2)["loss"]


def test_each_element_of_the_gradient_is_clipped() -> None:
    fit = objective(gradient_clip=0.01)
    (1e3 * fit.losses(some_windows(), 0)["loss"]).backward()
    raw = [p.grad.clone() for p in fit.module.parameters() if p.grad is not None]
    fit.before_step()
    clipped = [p.grad for p in fit.module.parameters() if p.grad is not None]
    assert any((g.abs() > 0.01).any() for g in raw)
    for a, b in zip(raw, clipped, strict=True):
        torch.testing.assert_close(b, a.clamp(-0.01, 0.01))
