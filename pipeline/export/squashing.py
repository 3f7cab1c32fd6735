"""The squashing of a controller's outputs, as operations of ONNX."""

from __future__ import annotations

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.envs.actions import Actions, BoxActions, ChoiceActions, SwitchActions
from pipeline.envs.car_racing import CarActions
from pipeline.envs.take_cover import TakeCoverActions
from pipeline.export.graph import Graph


def squash(graph: Graph, x: str, actions: Actions) -> str:
    """Add ``actions.squash`` to a graph.

    Args:
        graph: Graph of a controller.
        x: Raw outputs of the controller, (N, A).
        actions: Actions of the environment.

    Returns:
        Actions, (N, A).

    Raises:
        ConfigError: These actions are a class of the user, with a ``squash`` of its own.
    """
    # By the function and not by the class: a subclass may have another one.
    function = type(actions).squash
    if function is CarActions.squash:
        return _car(graph, x)
    if function is TakeCoverActions.squash:
        return graph.add("Tanh", x)
    if function is BoxActions.squash:
        return _box(graph, x, actions)
    if function is ChoiceActions.squash and isinstance(actions, ChoiceActions):
        return _keep_nan(graph, x, _choices(graph, x, actions))
    if function is SwitchActions.squash:
        on = graph.add("Cast", graph.add("Greater", x, graph.floats(0)), to=1)  # 1 is float32
        return graph.add("Where", graph.add("IsNaN", x), x, on)
    kind = type(actions)
    raise ConfigError(
        f"{kind.__module__}:{kind.__name__}.squash is a Python function, which ONNX cannot contain. Exportable: the "
        "actions of pipeline/envs/actions.py, CarRacing, TakeCover"
    )


def _car(graph: Graph, x: str) -> str:
    parts = graph.add_several("Split", 3, graph.add("Tanh", x), graph.integers(1, 1, 1), axis=1)
    steering, gas, brake = parts
    gas = graph.add("Div", graph.add("Add", gas, graph.floats(1)), graph.floats(2))
    return graph.add("Concat", steering, gas, graph.add("Max", brake, graph.floats(0)), axis=1)


def _box(graph: Graph, x: str, actions: Actions) -> str:
    low, high = graph.constant(actions.low), graph.constant(actions.high)
    share = graph.add("Div", graph.add("Add", graph.add("Tanh", x), graph.floats(1)), graph.floats(2))
    scaled = graph.add("Add", low, graph.add("Mul", share, graph.constant(actions.high - actions.low)))
    clipped = graph.add("Min", graph.add("Max", scaled, low), high)  # rounding may leave the bounds
    if np.issubdtype(actions.space.dtype, np.integer):
        return graph.add("Round", clipped)
    if actions.space.dtype == np.float16:
        return graph.add("Cast", graph.add("Cast", clipped, to=10), to=1)  # 10 is float16
    return clipped


def _choices(graph: Graph, x: str, actions: ChoiceActions) -> str:
    """One-hot block of the largest output of each block; of equal ones the first counts."""
    values = graph.floats(0, 1)
    counts = actions.counts
    blocks = graph.add_several("Split", len(counts), x, graph.integers(*counts), axis=1)
    hot = []
    for block, count in zip(blocks, counts, strict=True):
        chosen = graph.add("ArgMax", block, axis=1, keepdims=0, select_last_index=0)
        hot.append(graph.add("OneHot", chosen, graph.constant(np.array(count, np.int64)), values, axis=-1))
    return graph.add("Concat", *hot, axis=1)


def _keep_nan(graph: Graph, x: str, actions: str) -> str:
    """Actions, but NaN in the rows whose outputs hold a NaN."""
    nan = graph.add("Cast", graph.add("IsNaN", x), to=1)
    bad = graph.add("Greater", graph.add("ReduceMax", nan, axes=[1]), graph.floats(0))
    return graph.add("Where", bad, graph.floats(float("nan")), actions)
