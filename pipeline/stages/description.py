"""Descriptions of weights for the metadata of their safetensors files, so that a file is usable without its run.

A description says how frames are cropped, in which order a controller takes its features, and how its outputs become
actions. It is stored as JSON under a single key, because safetensors writes several keys in no fixed order and the same
run must give the same bytes.
"""

from __future__ import annotations

from pipeline.config.schema import EnvConfig, RunConfig
from pipeline.data.frames import FRAME_SHAPE
from pipeline.envs.registry import traits_of
from pipeline.models.controller import ControllerShape
from pipeline.models.metadata import Description


def describe_vae(config: RunConfig) -> Description:
    """Describe V: the view, crop, size, channels and scale of its frames."""
    return {
        "model": "VAE",
        "environment": config.env.id,
        "frames": {
            "size": FRAME_SHAPE[:2],
            "channels": "RGB",
            "input": "float32 (N, 3, H, W): the uint8 values / 255",
            "rendering": config.env.rendering,
            **traits_of(config.env).frames,
        },
        "z_size": config.vae.z_size,
        "outputs": "mu and logvar of z; z = mu + exp(logvar / 2) * standard normal",
    }


def describe_mdnrnn(config: RunConfig, action_size: int) -> Description:
    """Describe M: the order and sizes of its inputs, and its actions."""
    return {
        "model": "MDN-RNN",
        "environment": config.env.id,
        "input": ["z", "action"],
        "sizes": {"z": config.vae.z_size, "action": action_size, "hidden": config.mdnrnn.hidden_size},
        "mixture": {
            "kind": config.mdnrnn.mixture,
            "components": config.mdnrnn.mixtures,
            "log_sigma": [config.mdnrnn.log_sigma_min, config.mdnrnn.log_sigma_max],
        },
        "action_repeat": config.env.action_repeat,
        "actions": _describe_actions(config.env),
    }


def describe_controller(config: RunConfig) -> Description:
    """Describe C: the order of its features, the layout of its parameters, and the squashing of its outputs."""
    shape = ControllerShape.of_agent(config.agent, traits_of(config.env).actions.size)
    return {
        "model": "controller",
        "environment": config.env.id,
        "features": list(shape.features),
        "z": config.controller.z,
        "sizes": {"z": config.vae.z_size, "c": config.mdnrnn.hidden_size, "h": config.mdnrnn.hidden_size},
        "layers": shape.layers,
        "layout": "for each layer: weights, row-major (outputs, inputs), then biases"
        if shape.bias
        else "for each layer: weights, row-major (outputs, inputs); no biases",
        "hidden_activation": "tanh" if shape.hidden_size else None,
        "action_repeat": config.env.action_repeat,
        "actions": _describe_actions(config.env),
    }


def _describe_actions(env: EnvConfig) -> Description:
    traits = traits_of(env)
    return {
        "low": traits.actions.low.tolist(),
        "high": traits.actions.high.tolist(),
        "squashing": {"function": traits.squashing, "formula": traits.actions.formula},
    }
