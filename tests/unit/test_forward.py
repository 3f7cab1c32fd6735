"""The forward pass of rollouts: the same numbers as the training modules, and rows that do not feel each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.models.forward import Encoder, RnnStep
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.vae import Vae

Array = NDArray[np.float32]

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH_SIZES = [4, 8, 16]


@pytest.fixture(scope="module")
def vae() -> Vae:
    torch.manual_seed(0)
    return Vae(32)


@pytest.fixture(scope="module", params=[(32, 3, 256), (5, 2, 7)], ids=["paper", "small"])
def mdnrnn(request: pytest.FixtureRequest) -> MdnRnn:
    z_size, action_size, hidden_size = request.param
    torch.manual_seed(0)
    return MdnRnn(z_size=z_size, action_size=action_size, hidden_size=hidden_size, mixtures=2)


def frames(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def rnn_inputs(mdnrnn: MdnRnn, count: int, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(seed)
    action_size = mdnrnn.lstm.input_size - mdnrnn.z_size
    sizes = (mdnrnn.z_size, action_size, mdnrnn.hidden_size, mdnrnn.hidden_size)
    z, action, h, c = (rng.standard_normal((count, size)).astype(np.float32) for size in sizes)
    return z, action, np.tanh(h), c


# ---- encoder


def test_the_encoder_is_the_vaes() -> None:
    torch.manual_seed(0)
    vae = Vae(32)
    pixels = frames(8)
    with torch.no_grad():  # plain layout in memory, before Encoder changes it
        mu, logvar = vae.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255).contiguous())
    got_mu, got_logvar = Encoder(vae, 8)(pixels)
    assert got_mu.dtype == got_logvar.dtype == np.float32
    np.testing.assert_allclose(got_mu, mu, atol=2e-6)
    np.testing.assert_allclose(got_logvar, logvar, atol=2e-6)
    assert np.abs(got_mu).max() > 0.01
    assert np.abs(got_mu - got_logvar).max() > 0.01


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_an_encoded_row_depends_to_the_bit_on_no_neighbour_and_no_position(vae: Vae, batch_size: int) -> None:
    encoder = Encoder(vae, batch_size)
    pixels = frames(batch_size)
    mu, logvar = encoder(pixels)
    for position in range(batch_size):
        others = frames(batch_size, seed=1 + position)
        if position % 2:
            others[:] = 0  # as padding is
        others[position] = pixels[0]
        other_mu, other_logvar = encoder(others)
        assert other_mu[position].tobytes() == mu[0].tobytes()
        assert other_logvar[position].tobytes() == logvar[0].tobytes()


def test_the_encoder_refuses_another_batch_size(vae: Vae) -> None:
    with pytest.raises(AssertionError):
        Encoder(vae, 4)(frames(5))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_encoding_any_number_of_frames_gives_each_the_bits_it_has_in_a_whole_batch(vae: Vae, count: int) -> None:
    encoder = Encoder(vae, 4)
    pixels = frames(12)
    whole = [encoder(pixels[start : start + 4]) for start in (0, 4, 8)]
    mu, logvar = encoder.encode_all(pixels[:count])
    assert mu.shape == logvar.shape == (count, 32)
    assert mu.tobytes() == np.concatenate([part[0] for part in whole])[:count].tobytes()
    assert logvar.tobytes() == np.concatenate([part[1] for part in whole])[:count].tobytes()


def test_encoding_leaves_earlier_results_alone(vae: Vae) -> None:
    encoder = Encoder(vae, 4)
    first, _ = encoder(frames(4))
    kept = first.copy()
    encoder(frames(4, seed=1))
    np.testing.assert_array_equal(first, kept)


# ---- LSTM step


def lstm_by_hand(mdnrnn: MdnRnn, z: Array, action: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """Hochreiter & Schmidhuber 1997, with forget gates, in float64."""
    weights = {name: p.detach().double().numpy() for name, p in mdnrnn.lstm.named_parameters()}
    gates = np.concatenate([z, action], 1).astype(np.float64) @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
    gates += h.astype(np.float64) @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
    i, f, g, o = np.split(gates, 4, axis=1)

    def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-x))

    c_next = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c_next), c_next


def test_the_step_is_the_textbooks(mdnrnn: MdnRnn) -> None:
    inputs = rnn_inputs(mdnrnn, 4)
    h, c = RnnStep(mdnrnn, 4)(*inputs)
    want_h, want_c = lstm_by_hand(mdnrnn, *inputs)
    assert h.dtype == c.dtype == np.float32
    np.testing.assert_allclose(h, want_h, atol=1e-5)
    np.testing.assert_allclose(c, want_c, atol=1e-5)


def test_steps_in_a_row_are_the_training_modules_sequence(mdnrnn: MdnRnn) -> None:
    steps = [rnn_inputs(mdnrnn, 4, seed) for seed in range(6)]
    h = c = np.zeros((4, mdnrnn.hidden_size), np.float32)
    step = RnnStep(mdnrnn, 4)
    for z, action, _, _ in steps:
        h, c = step(z, action, h, c)
    with torch.no_grad():
        _, (want_h, want_c) = mdnrnn(
            torch.from_numpy(np.stack([z for z, *_ in steps], 1)),
            torch.from_numpy(np.stack([action for _, action, *_ in steps], 1)),
        )
    np.testing.assert_allclose(h, want_h[0], atol=1e-5)
    np.testing.assert_allclose(c, want_c[0], atol=1e-5)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_a_stepped_row_depends_to_the_bit_on_no_neighbour_and_no_position(mdnrnn: MdnRnn, batch_size: int) -> None:
    step = RnnStep(mdnrnn, batch_size)
    inputs = rnn_inputs(mdnrnn, batch_size)
    h, c = step(*inputs)
    for position in range(batch_size):
        others = rnn_inputs(mdnrnn, batch_size, seed=1 + position)
        for other, own in zip(others, inputs, strict=True):
            if position % 2:
                other[:] = np.nan  # what a lane that went wrong may leave behind
            other[position] = own[0]
        other_h, other_c = step(*others)
        assert other_h[position].tobytes() == h[0].tobytes()
        assert other_c[position].tobytes() == c[0].tobytes()


def test_a_step_leaves_its_inputs_alone(mdnrnn: MdnRnn) -> None:
    inputs = rnn_inputs(mdnrnn, 4)
    kept = [array.copy() for array in inputs]
    RnnStep(mdnrnn, 4)(*inputs)
    for array, copy in zip(inputs, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
