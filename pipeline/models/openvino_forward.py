"""Forward pass compiled by OpenVINO directly from the weights, so that rollout workers never import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.base.arrays import Array
from pipeline.base.errors import DamagedDataError
from pipeline.data.frames import FRAME_SHAPE
from pipeline.models.openvino_core import core
from pipeline.models.precision import Precision

_CONVOLUTIONS = (0, 2, 4, 6)  # indices of the convolutions in ``Vae.encoder``
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # precision of the operations that are not quantised


class OpenVinoEncoder:
    """V's encoder; see ``pipeline/models/forward.py``.

    Args:
        vae_weights: Weights of the whole V as safetensors bytes.
        z_size: Expected number of latent dimensions, Z.
        batch_size: Rows per call, B.
        precision: Precision of convolutions and matrix products. For int8, weights are symmetric per output channel;
            activations are unsigned, over V's calibrated ranges.

    Raises:
        DamagedDataError: The weights do not belong to this config; or, for int8, V is not calibrated.
    """

    def __init__(self, vae_weights: bytes, z_size: int, batch_size: int, precision: Precision) -> None:
        arrays = _read(vae_weights, "the VAE's weights", {"mu.weight": (z_size, 1024), "activation_max": (4,)})
        self.batch_size, self.z_size = batch_size, z_size
        self._frames = np.zeros((batch_size, *FRAME_SHAPE), np.uint8)
        self._request = compile_model(_encoder(arrays, batch_size, precision == "int8"), _HINTS[precision])
        self._request.set_input_tensor(ov.Tensor(self._frames, shared_memory=True))
        self._mu, self._logvar = (self._request.get_output_tensor(index).data for index in range(2))

    def __call__(self, frames: NDArray[np.uint8]) -> tuple[Array, Array]:
        """See ``Encoder.__call__``."""
        assert frames.shape == self._frames.shape, frames.shape
        np.copyto(self._frames, frames)
        self._request.infer()
        return self._mu, self._logvar


class OpenVinoRnnStep:
    """One step of M's LSTM in float32; see ``pipeline/models/forward.py``.

    Args:
        mdnrnn_weights: Weights of the whole M as safetensors bytes.
        input_size, hidden_size: Expected sizes, Z + A and H.
        batch_size: Rows per call, B.

    Raises:
        DamagedDataError: The weights do not belong to this config.
    """

    def __init__(self, mdnrnn_weights: bytes, input_size: int, hidden_size: int, batch_size: int) -> None:
        arrays = read_mdnrnn(mdnrnn_weights, input_size, hidden_size)
        self.batch_size, self.hidden_size = batch_size, hidden_size
        self._input = np.zeros((batch_size, input_size), np.float32)
        self._h, self._c = (np.zeros((batch_size, self.hidden_size), np.float32) for _ in range(2))
        self._request = compile_model(_lstm_step(arrays, batch_size), "f32")
        for index, array in enumerate((self._input, self._h, self._c)):
            self._request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        self._h_next, self._c_next = (self._request.get_output_tensor(index).data for index in range(2))

    def __call__(self, z: Array, action: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """See ``RnnStep.__call__``."""
        assert len(z) == self.batch_size, z.shape
        z_size = z.shape[1]
        self._input[:, :z_size] = z
        self._input[:, z_size:] = action
        np.copyto(self._h, h)
        np.copyto(self._c, c)
        self._request.infer()
        return self._h_next, self._c_next


def read_mdnrnn(mdnrnn_weights: bytes, input_size: int, hidden_size: int) -> dict[str, Array]:
    """Read M's weights by name.

    Args:
        mdnrnn_weights: Weights of the whole M as safetensors bytes.
        input_size: Expected size of [z, action], Z + A.
        hidden_size: Expected size of the hidden state, H.

    Raises:
        DamagedDataError: The weights do not belong to this config.
    """
    shapes = {
        "lstm.weight_ih_l0": (4 * hidden_size, input_size),
        "lstm.weight_hh_l0": (4 * hidden_size, hidden_size),
    }
    return _read(mdnrnn_weights, "the MDN-RNN's weights", shapes)


def _read(weights: bytes, what: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    try:
        arrays: dict[str, Array] = {name: array.astype(np.float32, copy=False) for name, array in load(weights).items()}
    except SafetensorError as error:
        raise DamagedDataError(f"{what} are not readable: {error}") from error
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else "absent"
        if found != shape:
            raise DamagedDataError(f"{what} do not belong to this config: {name} is {found}, expected {shape}")
    return arrays


def compile_model(model: ov.Model, precision: str) -> ov.InferRequest:
    """Compile a model for one thread, with a hint of its precision, such as ``f32``."""
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        # With pinning, the threads of all workers on a machine would share its first core.
        "ENABLE_CPU_PINNING": False,
    }
    return core().compile_model(model, "CPU", settings).create_infer_request()


def _encoder(arrays: dict[str, Array], batch_size: int, quantised: bool) -> ov.Model:
    """Build the layers of ``Vae.encode``: frames (B, 64, 64, 3) uint8 to mu and logvar, (B, Z)."""
    frames = ops.parameter([batch_size, *FRAME_SHAPE], np.uint8, name="frames")
    x = ops.transpose(ops.convert(frames, "f32"), np.array([0, 3, 1, 2]))
    if quantised:
        x = _quantise(x, np.float32(0), np.float32(255), 256)
    for layer, (index, largest) in enumerate(zip(_CONVOLUTIONS, arrays["activation_max"], strict=True)):
        kernel, bias = arrays[f"encoder.{index}.weight"], arrays[f"encoder.{index}.bias"]
        if layer == 0:
            kernel = kernel / np.float32(255)  # V takes values in [0, 1]
        x = ops.convolution(x, _weights(kernel, quantised), [2, 2], [0, 0], [0, 0], [1, 1])
        x = ops.relu(ops.add(x, bias.reshape(1, -1, 1, 1)))
        if quantised:
            if not largest > 0:
                raise DamagedDataError("the VAE's weights have no activation ranges: int8 needs a calibrated V")
            x = _quantise(x, np.float32(0), largest, 256)
    x = ops.reshape(x, np.array([batch_size, -1]), False)
    heads = [
        ops.add(ops.matmul(x, _weights(arrays[f"{head}.weight"], quantised), False, True), arrays[f"{head}.bias"])
        for head in ("mu", "logvar")
    ]
    return ov.Model(heads, [frames], "encoder")


def _lstm_step(arrays: dict[str, Array], batch_size: int) -> ov.Model:
    """Build M's LSTM step: [z, action], h and c to the next h and c."""
    hidden_size = arrays["lstm.weight_hh_l0"].shape[1]
    sizes = (arrays["lstm.weight_ih_l0"].shape[1], hidden_size, hidden_size)
    inputs = [ops.parameter([batch_size, size], np.float32) for size in sizes]
    cell = lstm_cell(inputs, arrays)
    return ov.Model([cell.output(0), cell.output(1)], inputs, "rnn step")


