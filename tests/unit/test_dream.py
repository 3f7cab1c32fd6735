"""The dream against torch.distributions and a plain loop, and its dependence on seeds."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import distributions

from pipeline.models.dream import Dream
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.openvino_dream import OpenVinoDreamStep
from pipeline.models.torch_forward import TorchDreamStep
from pipeline.models.weights import new_mdnrnn, to_bytes
from tests.counting import counting_config

Z, A, H, K = 3, 2, 8, 4

Mixture = Literal["factored", "joint"]


def make_mdnrnn(mixture: Mixture = "factored", *, heads: bool = False, spread: float = 3.0) -> MdnRnn:
    """An M with random weights, scaled up so that components are separate and states matter."""
    torch.manual_seed(0)
    mdnrnn = MdnRnn(
        z_size=Z,
        action_size=A,
        hidden_size=H,
        mixtures=K,
        mixture=mixture,
        reward_head=heads,
        done_head=heads,
    )
    with torch.no_grad():
        for parameter in mdnrnn.parameters():
            parameter.mul_(spread)
    return mdnrnn


def dreams_of(mdnrnn: MdnRnn, count: int, temperature: float = 1.0) -> Dream:
    return Dream(TorchDreamStep(mdnrnn, count, temperature), count)


def draws(batch_size: int, steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((batch_size, Z), dtype=np.float32)
    return z, rng.uniform(-1, 1, (steps, batch_size, A)).astype(np.float32)


@torch.no_grad()
def most_likely(mdnrnn: MdnRnn, z: NDArray[np.float32], actions: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The path of most likely means, from the LSTM's equations and the layout of the heads."""
    lstm, heads = dict(mdnrnn.lstm.named_parameters()), mdnrnn.heads
    h = c = torch.zeros(len(z), H)
    current = torch.from_numpy(z)
    path = []
    for action in actions:
        gates = (
            torch.cat([current, torch.from_numpy(action)], 1) @ lstm["weight_ih_l0"].T
            + lstm["bias_ih_l0"]
            + h @ lstm["weight_hh_l0"].T
            + lstm["bias_hh_l0"]
        )
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        output = h @ heads.weight.T + heads.bias
        logpi_size = K if mdnrnn.joint else Z * K
        logpi, mu = output[:, :logpi_size], output[:, logpi_size : logpi_size + Z * K].reshape(-1, Z, K)
        if mdnrnn.joint:
            best = logpi.argmax(1)
            current = torch.stack([mu[row, :, best[row]] for row in range(len(z))])
        else:
            best = logpi.reshape(-1, Z, K).argmax(2)
            current = torch.stack([torch.stack([mu[r, d, best[r, d]] for d in range(Z)]) for r in range(len(z))])
        path.append(current.numpy())
    return path


@pytest.mark.parametrize("mixture", ["factored", "joint"])
def test_dream_at_a_tiny_temperature_follows_the_most_likely_means(mixture: Mixture) -> None:
    mdnrnn = make_mdnrnn(mixture)
    z, actions = draws(5, 12)
    dream = dreams_of(mdnrnn, 5, 1e-9)
    dream.reset(z, seeds=range(5))
    path = [dream.step(action).z.copy() for action in actions]
    np.testing.assert_allclose(path, most_likely(mdnrnn, z, actions), atol=2e-3)


