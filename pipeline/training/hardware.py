"""Which device and which precision training uses."""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.executor import Executor, InProcessExecutor


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """``auto`` is CUDA where there is a device.

    Raises:
        ConfigError: ``cuda`` was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch finds no CUDA device here; choose 'cpu' or 'auto'")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def check_devices(config: RunConfig, executor: Executor) -> None:
    """Refuse a device that is not there, before anything is begun.

    Raises:
        ConfigError: names the key.
    """
    present = torch.cuda.is_available() if isinstance(executor, InProcessExecutor) else executor.num_gpus > 0
    for key, device in (("vae.device", config.vae.device), ("mdnrnn.device", config.mdnrnn.device)):
        if device == "cuda" and not present:
            raise ConfigError(
                f"{key} = 'cuda', but there is no GPU to be had; choose 'auto' or 'cpu', or add a GPU node"
            )


def gpus_for(device: Literal["auto", "cpu", "cuda"], executor: Executor) -> int:
    """How many GPUs a training task asks its executor for."""
    return 1 if device == "cuda" or (device == "auto" and executor.num_gpus > 0) else 0


def precision_name(precision: torch.dtype) -> str:
    """As configs have it: float32 or bfloat16."""
    return str(precision).removeprefix("torch.")


def resolve_precision(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capabilities = torch.cpu.get_capabilities()
            native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