def lstm_cell(inputs: Sequence[ov.Node], arrays: dict[str, Array]) -> ov.Node:
    """Build M's LSTM cell on [z, action], h and c; its outputs are the next h and c."""
    hidden_size = arrays["lstm.weight_hh_l0"].shape[1]
    # The order of the gates is input, forget, cell, output in torch, and forget, input, cell, output in OpenVINO.
    gates = np.arange(4 * hidden_size).reshape(4, hidden_size)[[1, 0, 2, 3]].ravel()
    weights = (
        arrays["lstm.weight_ih_l0"][gates],
        arrays["lstm.weight_hh_l0"][gates],
        (arrays["lstm.bias_ih_l0"] + arrays["lstm.bias_hh_l0"])[gates],
    )
    return ops.lstm_cell(*inputs, *(ops.constant(array) for array in weights), hidden_size)


def _weights(weights: Array, quantised: bool) -> Any:
    if not quantised:
        return weights
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1).reshape(-1, *[1] * (weights.ndim - 1))
    # A channel of zeros has no range; any range works.
    largest = np.where(largest > 0, largest, 1).astype(np.float32)
    return _quantise(weights, -largest, largest, 255)


def _quantise(x: Any, low: Any, high: Any, levels: int) -> Any:
    """Round to a number of levels; OpenVINO computes in 8 bits between two such operations."""
    return ops.fake_quantize(x, low, high, low, high, levels)
