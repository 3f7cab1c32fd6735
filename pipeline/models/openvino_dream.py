"""A step of M's dream compiled by OpenVINO: the LSTM, the heads, and the sample of the next z in one graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from pipeline.base.arrays import Array
from pipeline.config.agent import MdnRnnConfig
from pipeline.models.dream import DreamSample
from pipeline.models.openvino_forward import compile_model, lstm_cell, read_mdnrnn


class OpenVinoDreamStep:
    """A dream step in float32 on the CPU; see ``DreamStep`` in ``pipeline/models/dream.py``.

    Args:
        mdnrnn_weights: Weights of the whole M as safetensors bytes.
        config: Section of M.
        z_size, action_size: Expected sizes, Z and A.
        batch_size: Dreams per call, B.
        temperature: Temperature of the mixture, as in ``sample_mixture``.

    Raises:
        DamagedDataError: The weights do not belong to this config.
    """

    def __init__(
        self,
        mdnrnn_weights: bytes,
        config: MdnRnnConfig,
        *,
        z_size: int,
        action_size: int,
        batch_size: int,
        temperature: float,
    ) -> None:
        self.batch_size, self.joint = batch_size, config.mixture == "joint"
        self.z_size, self.action_size, self.hidden_size = z_size, action_size, config.hidden_size
        arrays = read_mdnrnn(mdnrnn_weights, z_size + action_size, config.hidden_size)
        model = _dream_step(arrays, config, z_size, action_size, batch_size, temperature)
        self._request = compile_model(model, "f32")
        # The request reads and writes these arrays.
        self._inputs = [np.zeros(tuple(each.shape), np.float32) for each in model.inputs]
        for index, array in enumerate(self._inputs):
            self._request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        outputs = [self._request.get_output_tensor(index).data for index in range(len(model.outputs))]
        z, h, c, *heads = outputs
        reward = heads.pop(0)[:, 0] if config.reward_weight > 0 else None
        self._sample = DreamSample(z, h, c, reward, heads.pop()[:, 0] if config.done_weight > 0 else None)

    def __call__(self, z: Array, action: Array, h: Array, c: Array, uniform: Array, noise: Array) -> DreamSample:
        """See ``DreamStep.__call__``."""
        assert len(z) == self.batch_size, z.shape
        rnn_input, *others = self._inputs
        rnn_input[:, : self.z_size] = z
        rnn_input[:, self.z_size :] = action
        for target, source in zip(others, (h, c, uniform, noise), strict=True):
            np.copyto(target, source)
        self._request.infer()
        return self._sample


def _dream_step(
    arrays: dict[str, Array], config: MdnRnnConfig, z_size: int, action_size: int, batch_size: int, temperature: float
) -> ov.Model:
    """Build the step: [z, action], h, c, uniform and noise to the next z, h and c, and the heads that M has."""
    joint, mixtures = config.mixture == "joint", config.mixtures
    logits_size = 1 if joint else z_size
    sizes = (z_size + action_size, config.hidden_size, config.hidden_size, logits_size, z_size)
    inputs = [ops.parameter([batch_size, size], np.float32) for size in sizes]
    *lstm_inputs, uniform, noise = inputs
    cell = lstm_cell(lstm_inputs, arrays)
    h = cell.output(0)

    # Component by component: each is then one contiguous (B, Z) block, and all that follows is elementwise.
    widths = [logits_size * mixtures, z_size * mixtures, z_size * mixtures]
    ends = np.cumsum(widths)
    weight, bias = arrays["heads.weight"], arrays["heads.bias"]
    order = np.concatenate(
        [np.arange(end - width, end).reshape(-1, mixtures).T.ravel() for end, width in zip(ends, widths, strict=True)]
        + [np.arange(ends[-1], len(weight))]
    )
    out = ops.add(ops.matmul(h, weight[order], False, True), bias[order])
    blocks = [logits_size] * mixtures + [z_size] * (2 * mixtures) + [1] * (len(weight) - ends[-1])
    parts = ops.variadic_split(out, 1, np.array(blocks)).outputs()
    logits, means, log_sigmas = (parts[first * mixtures : (first + 1) * mixtures] for first in range(3))
    heads = parts[3 * mixtures :]

    largest = logits[0]
    for logit in logits[1:]:
        largest = ops.maximum(largest, logit)
    inverse = np.float32(1 / temperature)
    sums: list[ov.Node] = []
    for logit in logits:
        term = ops.exp(ops.multiply(ops.subtract(logit, largest), inverse))
        sums.append(ops.add(sums[-1], term) if sums else term)
    threshold = ops.multiply(uniform, sums[-1])
    # The component is the first whose cumulative weight is above the threshold.
    mean, log_sigma = means[-1], log_sigmas[-1]
    for index in reversed(range(mixtures - 1)):
        here = ops.greater(sums[index], threshold)
        mean = ops.select(here, means[index], mean)
        log_sigma = ops.select(here, log_sigmas[index], log_sigma)
    sigma = ops.exp(_soft_clamp(log_sigma, config.log_sigma_min, config.log_sigma_max))
    z = ops.add(mean, ops.multiply(ops.multiply(sigma, np.float32(math.sqrt(temperature))), noise))
    return ov.Model([z.output(0), h, cell.output(1), *heads], inputs, "dream step")


def _soft_clamp(x: Any, low: float, high: float) -> Any:
    """Bound log sigma as ``mdnrnn._soft_clamp`` does."""
    x = ops.subtract(np.float32(high), ops.softplus(ops.subtract(np.float32(high), x)))
    scale = (high - low) / math.log1p(math.exp(high - low)) if high - low < 30 else 1.0
    return ops.add(np.float32(low), ops.multiply(ops.softplus(ops.subtract(x, np.float32(low))), np.float32(scale)))
