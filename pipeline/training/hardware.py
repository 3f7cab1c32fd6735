"""Selection of the device and precision for training."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from functools import cache
from typing import Literal

import torch

from pipeline.base.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.execution.protocol import Executor
from pipeline.models.precision import has_fast_bfloat16

logger = logging.getLogger(__name__)

# Values of CUDA_VISIBLE_DEVICES that mean no GPU: set by Ray, by CUDA, and by clusters whose nodes have no GPU.
_NO_GPU = ("", "-1", "NoDevFiles")


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Resolve a device setting in this process: ``auto`` is CUDA if torch finds a device, else the CPU.

    Raises:
        ConfigError: The setting is ``cuda`` and there is no device; or it is ``auto`` and this process was given a GPU
            that torch cannot use.
    """
    present = torch.cuda.is_available()
    if device == "cuda" and not present:
        raise ConfigError("device = 'cuda', but torch finds no CUDA device here; choose 'cpu' or 'auto'")
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if device == "auto" and not present and given not in _NO_GPU:
        raise ConfigError(
            f"device = 'auto' and CUDA_VISIBLE_DEVICES = '{given}' gives a GPU, but torch finds no CUDA device here: "
            "torch may be a CPU build, or the driver may be missing. Use an image built with DEVICE=gpu; or unset "
            "CUDA_VISIBLE_DEVICES to train on the CPU"
        )
    return torch.device("cuda" if present and device != "cpu" else "cpu")


def check_devices(config: RunConfig, executor: Executor, sections: Collection[str]) -> None:
    """Check devices and precisions before the run starts; log if ``auto`` selects the CPU.

    Args:
        config: Config of the run.
        executor: Executor of the stages.
        sections: Sections of the config that the stages to run depend on: a device that no stage uses is not checked.

    Raises:
        ConfigError: A device does not exist or does not support the precision; names the key.
    """
    present = executor.has_gpu
    devices = []
    if "vae" in sections:
        devices.append(("vae.device", config.vae.device))
    if "mdnrnn" in sections:
        devices.append(("mdnrnn.device", config.mdnrnn.device))
    if "dream" in sections and config.evolve.environment == "dream":
        devices.append(("dream.device", config.dream.device))
    for key, device in devices:
        if device == "cuda" and not (present or executor.can_grow):
            raise ConfigError(
                f"{key} = 'cuda', but there is no GPU here; choose 'auto' or 'cpu', or run on a machine or a cluster "
                "with a GPU"
            )
        if not executor.can_grow:  # the training process sees the same devices as this process
            resolve_device(device)
        if device == "auto" and not present:
            hint = "; 'cuda' waits for the autoscaler to add one" if executor.can_grow else ""
            logger.info("%s = 'auto': no GPU is available; using the CPU%s", key, hint)
    if "mdnrnn" in sections and not (present or executor.can_grow):  # on a cluster each worker checks its own CPU
        cpu = torch.device("cpu")
        check_lstm(training_precision(config.mdnrnn.precision, cpu), cpu)


def gpus_for(device: Literal["auto", "cpu", "cuda"], executor: Executor) -> int:
    """Number of GPUs that a task requests from the executor."""
    return 1 if device == "cuda" or (device == "auto" and executor.has_gpu) else 0


def precision_name(precision: torch.dtype) -> str:
    """Name of a precision as in configs: float32 or bfloat16."""
    return str(precision).removeprefix("torch.")


def training_precision(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """Resolve a precision setting: ``auto`` is bfloat16 if it is faster on the device, else float32."""
    if precision == "auto":
        on_gpu = device.type == "cuda"
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else has_fast_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@cache
def runs_lstm(precision: torch.dtype) -> bool:
    """Return whether torch can compute an LSTM on this CPU; bfloat16 needs AVX-512."""
    try:
        with (
            torch.random.fork_rng(devices=[]),  # leave the run's random numbers unchanged
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is torch.bfloat16),
        ):
            torch.nn.LSTM(2, 4, batch_first=True)(torch.zeros(1, 1, 2))
    except RuntimeError as error:
        logger.debug("an LSTM in %s: %s", precision, error)
        return False
    return True


def check_lstm(precision: torch.dtype, device: torch.device) -> None:
    """Check that the MDN-RNN can be trained in a precision on a device.

    Raises:
        ConfigError: It cannot; names the key.
    """
    if device.type == "cpu" and precision is torch.bfloat16 and not runs_lstm(precision):
        raise ConfigError(
            f"mdnrnn.precision = '{precision_name(precision)}', but torch cannot compute an LSTM in it on this CPU "
            "(AVX-512 is required): choose 'auto' or 'float32'"
        )
