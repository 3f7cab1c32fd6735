"""The forward pass of rollouts: the numbers of the training modules, and the independence of rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.base.arrays import Array
from pipeline.base.errors import ConfigError, DamagedDataError
from pipeline.config.schema import RunConfig
from pipeline.envs.car_racing import CarRacing
from pipeline.models import precision as precision_module
from pipeline.models.forward import Encoder, RnnStep, encode_all, make_encoder, make_rnn_step
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.precision import native_precisions
from pipeline.models.vae import Vae, frames_to_input
from pipeline.models.weights import new_mdnrnn, to_bytes
from pipeline.training import hardware
from pipeline.training.hardware import precision_name

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH_SIZES = [4, 8, 16]
# Every choice of rollouts.engine and rollouts.precision that this CPU supports.
CHOICES = [("torch", "float32"), ("torch", "bfloat16")] + [("openvino", precision) for precision in native_precisions()]
# Largest error of mu and logvar, in their own standard deviations: rounding, 8 bits of mantissa, 8 bits of range.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.25}


def config_of(engine: str, precision: str) -> RunConfig:
    return RunConfig.model_validate({"rollouts": {"engine": engine, "precision": precision}})


@pytest.fixture(scope="module")
def scenes() -> NDArray[np.uint8]:
    """Frames of a drive, (48, 64, 64, 3)."""
    env = CarRacing(config_of("torch", "float32").env)
    pixels = [env.reset(0)]
    action = np.array([0.1, 0.5, 0.0], np.float32)
    pixels += [env.step(action).frame for _ in range(47)]
    return np.stack(pixels)


@pytest.fixture(scope="module")
def vae(scenes: NDArray[np.uint8]) -> Vae:
    torch.manual_seed(0)
    vae = Vae(32)
    with torch.no_grad():  # as large as those of a trained V
        for layer in (*vae.encoder, vae.mu, vae.logvar):
            if hasattr(layer, "weight"):
                layer.weight.mul_(2)
    vae.calibrate(frames_to_input(scenes))
    return vae


@pytest.fixture(params=CHOICES, ids="-".join)
def choice(request: pytest.FixtureRequest) -> tuple[str, str]:
    engine, precision = request.param
    return engine, precision


@pytest.fixture(params=["torch", "openvino"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def encoder_of(vae: Vae, choice: tuple[str, str], batch_size: int) -> Encoder:
    return make_encoder(config_of(*choice).agent, to_bytes(vae), batch_size)


def step_of(mdnrnn: MdnRnn, engine: str, batch_size: int) -> RnnStep:
    sizes: dict[str, Any] = {
        "vae": {"z_size": mdnrnn.z_size},
        "mdnrnn": {"hidden_size": mdnrnn.hidden_size, "mixtures": mdnrnn.mixtures},
        "rollouts": {"engine": engine},
    }
    action_size = mdnrnn.lstm.input_size - mdnrnn.z_size
    return make_rnn_step(RunConfig.model_validate(sizes).agent, to_bytes(mdnrnn), batch_size, action_size)


def copies(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    return pair[0].copy(), pair[1].copy()


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


def test_openvino_telemetry_starts_no_process() -> None:
    """A fork of a process with threads may hang forever, and then the process hangs at its end."""
    code = (
        "import multiprocessing, os; os.environ.pop('CI', None)\n"
        "import pipeline.models.openvino_forward, pipeline.models.precision\n"
        "print(multiprocessing.active_children(), pipeline.models.precision.native_precisions()[:1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] ['float32']\n"


def test_encoder_equals_the_vae(vae: Vae, choice: tuple[str, str], scenes: NDArray[np.uint8]) -> None:
    pixels = scenes[::6]
    with torch.no_grad():
        want = vae.encode(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255).contiguous())
    got = encoder_of(vae, choice, 8)(pixels)
    for actual, expected in zip(got, want, strict=True):
        assert actual.dtype == np.float32
        error = np.abs(actual - expected.numpy()).max() / expected.std().item()
        assert error < TOLERANCE[choice[1]]
        assert (error > 1e-5) == (choice[1] != "float32"), "lower precision is really in use"
    assert np.abs(got[0] - got[1]).max() > 0.01


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_bits_of_an_encoded_row_do_not_depend_on_other_rows_or_its_index(
    vae: Vae, choice: tuple[str, str], batch_size: int
) -> None:
    encoder = encoder_of(vae, choice, batch_size)
    pixels = frames(batch_size)
    mu, logvar = copies(encoder(pixels))
    for position in range(batch_size):
        others = frames(batch_size, seed=1 + position)
        if position % 2:
            others[:] = 0  # as padding is
        others[position] = pixels[0]
        other_mu, other_logvar = encoder(others)
        assert other_mu[position].tobytes() == mu[0].tobytes()
        assert other_logvar[position].tobytes() == logvar[0].tobytes()


def test_two_encoders_with_the_same_weights_agree_to_the_bit(vae: Vae, choice: tuple[str, str]) -> None:
    pixels = frames(8)
    first, second = (copies(encoder_of(vae, choice, 8)(pixels)) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_the_encoder_refuses_another_batch_size(vae: Vae, choice: tuple[str, str]) -> None:
    with pytest.raises(AssertionError):
        encoder_of(vae, choice, 4)(frames(5))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_bits_of_a_frame_do_not_depend_on_the_number_of_frames(vae: Vae, choice: tuple[str, str], count: int) -> None:
    encoder = encoder_of(vae, choice, 4)
    pixels = frames(12)
    whole = [copies(encoder(pixels[start : start + 4])) for start in (0, 4, 8)]
    mu, logvar = encode_all(encoder, pixels[:count])
    assert mu.shape == logvar.shape == (count, 32)
    assert mu.tobytes() == np.concatenate([part[0] for part in whole])[:count].tobytes()
    assert logvar.tobytes() == np.concatenate([part[1] for part in whole])[:count].tobytes()


def test_calibration_takes_the_largest_activation_of_all_frames(vae: Vae, scenes: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    fresh = Vae(32)
    fresh.load_state_dict({**vae.state_dict(), "activation_max": torch.zeros(4)})
    for start in range(0, 48, 16):
        fresh.calibrate(frames_to_input(scenes[start : start + 16]))
    np.testing.assert_allclose(fresh.activation_max, vae.activation_max, rtol=1e-5)
    with torch.no_grad():
        first = torch.relu(fresh.encoder[0](frames_to_input(scenes)))
    assert fresh.activation_max[0].item() == pytest.approx(first.max().item(), rel=1e-5)


# ---- what is refused


def test_int8_without_calibration_is_refused_by_name() -> None:
    if "int8" not in native_precisions():
        pytest.skip("this CPU has no VNNI instructions")
    with pytest.raises(DamagedDataError, match="activation ranges"):
        encoder_of(Vae(32), ("openvino", "int8"), 4)


def test_precision_without_cpu_instructions_is_refused_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "native_precisions", lambda: ["float32"])
    with pytest.raises(ConfigError, match=r"bfloat16.*no instructions.*float32"):
        precision_module.encoder_precision(config_of("openvino", "bfloat16").rollouts)
    assert precision_module.encoder_precision(config_of("openvino", "auto").rollouts) == "float32"


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("GenuineIntel", "avx2", False),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", True),
        ("AuthenticAMD", "avx2", False),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
    ],
)
def test_auto_selects_bfloat16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, fast: bool
) -> None:
    monkeypatch.setattr(precision_module, "cpu_info", lambda: {"vendor_id": vendor, "flags": flags})
    monkeypatch.setattr(precision_module, "native_precisions", lambda: ["float32", "bfloat16"])
    expected = "bfloat16" if fast else "float32"
    assert precision_module.encoder_precision(config_of("openvino", "auto").rollouts) == expected
    assert precision_name(hardware.training_precision("auto", torch.device("cpu"))) == expected
    assert precision_module.encoder_precision(config_of("openvino", "bfloat16").rollouts) == "bfloat16"
    monkeypatch.setattr(precision_module, "native_precisions", lambda: ["float32", "bfloat16", "int8"])
    assert precision_module.encoder_precision(config_of("openvino", "auto").rollouts) == "int8"


def test_torch_has_no_int8() -> None:
    with pytest.raises(ConfigError, match=r"int8.*openvino"):
        precision_module.encoder_precision(config_of("torch", "int8").rollouts)


def test_missing_openvino_error_names_the_command_and_the_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install openvino.*rollouts\.engine=torch"):
        precision_module.encoder_precision(config_of("openvino", "auto").rollouts)


def test_damaged_weights_file_is_refused(choice: tuple[str, str]) -> None:
    with pytest.raises(DamagedDataError, match="VAE"):
        make_encoder(config_of(*choice).agent, b"nothing of the kind", 4)


_DRIVES_ONE_EPISODE = """
import sys
import numpy as np
from pathlib import Path
from pipeline.config.schema import RunConfig
from pipeline.rollouts.jobs import RolloutJob
from pipeline.rollouts.loop import RolloutWorker

