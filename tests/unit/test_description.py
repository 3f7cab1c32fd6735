"""The metadata of weights: enough to use a single file, and the same bytes for the same run."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
from gymnasium.envs.box2d.car_racing import CarRacing as GymnasiumCarRacing

from pipeline.config.schema import RunConfig
from pipeline.envs.registry import make_environment
from pipeline.models.controller import ControllerBatch, ControllerShape
from pipeline.models.metadata import KEY, to_metadata
from pipeline.models.weights import new_vae, to_bytes
from pipeline.stages.description import describe_controller, describe_mdnrnn, describe_vae
from tests.counting import counting_config


def described(config: RunConfig) -> dict[str, Any]:
    """The metadata of each kind of file, read back from JSON."""
    descriptions = {
        "vae": describe_vae(config),
        "mdnrnn": describe_mdnrnn(config, 3),
        "controller": describe_controller(config),
    }
    return {name: json.loads(to_metadata(description)[KEY]) for name, description in descriptions.items()}


@pytest.mark.parametrize("view", ["playfield", "full"])
def test_frames_cropped_by_the_metadata_equal_the_pipelines(view: str) -> None:
    config = RunConfig.model_validate({"env": {"view": view, "rendering": "gymnasium"}})
    frames = described(config)["vae"]["frames"]
    game = GymnasiumCarRacing(render_mode="rgb_array")
    observation, _ = game.reset(seed=5)
    (top, bottom), (left, right) = frames["crop"]["rows"], frames["crop"]["columns"]
    height, width = frames["size"]
    assert frames["reduced"] == "by area averaging"
    cut = cv2.resize(observation[top:bottom, left:right], (width, height), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(cut, make_environment(config.env).reset(5))
    assert frames["view"] == view


@pytest.mark.parametrize("features, hidden, bias", [("z", 0, True), ("zh", 0, False), ("zch", 6, True)])
def test_controller_applied_by_the_metadata_acts_like_the_pipelines(features: str, hidden: int, bias: bool) -> None:
    config = RunConfig.model_validate({"controller": {"features": features, "hidden_size": hidden, "bias": bias}})
    says = described(config)["controller"]
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(says["sizes"][name], np.float32) for name in says["features"]}
    shape = ControllerShape.of_agent(config.agent, 3)
    parameters = rng.standard_normal(shape.num_parameters, np.float32)

    x = np.concatenate([values[name] for name in says["features"]]).astype(np.float64)
    left = parameters.astype(np.float64)
    for number, (outputs, inputs) in enumerate(says["layers"]):
        weights, left = left[: outputs * inputs].reshape(outputs, inputs), left[outputs * inputs :]
        x = weights @ x
        if "no biases" not in says["layout"]:
            x, left = x + left[:outputs], left[outputs:]
        if says["hidden_activation"] == "tanh" and number < len(says["layers"]) - 1:
            x = np.tanh(x)
    assert len(left) == 0
    assert "tanh(x); gas (tanh(x) + 1) / 2; brake max(tanh(x), 0)" in says["actions"]["squashing"]["formula"]
    expected = np.tanh(x)
    expected[1:] = (expected[1] + 1) / 2, max(expected[2], 0)

    controllers = ControllerBatch(shape, 1)
    controllers.set_row(0, parameters)
    row = np.concatenate([values[name] for name in features])[None]
    actions = make_environment(config.env).actions.squash(controllers.outputs(row, 0))[0]
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_descriptions_name_the_environment_and_the_sizes_of_the_config() -> None:
    config = RunConfig.model_validate(
        {"vae": {"z_size": 9}, "mdnrnn": {"hidden_size": 11, "window": 99}, "env": {"action_repeat": 2}}
    )
    says = described(config)
    assert {part["environment"] for part in says.values()} == {"CarRacing-v3"}
    assert says["vae"]["z_size"] == 9
    assert says["mdnrnn"]["input"] == ["z", "action"]
    assert says["mdnrnn"]["sizes"] == {"z": 9, "action": 3, "hidden": 11}
    assert says["mdnrnn"]["actions"]["low"] == [-1.0, 0.0, 0.0]
    assert says["mdnrnn"]["action_repeat"] == says["controller"]["action_repeat"] == 2


def test_environment_without_a_frame_description_is_described_without_one() -> None:
    says = described(counting_config())
    assert "view" not in says["vae"]["frames"] and says["vae"]["frames"]["size"] == [64, 64]
    assert says["controller"]["actions"]["squashing"] == {
        "function": "pipeline.envs.actions:BoxActions.squash",
        "formula": "low + (tanh(x) + 1) / 2 * (high - low)",
    }


def test_same_weights_and_config_give_the_same_bytes() -> None:
    config = counting_config()
    first, second = (to_bytes(new_vae(config.agent), describe_vae(config)) for _ in range(2))
    assert first == second
    elsewhere = config.model_copy(update={"env": RunConfig().env})
    assert first != to_bytes(new_vae(config.agent), describe_vae(elsewhere))
