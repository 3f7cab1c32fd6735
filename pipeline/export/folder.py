"""The folder of an exported agent: four files of ONNX and a README."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.data.trained_agent import TrainedAgent
from pipeline.envs.registry import traits_of
from pipeline.export import networks
from pipeline.export.graph import PRODUCER
from pipeline.export.readme import TITLE, readme
from pipeline.models.controller import ControllerShape
from pipeline.models.metadata import Description
from pipeline.models.weights import load_mdnrnn, load_vae
from pipeline.stages.description import describe_controller, describe_mdnrnn, describe_vae
from pipeline.storage.store import Store

README = "README.md"
NETWORKS = ("encoder", "decoder", "mdnrnn", "controller")


def require_free(store: Store) -> None:
    """Check that a folder is empty, or holds an earlier export and nothing else.

    Raises:
        ConfigError: It holds another file.
    """
    ours: dict[str, Callable[[bytes], bool]] = {f"{name}.onnx": _is_export for name in NETWORKS}
    ours[README] = lambda data: data.startswith(TITLE.encode())
    for key in store.list():
        if key not in ours or not ours[key](store.read(key)):
            raise ConfigError(
                f"--onnx {store.locate()}: the folder holds {key}, which is no earlier export. Choose an empty or a "
                "new folder"
            )


def export(trained: TrainedAgent, controller: str | None, store: Store) -> list[str]:
    """Write an agent's networks, each as a file of ONNX, and a README; those of an earlier export are replaced.

    Each file is written as a whole. Files that remain from two agents, after a kill, differ in the entry ``agent`` of
    their metadata.

    Args:
        trained: Weights and controllers of a run.
        controller: Name of the controller; None for the best.
        store: Store of the folder.

    Returns:
        Locations of the files.

    Raises:
        ConfigError: There is no such controller, the folder holds other files, or the environment's actions are a
            class of the user.
        DamagedDataError: The weights do not belong to the run's config.
    """
    require_free(store)
    config, parameters = trained.config, trained.controller(controller)
    digest = trained.digest(controller)[:16]
    files = {f"{name}.onnx": data for name, data in make_files(trained, parameters, {"agent": digest}).items()}
    text = readme(config, controller or min(trained.controllers), digest)
    for key, data in {**files, README: text.encode()}.items():
        store.write(key, data)
    return [store.locate(key) for key in (*files, README)]


def make_files(trained: TrainedAgent, parameters: NDArray[np.float32], metadata: dict[str, str]) -> dict[str, bytes]:
    """Make the files of ONNX, by the names of the networks.

    Args:
        trained: Weights of a run.
        parameters: Parameters of the controller, (n,) float32.
        metadata: Entries of the files' metadata beside their descriptions.

    Raises:
        ConfigError: The environment's actions are a class of the user, with a ``squash`` of its own.
        DamagedDataError: The weights do not belong to the run's config.
    """
    config, agent = trained.config, trained.config.agent
    actions = traits_of(config.env).actions
    vae = _arrays(load_vae(agent, trained.vae_weights))
    mdnrnn = _arrays(load_mdnrnn(agent, actions.size, trained.mdnrnn_weights))
    of_v = _describe_vae(trained)
    shape = ControllerShape.of_agent(agent, actions.size)
    sizes = {"z": agent.vae.z_size, "h": agent.mdnrnn.hidden_size, "c": agent.mdnrnn.hidden_size}
    graphs = {
        "encoder": (networks.encoder(vae), of_v),
        "decoder": (networks.decoder(vae), of_v),
        "mdnrnn": (
            networks.mdnrnn_step(mdnrnn, agent.mdnrnn, agent.vae.z_size, actions.size),
            describe_mdnrnn(config, actions.size),
        ),
        "controller": (networks.controller(shape, parameters, actions, sizes), describe_controller(config)),
    }
    return {name: graph.to_bytes(description, metadata) for name, (graph, description) in graphs.items()}


def _describe_vae(trained: TrainedAgent) -> Description:
    """Description of V whose frames are those of the files, which scale and transpose them."""
    description = describe_vae(trained.config)
    return {
        **description,
        "frames": {
            **description["frames"],
            "input": "uint8 (N, H, W, 3); the decoder's: float32 (N, H, W, 3), the uint8 values / 255",
        },
    }


def _arrays(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _is_export(data: bytes) -> bool:
    """Whether bytes are a file of ONNX that this project wrote."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        return False
    return bool(model.producer_name == PRODUCER)
