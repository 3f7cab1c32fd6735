"""Which device and which precision training uses."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Literal

import torch

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.execution.in_process import InProcessExecutor
from pipeline.execution.protocol import Executor

logger = logging.getLogger(__name__)

# What CUDA_VISIBLE_DEVICES is where it gives no GPU: Ray's, CUDA's, and that of clusters whose nodes have none.
_NO_GPU = ("", "-1", "NoDevFiles")


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """``auto`` is CUDA where there is a device.

    Raises:
        ConfigError: ``cuda`` was asked for and there is none; or this process was given a GPU that torch cannot use.
    """
    present = torch.cuda.is_available()
    if device == "cuda" and not present:
        raise ConfigError("device = 'cuda', but torch finds no CUDA device here; choose 'cpu' or 'auto'")
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if device == "auto" and not present and given not in _NO_GPU:
        raise ConfigError(
            f"device = 'auto' and CUDA_VISIBLE_DEVICES = '{given}' gives a GPU, but torch finds no CUDA device here: "
            "is it a CPU build, or the driver missing? Use an image built with DEVICE=gpu; or unset "
            "CUDA_VISIBLE_DEVICES to train on the CPU"
        )
    return torch.device("cuda" if present and device != "cpu" else "cpu")


def check_devices(config: RunConfig, executor: Executor) -> None:
    """Refuse a device that is not there, or a precision that it cannot, before anything is begun; say it where ``auto``
    comes to the CPU.

    Raises:
        ConfigError: names the key.
    """
    present = torch.cuda.is_available() if isinstance(executor, InProcessExecutor) else executor.num_gpus > 0
    for key, device in (("vae.device", config.vae.device), ("mdnrnn.device", config.mdnrnn.device)):
        if device == "cuda" and not (present or executor.can_grow):
            raise ConfigError(
                f"{key} = 'cuda', but there is no GPU to be had; choose 'auto' or 'cpu', or add a GPU node"
            )
        if not executor.can_grow:  # training sees what this process sees, and says the same
            resolve_device(device)
        if device == "auto" and not present:
            hint = "; 'cuda' waits for the autoscaler to bring one" if executor.can_grow else ""
            logger.info("%s = 'auto': there is no GPU to be had now, so on the CPU%s", key, hint)
    if not (present or executor.can_grow):  # on a cluster each worker looks at its own
        cpu = torch.device("cpu")
        check_lstm(resolve_precision(config.mdnrnn.precision, cpu), cpu)


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


@cache
def runs_lstm(precision: torch.dtype) -> bool:
    """Whether torch can compute an LSTM here on the CPU: in bfloat16 it cannot without AVX-512."""
    try:
        with (
            torch.random.fork_rng(devices=[]),  # the run's own numbers stay what they are
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is torch.bfloat16),
        ):
            torch.nn.LSTM(2, 4, batch_first=True)(torch.zeros(1, 1, 2))
    except RuntimeError as error:
        logger.debug("an LSTM in %s: %s", precision, error)
        return False
    return True


def check_lstm(precision: torch.dtype, device: torch.device) -> None:
    """Refuse a precision in which the MDN-RNN cannot be trained on a device.

    Raises:
        ConfigError: Names the key.
    """
    if device.type == "cpu" and precision is torch.bfloat16 and not runs_lstm(precision):
        raise ConfigError(
            f"mdnrnn.precision = '{precision_name(precision)}', in which torch computes no LSTM on this CPU (it takes "
            "AVX-512): choose 'auto' or 'float32'"
        )
