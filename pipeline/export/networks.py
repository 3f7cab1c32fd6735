"""V's encoder and decoder, M's step and the controller as graphs of ONNX, from their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pipeline.base.arrays import Array
from pipeline.config.agent import MdnRnnConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.envs.actions import Actions
from pipeline.export.graph import Graph
from pipeline.export.squashing import squash
from pipeline.models.controller import ControllerShape

Arrays = Mapping[str, Array]

_LAYERS = (0, 2, 4, 6)  # indices of the convolutions in ``Vae.encoder`` and in ``Vae.decoder``


def encoder(arrays: Arrays) -> Graph:
    """Build V's encoder: ``frames``, (N, 64, 64, 3) uint8 RGB, to ``mu`` and ``logvar``, (N, Z).

    Args:
        arrays: Weights of V by name.
    """
    graph = Graph("encoder")
    x = graph.add("Cast", graph.input("frames", *FRAME_SHAPE, kind="uint8"), to=1)  # 1 is float32
    x = graph.add("Div", graph.add("Transpose", x, perm=[0, 3, 1, 2]), graph.floats(255))
    for index in _LAYERS:
        kernel, bias = (graph.constant(arrays[f"encoder.{index}.{name}"]) for name in ("weight", "bias"))
        x = graph.add("Relu", graph.add("Conv", x, kernel, bias, strides=[2, 2]))
    x = graph.add("Flatten", x)
    for head in ("mu", "logvar"):
        graph.output(head, _linear(graph, x, arrays, head), len(arrays[f"{head}.bias"]))
    return graph


def decoder(arrays: Arrays) -> Graph:
    """Build V's decoder: ``z``, (N, Z), to ``frames``, (N, 64, 64, 3) float32 RGB in [0, 1].

    Args:
        arrays: Weights of V by name.
    """
    graph = Graph("decoder")
    weight = arrays["from_z.weight"]
    x = _linear(graph, graph.input("z", weight.shape[1]), arrays, "from_z")
    x = graph.add("Reshape", x, graph.integers(-1, len(weight), 1, 1))
    for index in _LAYERS:
        kernel, bias = (graph.constant(arrays[f"decoder.{index}.{name}"]) for name in ("weight", "bias"))
        x = graph.add("ConvTranspose", x, kernel, bias, strides=[2, 2])
        x = graph.add("Sigmoid" if index == _LAYERS[-1] else "Relu", x)
    graph.output("frames", graph.add("Transpose", x, perm=[0, 2, 3, 1]), *FRAME_SHAPE)
    return graph


def mdnrnn_step(arrays: Arrays, config: MdnRnnConfig, z_size: int, action_size: int) -> Graph:
    """Build M's step.

    It takes ``z`` (N, Z), ``action`` (N, A), ``h`` and ``c`` (N, H). It gives ``next_h`` and ``next_c`` (N, H); the
    density of the next z, ``logpi`` (N, Z, K), or (N, K) of a joint mixture, ``mu`` and ``log_sigma`` (N, Z, K); and,
    if M has these heads, ``reward`` (N,) and ``end_logit`` (N,).

    Args:
        arrays: Weights of M by name.
        config: Section of M.
        z_size: Length of z.
        action_size: Length of an action.
    """
    graph = Graph("mdnrnn")
    hidden_size, mixtures = config.hidden_size, config.mixtures
    z, action = graph.input("z", z_size), graph.input("action", action_size)
    h, c = graph.input("h", hidden_size), graph.input("c", hidden_size)
    next_h, next_c = _lstm(graph, arrays, graph.add("Concat", z, action, axis=1), h, c)
    graph.output("next_h", next_h, hidden_size)
    graph.output("next_c", next_c, hidden_size)

    joint = config.mixture == "joint"
    heads = [name for name, weight in _heads(config) if weight > 0]
    widths = [mixtures if joint else z_size * mixtures, z_size * mixtures, z_size * mixtures, *[1] * len(heads)]
    out = _linear(graph, next_h, arrays, "heads")
    logits, mu, log_sigma, *others = graph.add_several("Split", len(widths), out, graph.integers(*widths), axis=1)
    each = graph.integers(-1, z_size, mixtures)
    if not joint:
        logits = graph.add("Reshape", logits, each)
    graph.output("logpi", graph.add("LogSoftmax", logits, axis=-1), *([] if joint else [z_size]), mixtures)
    graph.output("mu", graph.add("Reshape", mu, each), z_size, mixtures)
    bounded = _soft_clamp(graph, log_sigma, config.log_sigma_min, config.log_sigma_max)
    graph.output("log_sigma", graph.add("Reshape", bounded, each), z_size, mixtures)
    for name, value in zip(heads, others, strict=True):
        graph.output(name, graph.add("Squeeze", value, graph.integers(1)))
    return graph


def controller(shape: ControllerShape, parameters: Array, actions: Actions, sizes: Mapping[str, int]) -> Graph:
    """Build a controller, which maps its features among ``z``, ``h`` and ``c`` to ``action``, (N, A), as M sees it.

    Args:
        shape: Shape of the controller.
        parameters: Parameters, (num_parameters,) float32.
        actions: Actions of the environment, whose ``squash`` the graph ends with.
        sizes: Lengths of z, h and c.

    Raises:
        ConfigError: These actions are a class of the user, with a ``squash`` of its own.
    """
    graph = Graph("controller")
    x = graph.add("Concat", *(graph.input(name, sizes[name]) for name in shape.features), axis=1)
    for layer, (weights, biases) in enumerate(shape.split(parameters)):
        if layer:
            x = graph.add("Tanh", x)
        x = graph.add("Gemm", x, graph.constant(weights), graph.constant(biases), transB=1)
    graph.output("action", squash(graph, x, actions), actions.size)
    return graph


def _heads(config: MdnRnnConfig) -> list[tuple[str, float]]:
    """Names of M's optional heads and their weights in the loss; a head without weight does not exist."""
    return [("reward", config.reward_weight), ("end_logit", config.done_weight)]


