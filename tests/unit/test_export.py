"""Exported agents: the ONNX files give the results of torch and of the pipeline's agent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from pipeline.agent import Agent
from pipeline.base.errors import ConfigError
from pipeline.base.seeding import derive
from pipeline.cli.main import main
from pipeline.config.presets import dump
from pipeline.config.schema import RunConfig
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.actions import Actions, BoxActions, ChoiceActions, SwitchActions
from pipeline.envs.car_racing import CarActions
from pipeline.envs.take_cover import TakeCoverActions
from pipeline.execution.in_process import InProcessExecutor
from pipeline.export import networks
from pipeline.export.folder import NETWORKS, README, export, make_files
from pipeline.export.graph import BATCH, OPSET, Graph
from pipeline.export.squashing import squash
from pipeline.models import weights
from pipeline.models.controller import ControllerBatch, ControllerShape, join_features
from pipeline.models.metadata import KEY
from pipeline.models.vae import frames_to_input
from pipeline.run import run_stages
from pipeline.stages.description import describe_controller, describe_mdnrnn
from pipeline.stages.table import STAGES
from pipeline.storage.layout import CONFIG
from pipeline.storage.local import LocalStore
from tests.counting import counting_config
from tests.unit.test_agent import images, make_trained

BATCHES = (1, 3, 8)
TOLERANCE = 2e-5  # sums of a layer have up to 6,400 terms, in another order than in torch

Arrays = dict[str, NDArray[Any]]


def session_of(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def outputs_of(session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    names = [each.name for each in session.get_outputs()]
    wanted = {each.name: inputs[each.name] for each in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


def assert_equal_but_for_rounding(ours: NDArray[Any], expected: NDArray[Any], name: str = "") -> None:
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def assert_close(ours: Arrays, expected: Mapping[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert ours[name].dtype == np.float32
        assert_equal_but_for_rounding(ours[name], values.numpy(), name)


@torch.inference_mode()
def test_exported_v_equals_torch() -> None:
    trained = make_trained()
    files = make_files(trained, trained.controller(), {})
    encoder, decoder = session_of(files["encoder"]), session_of(files["decoder"])
    vae = weights.load_vae(trained.config.agent, trained.vae_weights)
    rng = np.random.default_rng(0)
    for batch in BATCHES:
        frames, z = images(batch, rng, 64), rng.normal(0, 2, (batch, 8)).astype(np.float32)
        mu, logvar = vae.encode(frames_to_input(frames))
        assert_close(outputs_of(encoder, {"frames": frames}), {"mu": mu, "logvar": logvar})
        decoded = vae.decode(torch.from_numpy(z)).permute(0, 2, 3, 1)
        assert_close(outputs_of(decoder, {"z": z}), {"frames": decoded})


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"mixture": "joint"},
        {"reward_weight": 1.0},
        {"mixture": "joint", "done_weight": 0.5},
        {"reward_weight": 1.0, "done_weight": 1.0, "log_sigma_min": -1.0, "log_sigma_max": 0.5},
        {"mixture": "joint", "mixtures": 1, "log_sigma_min": -40.0, "log_sigma_max": 3.0},
    ],
)
@torch.inference_mode()
def test_exported_step_of_m_equals_torch(section: dict[str, Any]) -> None:
    config = RunConfig.model_validate(
        {"vae": {"z_size": 5}, "mdnrnn": {"hidden_size": 7, "mixtures": 3, "window": 10, **section}}
    )
    model = weights.new_mdnrnn(config.agent, 2)
    for parameter in model.parameters():
        parameter.mul_(6)  # far enough for the bounds of log sigma to matter
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph = networks.mdnrnn_step(arrays, config.mdnrnn, 5, 2)
    session = session_of(graph.to_bytes(describe_mdnrnn(config, 2), {}))
    assert [each.name for each in session.get_inputs()] == ["z", "action", "h", "c"]
    rng = np.random.default_rng(1)
    for batch in BATCHES:
        inputs = {
            name: rng.standard_normal((batch, size), np.float32)
            for name, size in (("z", 5), ("action", 2), ("h", 7), ("c", 7))
        }
        z, action, h, c = (torch.from_numpy(array) for array in inputs.values())
        prediction, (next_h, next_c) = model(z[:, None], action[:, None], (h[None], c[None]))
        expected = {
            "next_h": next_h[0],
            "next_c": next_c[0],
            **{name: tensor[:, 0] for name, tensor in prediction.mixture._asdict().items()},
        }
        for name, head in (("reward", prediction.reward), ("end_logit", prediction.done_logit)):
            if head is not None:
                expected[name] = head[:, 0]
        assert_close(outputs_of(session, inputs), expected)


@pytest.mark.parametrize("features", ["z", "zh", "zch"])
@pytest.mark.parametrize(("hidden", "bias"), [(0, True), (0, False), (6, True), (6, False)])
def test_exported_controller_equals_the_pipelines(features: str, hidden: int, bias: bool) -> None:
    config = RunConfig.model_validate(
        {
            "vae": {"z_size": 5},
            "mdnrnn": {"hidden_size": 7, "window": 10},
            "controller": {"features": features, "hidden_size": hidden, "bias": bias},
        }
    )
    shape, actions = ControllerShape.of_agent(config.agent, 3), CarActions()
    rng = np.random.default_rng(2)
    parameters = rng.standard_normal(shape.num_parameters, np.float32)
    graph = networks.controller(shape, parameters, actions, {"z": 5, "h": 7, "c": 7})
    session = session_of(graph.to_bytes(describe_controller(config), {}))
    assert [each.name for each in session.get_inputs()] == list(features)
    for batch in BATCHES:
        values = {name: rng.standard_normal((batch, size), np.float32) for name, size in (("z", 5), ("h", 7), ("c", 7))}
        controllers = ControllerBatch(shape, batch)
        for row in range(batch):
            controllers.set_row(row, parameters)
        expected = actions.squash(controllers.outputs(join_features(features, **values)))
        assert_equal_but_for_rounding(outputs_of(session, values)["action"], expected)


def squashed(actions: Actions, outputs: NDArray[np.float32]) -> NDArray[Any]:
    graph = Graph("squash")
    graph.output("action", squash(graph, graph.input("x", actions.size), actions), actions.size)
    return outputs_of(session_of(graph.to_bytes({}, {})), {"x": outputs})["action"]


@pytest.mark.parametrize(
    "actions",
    [
        CarActions(),
        TakeCoverActions(),
        BoxActions([-2.0, 0.1, 5.0], [0.3, 0.7, 9.0]),
        BoxActions([[0.0, 1.0]], [[255.0, 2.0]], np.uint8),
        BoxActions([-0.1, 0.0], [0.1, 3.0], np.float16),
        ChoiceActions([4], [2]),
        ChoiceActions([3, 1, 2], [0, 1, 0], (3,)),
        SwitchActions((5,)),
    ],
    ids=lambda actions: f"{type(actions).__name__}-{actions.size}-{actions.space.dtype}",
)
def test_exported_actions_are_squashed_like_the_pipelines(actions: Actions) -> None:
    rng = np.random.default_rng(3)
    outputs = rng.normal(0, 3, (40, actions.size)).astype(np.float32)
    outputs[0], outputs[1], outputs[2] = 0, 1000, -1000  # equal outputs, and the bounds
    outputs[3, 0], outputs[4, -1] = np.inf, -np.inf
    outputs[5, 0] = np.nan
    ours = squashed(actions, outputs)
    scale = actions.high - actions.low
    np.testing.assert_allclose(ours / scale, actions.squash(outputs.copy()) / scale, atol=1e-6, rtol=1e-6)
    finite = ours[~np.isnan(ours).any(axis=-1)]
    assert ((actions.low <= finite) & (finite <= actions.high)).all()


def test_custom_action_functions_are_refused() -> None:
    class Squared(BoxActions):
        def squash(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
            return output**2

    with pytest.raises(ConfigError, match=r"Squared\.squash is a Python function"):
        squashed(Squared([0.0], [1.0]), np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("z", ["sample", "mu"])
def test_exported_loop_acts_like_the_agent(z: str) -> None:
    trained = make_trained(z)
    files = make_files(trained, trained.controller(), {})
    encoder, controller, mdnrnn = (session_of(files[name]) for name in ("encoder", "controller", "mdnrnn"))
    agent, rng, episode = Agent(trained, precision="float32"), np.random.default_rng(0), 11
    agent.reset(trained.config.tracks.test.start + episode)
    noise = np.random.Generator(np.random.PCG64(derive(trained.config.seed, "test/noise", episode)))
    state: Arrays = {name: np.zeros((1, 16), np.float32) for name in ("h", "c")}
    for _ in range(12):
        action = agent.act(images(1, rng)[0])
        encoded = outputs_of(encoder, {"frames": agent.frame[None]})
        state["z"] = encoded["mu"]
        if z == "sample":
            state["z"] = state["z"] + np.exp(encoded["logvar"] / 2) * noise.standard_normal((1, 8), np.float32)
        for name, expected in (("z", agent.z), ("h", agent.h), ("c", agent.c)):
            assert_equal_but_for_rounding(state[name][0], expected, name)
        chosen = outputs_of(controller, state)["action"]
        assert_equal_but_for_rounding(chosen[0], action)
        after = outputs_of(mdnrnn, {**state, "action": chosen})
        state |= {"h": after["next_h"], "c": after["next_c"]}


def test_files_name_their_opset_batch_and_kind(tmp_path: Path) -> None:
    trained, store = make_trained(), LocalStore(tmp_path)
    export(trained, "mean", store)
    agents = set()
    for name in NETWORKS:
        model = onnx.load(tmp_path / f"{name}.onnx")
        assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == BATCH
        entries = {entry.key: entry.value for entry in model.metadata_props}
        says = json.loads(entries[KEY])
        agents.add(entries["agent"])
        assert says["environment"] == "CarRacing-v3"
        if name == "controller":
            assert says == json.loads(json.dumps(describe_controller(trained.config)))
        if name == "encoder":
            assert says["frames"]["input"].startswith("uint8 (N, H, W, 3)")
        assert f"{name}.onnx" in (tmp_path / README).read_text()
    assert len(agents) == 1
    first = {key: store.read(key) for key in store.list()}
    export(trained, "mean", store)
    assert first == {key: store.read(key) for key in store.list()}
    export(trained, "best", store)  # another agent takes its place
    assert first["controller.onnx"] != store.read("controller.onnx")


@pytest.mark.parametrize("foreign", ["notes.txt", "encoder.onnx", README])
def test_folder_with_other_files_is_refused_and_unchanged(foreign: str, tmp_path: Path) -> None:
    (tmp_path / foreign).write_text("of somebody else")
    with pytest.raises(ConfigError, match=f"holds {foreign}, which is no earlier export"):
        export(make_trained(), None, LocalStore(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [foreign]


def test_command_exports_a_run_with_a_working_readme(
    tmp_path: Path, local_store: LocalStore, executor: InProcessExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, folder = str(local_store.root), tmp_path / "agent"
    config = counting_config()
    local_store.write(CONFIG, dump(config).encode())
    run_stages(config, local_store, executor, STAGES[:5])
    assert main(["export", run_dir, "--onnx", str(folder)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(folder / name) for name in (*(f"{name}.onnx" for name in NETWORKS), README)]
    trained = TrainedAgent.read(local_store)
    agent = {each.key: each.value for each in onnx.load(folder / "controller.onnx").metadata_props}["agent"]
    for name, data in make_files(trained, trained.controllers["best"], {"agent": agent}).items():
        assert (folder / f"{name}.onnx").read_bytes() == data
    example = (folder / README).read_text().split("```python\n")[1].split("```")[0]
    assert example.count("\n") <= 24
    code = f"{example}\nprint(action.shape, h.shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 2) (1, 7)"), done.stderr


def test_command_without_onnx_or_a_run_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(tmp_path / "none"), "--onnx", str(tmp_path / "agent")]
    assert main(command) == 1
    assert "holds no run" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(command) == 2
    assert "pip install 'world-models-ray[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "agent").exists()
