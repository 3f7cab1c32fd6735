"""C: batched controllers (World Models, section A.4): a = squash(W [z, h] + b)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.base.arrays import Array
from pipeline.config.agent import AgentConfig, ControllerConfig


@dataclass(frozen=True)
class ControllerShape:
    """Layout of a flat parameter vector: weights, then biases, layer by layer.

    Attributes:
        features: Inputs of the controller: a string of the letters z, c and h.
        feature_size: Number of input features, F.
        action_size: Length of an action, A.
        hidden_size: Units of the optional tanh layer; 0 for no such layer.
        bias: Whether layers have biases.
    """

    features: str
    feature_size: int
    action_size: int
    hidden_size: int
    bias: bool

    @classmethod
    def of(cls, config: ControllerConfig, *, z_size: int, rnn_size: int, action_size: int) -> ControllerShape:
        """Create the shape that a config specifies.

        Args:
            config: Section ``controller`` of a config.
            z_size: Length of z.
            rnn_size: Length of h, and of c.
            action_size: Length of an action.
        """
        sizes = {"z": z_size, "c": rnn_size, "h": rnn_size}
        return cls(
            features=config.features,
            feature_size=sum(sizes[name] for name in config.features),
            action_size=action_size,
            hidden_size=config.hidden_size,
            bias=config.bias,
        )

    @classmethod
    def of_agent(cls, config: AgentConfig, action_size: int) -> ControllerShape:
        """Create the shape of an agent's controllers."""
        return cls.of(
            config.controller, z_size=config.vae.z_size, rnn_size=config.mdnrnn.hidden_size, action_size=action_size
        )

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of each layer."""
        if self.hidden_size:
            return [(self.hidden_size, self.feature_size), (self.action_size, self.hidden_size)]
        return [(self.action_size, self.feature_size)]

    @property
    def num_parameters(self) -> int:
        """Length of the flat vector; 867 for 32 z, 256 h and 3 actions."""
        return sum(outputs * (inputs + int(self.bias)) for outputs, inputs in self.layers)

    def split(self, parameters: Array) -> list[tuple[Array, Array]]:
        """Split a flat vector into the weights, (outputs, inputs), and the biases, (outputs,), of each layer.

        A layer without biases has zeros.

        Args:
            parameters: Parameters, (num_parameters,) float32.

        Raises:
            ValueError: The vector has another length.
        """
        if parameters.shape != (self.num_parameters,):
            raise ValueError(f"expected {self.num_parameters} parameters, got shape {parameters.shape}")
        layers, start = [], 0
        for outputs, inputs in self.layers:
            weights = parameters[start : start + outputs * inputs].reshape(outputs, inputs)
            start += outputs * inputs
            biases = parameters[start : start + outputs] if self.bias else np.zeros(outputs, np.float32)
            start += outputs if self.bias else 0
            layers.append((weights, biases))
        return layers


def join_features(names: str, z: Array, h: Array, c: Array) -> Array:
    """Join the inputs of controllers, (B, F) float32.

    Args:
        names: Letters of z, h and c, in their order.
        z: Latents, (B, Z) float32.
        h: Hidden states of M, (B, H) float32.
        c: Cell states of M, (B, H) float32.
    """
    parts = {"z": z, "h": h, "c": c}
    return np.concatenate([parts[name] for name in names], axis=1)


class ControllerBatch:
    """Batch with one controller per row, all applied at once.

    Args:
        shape: Shape of every controller.
        rows: Number of rows, R.
    """

    def __init__(self, shape: ControllerShape, rows: int) -> None:
        self.shape = shape
        self._weights = [np.zeros((rows, outputs, inputs), np.float32) for outputs, inputs in shape.layers]
        self._biases = [np.zeros((rows, outputs), np.float32) for outputs, _ in shape.layers]

    def set_row(self, row: int, parameters: Array) -> None:
        """Set the controller of a row from its parameters, (num_parameters,) float32."""
        layers = self.shape.split(parameters)
        for weights, biases, (of_row, biases_of_row) in zip(self._weights, self._biases, layers, strict=True):
            weights[row], biases[row] = of_row, biases_of_row

    def move_row(self, source: int, target: int) -> None:
        """Copy the controller of one row to another."""
        for array in (*self._weights, *self._biases):
            array[target] = array[source]

    def outputs(self, features: Array, start: int = 0) -> Array:
        """Compute the raw outputs (before squashing) of the rows from ``start`` on.

        Args:
            features: Features, (R', F) float32.
            start: First row.

        Returns:
            Outputs, (R', A) float32.
        """
        rows = slice(start, start + len(features))
        x = features
        for layer, (weights, biases) in enumerate(zip(self._weights, self._biases, strict=True)):
            if layer:
                x = np.tanh(x)
            # One matrix-vector product per row, so that a row's bits do not depend on the number of rows.
            x = np.matmul(weights[rows], x[:, :, None])[:, :, 0] + biases[rows]
        return x