def _linear(graph: Graph, x: str, arrays: Arrays, name: str) -> str:
    weight, bias = (graph.constant(arrays[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.add("Gemm", x, weight, bias, transB=1)


def _lstm(graph: Graph, arrays: Arrays, x: str, h: str, c: str) -> tuple[str, str]:
    """One step of M's LSTM on [z, action], h and c; gives the next h and c."""
    hidden_size = arrays["lstm.weight_hh_l0"].shape[1]
    # The order of the gates is input, forget, cell, output in torch, and input, output, forget, cell in ONNX.
    gates = np.arange(4 * hidden_size).reshape(4, hidden_size)[[0, 3, 1, 2]].ravel()
    of_x, of_h = (graph.constant(arrays[f"lstm.weight_{part}_l0"][gates][None]) for part in ("ih", "hh"))
    bias = np.concatenate([arrays[f"lstm.bias_{part}_l0"][gates] for part in ("ih", "hh")])[None]
    first = graph.integers(0)  # an axis for the sequence of one step, and for the one direction
    x, h, c = (graph.add("Unsqueeze", value, first) for value in (x, h, c))
    _, next_h, next_c = graph.add_several(
        "LSTM", 3, x, of_x, of_h, graph.constant(bias), "", h, c, hidden_size=hidden_size
    )
    return graph.add("Squeeze", next_h, first), graph.add("Squeeze", next_c, first)


def _soft_clamp(graph: Graph, x: str, low: float, high: float) -> str:
    """Bound log sigma as ``mdnrnn._soft_clamp`` does."""
    bottom, top = graph.floats(low), graph.floats(high)
    x = graph.add("Sub", top, graph.add("Softplus", graph.add("Sub", top, x)))
    scale = (high - low) / math.log1p(math.exp(high - low)) if high - low < 30 else 1.0
    x = graph.add("Softplus", graph.add("Sub", x, bottom))
    return graph.add("Add", bottom, graph.add("Mul", x, graph.floats(scale)))
