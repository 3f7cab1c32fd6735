"""A graph of ONNX, built operation by operation, and its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.models.metadata import Description, to_metadata

OPSET = 17
_IR_VERSION = 8  # version of the first ONNX release with this opset: older runtimes refuse a newer one
PRODUCER = "world-models-ray"
BATCH = "N"  # name of the dynamic dimension, the first of every input and output

_TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


class Graph:
    """Graph in the making. Values go by their names, which ``add``, ``constant`` and ``input`` return.

    Args:
        name: Name of the graph.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, *sizes: int, kind: str = "float32") -> str:
        """Add an input.

        Args:
            name: Name of the input.
            sizes: Dimensions after the batch.
            kind: Type of the numbers: ``float32`` or ``uint8``.
        """
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[kind], [BATCH, *sizes]))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """Add a constant."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def floats(self, *values: float) -> str:
        """Add a constant of float32 numbers, (n,); one number broadcasts."""
        return self.constant(np.array(values, np.float32))

    def integers(self, *values: int) -> str:
        """Add a constant of whole numbers, (n,), such as axes, sizes and shapes."""
        return self.constant(np.array(values, np.int64))

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add an operation with one output; an empty name leaves out an optional input."""
        return self.add_several(operation, 1, *inputs, **attributes)[0]

    def add_several(self, operation: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add an operation with several outputs."""
        names = [f"{operation.lower()}_{len(self._nodes)}_{index}" for index in range(count)]
        self._nodes.append(helper.make_node(operation, list(inputs), names, **attributes))
        return names

    def output(self, name: str, value: str, *sizes: int) -> None:
        """Add a float32 output.

        Args:
            name: Name of the output.
            value: Value that it gives.
            sizes: Dimensions after the batch.
        """
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *sizes]))

    def to_bytes(self, description: Description, others: Mapping[str, str]) -> bytes:
        """Make the file's bytes.

        Args:
            description: Description of the network, stored as in the files of weights.
            others: Further entries of the metadata.
        """
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name=PRODUCER,
            doc_string="\n".join([*map(_signature, self._inputs), "->", *map(_signature, self._outputs)]),
        )
        helper.set_model_props(model, {**to_metadata(description), **others})
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def _signature(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    name = next(name for name, number in _TYPES.items() if number == kind.elem_type)
    sizes: Sequence[Any] = [each.dim_param or each.dim_value for each in kind.shape.dim]
    return f"{value.name} ({', '.join(map(str, sizes))}) {name}"