worker = RolloutWorker(RunConfig().env, RunConfig().agent, Path("vae").read_bytes(), Path("mdnrnn").read_bytes())
job = RolloutJob("train", 1, 0, 0, track=1, noise_seed=1, parameters=np.zeros(867, np.float32), max_steps=3)
[(_, result)] = worker.run([job])
print(result.steps, "torch" in sys.modules)
"""


def test_rollout_worker_does_not_load_torch(tmp_path: Path, vae: Vae) -> None:
    (tmp_path / "vae").write_bytes(to_bytes(vae))
    (tmp_path / "mdnrnn").write_bytes(to_bytes(new_mdnrnn(RunConfig().agent, 3)))
    driven = subprocess.run(
        [sys.executable, "-c", _DRIVES_ONE_EPISODE], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert driven.stdout.split() == ["3", "False"], driven.stderr


# ---- LSTM step


def lstm_by_hand(
    mdnrnn: MdnRnn, z: Array, action: Array, h: NDArray[np.floating[Any]], c: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hochreiter & Schmidhuber 1997, with forget gates, in float64."""
    weights = {name: p.detach().double().numpy() for name, p in mdnrnn.lstm.named_parameters()}
    gates = np.concatenate([z, action], 1).astype(np.float64) @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
    gates += h.astype(np.float64) @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
    i, f, g, o = np.split(gates, 4, axis=1)

    def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-x))

    c_next = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c_next), c_next


