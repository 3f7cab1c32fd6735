"""C against plain numpy loops, and the independence of its rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config.agent import ControllerConfig
from pipeline.config.schema import RunConfig
from pipeline.models.controller import ControllerBatch, ControllerShape
from tests.counting import counting_config

SHAPES = {
    "linear": ControllerShape("zh", 7, 3, 0, bias=True),
    "no-bias": ControllerShape("zh", 7, 3, 0, bias=False),
    "hidden": ControllerShape("zh", 7, 3, 5, bias=True),
    "hidden-no-bias": ControllerShape("zh", 7, 3, 5, bias=False),
    "paper": ControllerShape("zh", 288, 3, 0, bias=True),
    "paper-hidden": ControllerShape("z", 32, 3, 40, bias=True),
    "zch": ControllerShape("zch", 544, 3, 0, bias=True),
}


def by_hand(shape: ControllerShape, parameters: NDArray[np.float32], features: NDArray[np.float32]) -> list[float]:
    """Weights row by row, then biases, layer by layer; tanh between the layers."""
    values = [float(x) for x in features]
    numbers = iter(float(x) for x in parameters)
    sizes = [shape.hidden_size] * bool(shape.hidden_size) + [shape.action_size]
    for layer, size in enumerate(sizes):
        if layer:
            values = [float(np.tanh(x)) for x in values]
        weights = [[next(numbers) for _ in values] for _ in range(size)]
        biases = [next(numbers) if shape.bias else 0.0 for _ in range(size)]
        values = [
            sum(w * x for w, x in zip(row, values, strict=True)) + b for row, b in zip(weights, biases, strict=True)
        ]
    assert next(numbers, None) is None, "parameters are left over"
    return values


def random_rows(shape: ControllerShape, rows: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Parameters (rows, n) and features (rows, F)."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rows, shape.num_parameters)).astype(np.float32),
        rng.standard_normal((rows, shape.feature_size)).astype(np.float32),
    )


def filled(shape: ControllerShape, parameters: NDArray[np.float32]) -> ControllerBatch:
    batch = ControllerBatch(shape, len(parameters))
    for row, values in enumerate(parameters):
        batch.set_row(row, values)
    return batch


@pytest.mark.parametrize(
    ("config", "action_size", "count"),
    [
        (ControllerConfig(features="zh"), 3, 867),
        (ControllerConfig(features="z"), 3, 99),
        (ControllerConfig(features="z", hidden_size=40), 3, 32 * 40 + 40 + 40 * 3 + 3),
        (ControllerConfig(features="zch"), 3, (32 + 256 + 256) * 3 + 3),
        (ControllerConfig(features="zh", bias=False), 3, 864),
    ],
)
def test_sizes_are_the_published_ones(config: ControllerConfig, action_size: int, count: int) -> None:
    shape = ControllerShape.of(config, z_size=32, rnn_size=256, action_size=action_size)
    assert shape.num_parameters == count


def test_the_takecover_controller_has_1088_parameters() -> None:
    config = ControllerConfig(features="zch", bias=False)
    assert ControllerShape.of(config, z_size=64, rnn_size=512, action_size=1).num_parameters == 1088


def test_shape_follows_the_config_of_the_run() -> None:
    config: RunConfig = counting_config({"controller.features": "zch", "controller.hidden_size": 4})
    shape = ControllerShape.of_agent(config.agent, action_size=2)
    assert (shape.feature_size, shape.layers) == (5 + 7 + 7, [(4, 19), (2, 4)])


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_equal_a_plain_loop(name: str) -> None:
    shape = SHAPES[name]
    parameters, features = random_rows(shape, 6)
    outputs = filled(shape, parameters).outputs(features)
    assert outputs.shape == (6, 3)
    assert outputs.dtype == np.float32
    expected = [by_hand(shape, p, x) for p, x in zip(parameters, features, strict=True)]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    rows=st.integers(1, 33),
    data=st.data(),
)
def test_bits_of_a_row_do_not_depend_on_other_rows_or_its_index(name: str, rows: int, data: st.DataObject) -> None:
    shape = SHAPES[name]
    parameters, features = random_rows(shape, 1, seed=data.draw(st.integers(0, 100)))
    alone = filled(shape, parameters).outputs(features)[0]
    row = data.draw(st.integers(0, rows - 1))
    start = data.draw(st.integers(0, row))
    stop = data.draw(st.integers(row + 1, rows))
    others, other_features = random_rows(shape, rows, seed=1000)
    others[row], other_features[row] = parameters[0], features[0]
    together = filled(shape, others).outputs(other_features[start:stop], start)
    assert together[row - start].tobytes() == alone.tobytes()


def test_start_sets_the_controllers_of_the_features() -> None:
    shape = SHAPES["linear"]
    parameters, features = random_rows(shape, 8)
    batch = filled(shape, parameters)
    np.testing.assert_array_equal(batch.outputs(features[4:7], 4), batch.outputs(features)[4:7])


@pytest.mark.parametrize("name", ["linear", "hidden", "hidden-no-bias"])
def test_moved_controller_is_equal_and_its_source_is_unchanged(name: str) -> None:
    shape = SHAPES[name]
    parameters, features = random_rows(shape, 4)
    batch = filled(shape, parameters)
    same = np.repeat(features[:1], 4, axis=0)
    before = batch.outputs(same)
    batch.move_row(3, 1)
    np.testing.assert_array_equal(batch.outputs(same), before[[0, 3, 2, 3]])
    batch.set_row(3, parameters[0])
    np.testing.assert_array_equal(batch.outputs(same), before[[0, 3, 2, 0]])


def test_setting_a_row_replaces_the_whole_row() -> None:
    shape = SHAPES["hidden"]
    parameters, features = random_rows(shape, 2)
    batch = filled(shape, parameters)
    batch.set_row(0, parameters[1])
    np.testing.assert_array_equal(batch.outputs(features), filled(shape, parameters[[1, 1]]).outputs(features))


@pytest.mark.parametrize("size", [0, 23, 25])
def test_vector_of_another_length_is_refused(size: int) -> None:
    assert SHAPES["linear"].num_parameters == 24
    with pytest.raises(ValueError, match="expected 24 parameters"):
        ControllerBatch(SHAPES["linear"], 1).set_row(0, np.zeros(size, np.float32))
