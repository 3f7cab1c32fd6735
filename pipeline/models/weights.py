"""Final weights as safetensors: readable by any tool, without unpickling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.base.errors import DamagedDataError
from pipeline.base.seeding import derive
from pipeline.config.agent import AgentConfig
from pipeline.models.mdnrnn import MdnRnn
from pipeline.models.metadata import Description, to_metadata
from pipeline.models.vae import Vae


def to_bytes(module: nn.Module, description: Description | None = None) -> bytes:
    """Serialise a module's parameters and buffers as safetensors on the CPU.

    Args:
        module: V or M.
        description: Description for the file's metadata; None for weights that are never stored.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    data: bytes = save(tensors, to_metadata(description) if description is not None else None)
    return data


def load_into(module: nn.Module, data: bytes, what: str) -> None:
    """Load safetensors bytes into a module.

    Args:
        module: V or M.
        data: Safetensors bytes.
        what: Name of the weights for messages, in the plural.

    Raises:
        DamagedDataError: The bytes are not readable, or names or shapes differ from the module's.
    """
    try:
        tensors: Mapping[str, Tensor] = load(data)
        module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise DamagedDataError(f"{what} do not belong to this config: {error}") from error


def new_vae(config: AgentConfig) -> Vae:
    """Create V with initial weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "vae/init"))
        return Vae(config.vae.z_size)


def new_mdnrnn(config: AgentConfig, action_size: int) -> MdnRnn:
    """Create M with initial weights that depend on the seed only."""
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


def load_vae(config: AgentConfig, data: bytes) -> Vae:
    """Create V with stored weights; arguments and errors as for ``load_into``."""
    vae = new_vae(config)
    load_into(vae, data, "the VAE's weights")
    return vae


def load_mdnrnn(config: AgentConfig, action_size: int, data: bytes) -> MdnRnn:
    """Create M with stored weights; arguments and errors as for ``load_into``."""
    mdnrnn = new_mdnrnn(config, action_size)
    load_into(mdnrnn, data, "the MDN-RNN's weights")
    return mdnrnn
