"""Final weights as safetensors: readable by any tool, nothing unpickled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.base.errors import DamagedDataError
from pipeline.base.seeding import derive
from pipeline.config.schema import RunConfig
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.vae import Vae
from pipeline.stages.description import Description, to_metadata


def to_bytes(module: nn.Module, description: Description | None = None) -> bytes:
    """A module's parameters as safetensors, float32 on the CPU.

    Args:
        module: V or M.
        description: What the weights need, for the file's metadata; None for weights that are never stored.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    data: bytes = save(tensors, to_metadata(description) if description is not None else None)
    return data


def load_into(module: nn.Module, data: bytes, what: str) -> None:
    """Fill a module from safetensors bytes; the names and shapes must be its own."""
    try:
        tensors: Mapping[str, Tensor] = load(data)
        module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise DamagedDataError(f"{what} does not hold the weights of this config: {error}") from error


def new_vae(config: RunConfig) -> Vae:
    """V with its initial weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "vae/init"))
        return Vae(config.vae.z_size)


def new_mdnrnn(config: RunConfig, action_size: int) -> MdnRnn:
    """M with its initial weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "mdnrnn/init"))
        return MdnRnn(
            z_size=config.vae.z_size,
            action_size=action_size,
            hidden_size=config.mdnrnn.hidden_size,
            mixtures=config.mdnrnn.mixtures,
            mixture=config.mdnrnn.mixture,
            log_sigma_bounds=(config.mdnrnn.log_sigma_min, config.mdnrnn.log_sigma_max),
            reward_head=config.mdnrnn.reward_weight > 0,
            done_head=config.mdnrnn.done_weight > 0,
        )