@pytest.mark.parametrize("mixture", ["factored", "joint"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_samples_have_the_statistics_of_torch_distributions(mixture: Mixture, temperature: float) -> None:
    mdnrnn = make_mdnrnn(mixture)
    batch_size = 20_000
    z, actions = draws(1, 1)
    many = np.repeat(z, batch_size, axis=0)
    dream = dreams_of(mdnrnn, batch_size, temperature)
    dream.reset(many, seeds=range(batch_size))
    samples = torch.from_numpy(dream.step(np.repeat(actions[0], batch_size, axis=0)).z).double()

    with torch.no_grad():
        prediction, _ = mdnrnn(torch.from_numpy(z)[:, None], torch.from_numpy(actions))
    logpi, mu, log_sigma = (tensor[0, 0].double() for tensor in prediction.mixture)
    weights = distributions.Categorical(logits=logpi / temperature)
    sigma = log_sigma.exp() * temperature**0.5
    normal: distributions.Distribution
    if mixture == "joint":
        normal = distributions.Independent(distributions.Normal(mu.T, sigma.T), 1)
    else:
        normal = distributions.Normal(mu, sigma)
    expected = distributions.MixtureSameFamily(weights, normal)

    standard_error = (expected.variance / batch_size).sqrt()
    assert ((samples.mean(0) - expected.mean).abs() < 5 * standard_error).all()
    # A variance's own standard error comes from the fourth moment of the samples.
    squares = (samples - expected.mean) ** 2
    assert ((squares.mean(0) - expected.variance).abs() < 5 * squares.std(0) / batch_size**0.5).all()
    if mixture == "factored":
        for x in torch.quantile(samples, torch.tensor([0.1, 0.5, 0.9], dtype=torch.double), dim=0):
            found = (samples <= x).double().mean(0)
            assert ((found - expected.cdf(x)).abs() < 5 * 0.5 / batch_size**0.5).all()
    else:  # one component for the whole z: its dimensions are not independent
        covariance = torch.cov(samples.T)
        reference = torch.cov(expected.sample((200_000,)).T)
        assert torch.allclose(covariance, reference, atol=0.05 * float(reference.diagonal().max()))


def test_dream_bits_depend_on_the_seeds() -> None:
    mdnrnn = make_mdnrnn(heads=True)
    z, actions = draws(4, 6)

    def dreamt(seeds: list[int]) -> NDArray[np.float32]:
        dream = dreams_of(mdnrnn, 4)
        dream.reset(z, seeds=seeds)
        return np.stack([dream.step(action).z.copy() for action in actions])

    first = dreamt([1, 2, 3, 4])
    assert first.tobytes() == dreamt([1, 2, 3, 4]).tobytes()
    assert not (first == dreamt([5, 6, 7, 8])).any(axis=(0, 2)).any()


def test_dream_does_not_depend_on_its_row_or_its_neighbours() -> None:
    torch.manual_seed(0)
    mdnrnn = MdnRnn(z_size=32, action_size=A, hidden_size=256, mixtures=5, reward_head=True, done_head=True)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4, 32), dtype=np.float32)
    order = np.array([2, 0, 3, 1])
    straight, shuffled = dreams_of(mdnrnn, 4), dreams_of(mdnrnn, 4)
    straight.reset(z, seeds=[1, 2, 3, 4])
    shuffled.reset(z[order], seeds=[3, 1, 4, 2])
    for action in rng.uniform(-1, 1, (70, 4, A)).astype(np.float32):  # random numbers are drawn 32 steps ahead
        for one, other in zip(straight.step(action), shuffled.step(action[order]), strict=True):
            assert one is not None and other is not None
            assert one[order].tobytes() == other.tobytes()


def test_dream_continues_from_a_given_state() -> None:
    mdnrnn = make_mdnrnn()
    z, actions = draws(3, 8)
    whole, rest = dreams_of(mdnrnn, 3, 1e-9), dreams_of(mdnrnn, 3, 1e-9)
    whole.reset(z, seeds=[0, 0, 0])
    for action in actions[:4]:
        middle = whole.step(action).z.copy()
    rest.reset(middle, seeds=[9, 9, 9], h=whole.h, c=whole.c)
    for action in actions[4:]:
        np.testing.assert_allclose(rest.step(action).z, whole.step(action).z, atol=1e-3)
    np.testing.assert_allclose(rest.h, whole.h, atol=1e-3)
    np.testing.assert_allclose(rest.c, whole.c, atol=1e-3)
    assert rest.h.shape == rest.c.shape == (3, H)


def test_reward_and_done_equal_the_outputs_of_the_heads() -> None:
    mdnrnn = make_mdnrnn(heads=True)
    z, actions = draws(4, 1)
    dream = dreams_of(mdnrnn, 4)
    dream.reset(z, seeds=range(4))
    step = dream.step(actions[0])
    with torch.no_grad():
        hidden, _ = mdnrnn.lstm(torch.from_numpy(np.concatenate([z, actions[0]], 1))[:, None])
        output = mdnrnn.heads(hidden[:, 0]).numpy()
    assert step.reward is not None and step.end_logit is not None
    np.testing.assert_allclose(step.reward, output[:, -2], rtol=1e-5)
    np.testing.assert_allclose(step.end_logit, output[:, -1], rtol=1e-5)
    bare = dreams_of(make_mdnrnn(), 4)
    bare.reset(z, seeds=range(4))
    assert bare.step(actions[0])[3:] == (None, None)