def test_lstm_step_follows_its_equations(mdnrnn: MdnRnn, engine: str) -> None:
    inputs = rnn_inputs(mdnrnn, 4)
    h, c = step_of(mdnrnn, engine, 4)(*inputs)
    want_h, want_c = lstm_by_hand(mdnrnn, *inputs)
    assert h.dtype == c.dtype == np.float32
    np.testing.assert_allclose(h, want_h, atol=1e-5)
    np.testing.assert_allclose(c, want_c, atol=1e-5)


def test_consecutive_steps_equal_the_sequence_of_the_training_module(mdnrnn: MdnRnn, engine: str) -> None:
    steps = [rnn_inputs(mdnrnn, 4, seed) for seed in range(6)]
    h = c = np.zeros((4, mdnrnn.hidden_size), np.float32)
    step = step_of(mdnrnn, engine, 4)
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
def test_bits_of_a_stepped_row_do_not_depend_on_other_rows_or_its_index(
    mdnrnn: MdnRnn, engine: str, batch_size: int
) -> None:
    step = step_of(mdnrnn, engine, batch_size)
    inputs = rnn_inputs(mdnrnn, batch_size)
    h, c = copies(step(*inputs))
    for position in range(batch_size):
        others = rnn_inputs(mdnrnn, batch_size, seed=1 + position)
        for other, own in zip(others, inputs, strict=True):
            if position % 2:
                other[:] = np.nan  # a possible rest of a failed lane
            other[position] = own[0]
        other_h, other_c = step(*others)
        assert other_h[position].tobytes() == h[0].tobytes()
        assert other_c[position].tobytes() == c[0].tobytes()


def test_step_does_not_change_its_inputs(mdnrnn: MdnRnn, engine: str) -> None:
    inputs = rnn_inputs(mdnrnn, 4)
    kept = [array.copy() for array in inputs]
    step_of(mdnrnn, engine, 4)(*inputs)
    for array, copy in zip(inputs, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