def test_arrays_of_the_caller_are_not_shared() -> None:
    mdnrnn = make_mdnrnn()
    z, actions = draws(2, 2)

    def dreamt(meddle: bool) -> bytes:
        dream = dreams_of(mdnrnn, 2)
        start, h, c = z.copy(), np.ones((2, H), np.float32), np.ones((2, H), np.float32)
        dream.reset(start, seeds=[1, 2], h=h, c=c)
        if meddle:
            start[:], h[:], c[:] = 7, 7, 7
        dream.step(actions[0])
        return dream.step(actions[1]).z.tobytes()

    assert dreamt(False) == dreamt(True)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        dreams_of(make_mdnrnn(), 1, 0)
    with pytest.raises(ValueError, match="1 seeds for 2 dreams"):
        dreams_of(make_mdnrnn(), 2).reset(draws(2, 1)[0], seeds=[1])


def test_dreams_that_are_not_stepped_do_not_change() -> None:
    z, actions = draws(4, 40)
    whole, some = (Dream(TorchDreamStep(make_mdnrnn(), 4), 4) for _ in range(2))
    for dream in (whole, some):
        dream.reset(z, seeds=range(4))
    for step, action in enumerate(actions):
        expected = whole.step(action).z[2:].tobytes()
        other = some.step(action if step < 36 else action[:2])  # from there on the last two fill up the batch
        if step >= 36:
            assert len(other.z) == 2
        else:
            last = [array[2:].tobytes() for array in (some.z, some.h, some.c)]
            assert last[0] == expected
    assert [array[2:].tobytes() for array in (some.z, some.h, some.c)] == last
    alone = Dream(TorchDreamStep(make_mdnrnn(), 4), 4)
    alone.reset(z, seeds=range(4))
    for action in [*actions[:36], actions[0]]:
        expected = alone.step(action).z[2:].tobytes()
    assert some.step(actions[0]).z[2:].tobytes() == expected, "with its own next random numbers"


def test_moved_and_ended_dreams_do_not_change_the_others() -> None:
    mdnrnn = make_mdnrnn()
    z, actions = draws(5, 40)

    def alone(index: int) -> list[NDArray[np.float32]]:
        dream = dreams_of(mdnrnn, 1)
        dream.reset(z[index : index + 1], seeds=[index])
        return [dream.step(action[index : index + 1]).z[0].copy() for action in actions]

    expected = {index: alone(index) for index in range(5)}
    dream = Dream(TorchDreamStep(mdnrnn, 2), 5)
    dream.reset(z, seeds=range(5))
    order = [0, 1, 2, 3, 4]
    for step, action in enumerate(actions):
        if step in (7, 20):  # the second dream ends, and the last one takes its slot
            dream.move(len(order) - 1, 1)
            order[1] = order[-1]
            order.pop()
        found = dream.step(action[order]).z
        for slot, index in enumerate(order):
            np.testing.assert_allclose(found[slot], expected[index][step], rtol=1e-3, atol=1e-3)
    assert order == [0, 3, 2]


@pytest.mark.parametrize("mixture", ["factored", "joint"])
@pytest.mark.parametrize("temperature", [0.3, 1.15])
@pytest.mark.parametrize("heads", [True, False])
def test_openvino_step_equals_torchs(mixture: Mixture, temperature: float, heads: bool) -> None:
    weight = 1.0 if heads else 0.0
    config = counting_config(
        {"mdnrnn.mixture": mixture, "mdnrnn.done_weight": weight, "mdnrnn.reward_weight": weight,
         "mdnrnn.log_sigma_min": -3.0, "mdnrnn.log_sigma_max": 1.0}
    )  # fmt: skip
    mdnrnn = new_mdnrnn(config.agent, A)
    with torch.no_grad():
        for parameter in mdnrnn.parameters():
            parameter.mul_(4)
    size, z_size, hidden_size = 16, config.vae.z_size, config.mdnrnn.hidden_size
    ours = OpenVinoDreamStep(
        to_bytes(mdnrnn), config.mdnrnn, z_size=z_size, action_size=A, batch_size=size, temperature=temperature
    )
    rng = np.random.default_rng(0)
    z, action, h, c, noise = (
        rng.standard_normal((size, width), np.float32) for width in (z_size, A, hidden_size, hidden_size, z_size)
    )
    uniform = rng.random((size, 1 if mixture == "joint" else z_size), np.float32)
    found = ours(z, action, h, c, uniform, noise)
    expected = TorchDreamStep(mdnrnn, size, temperature)(z, action, h, c, uniform, noise)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert (found.reward is not None) == (found.end_logit is not None) == heads
