"""Precision of V's encoder in rollouts and in the encode stage: native formats of this CPU, and ``auto``."""

from __future__ import annotations

import importlib.util
from typing import Literal

from pipeline.base.errors import ConfigError
from pipeline.config.agent import RolloutsConfig
from pipeline.config.identity import cpu_info

Precision = Literal["float32", "bfloat16", "int8"]


def native_precisions() -> list[Precision]:
    """Precisions that this CPU has instructions for, the fastest last.

    OpenVINO accepts any precision: it computes in float32 if it does not support the precision, and slowly in int8 if
    the CPU has no VNNI.
    """
    from pipeline.models.openvino_core import core

    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    native: list[Precision] = ["float32"]
    if "BF16" in capabilities:
        native.append("bfloat16")
    if "INT8" in capabilities and not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu_info().get("flags", "").split()):
        native.append("int8")
    return native


def has_fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 on this kind of CPU: with AMX, or on AMD with AVX-512's bfloat16.

    With AVX-512's alone, an Intel Xeon trains V at 118 instead of 143 frames/s, and rollouts run at 1,656 instead of
    2,033 agent-steps/s. An AMD EPYC trains faster with it (docs/performance.md).
    """
    fields = cpu_info()
    flags = fields.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and fields.get("vendor_id") == "AuthenticAMD")


def encoder_precision(rollouts: RolloutsConfig) -> Precision:
    """Resolve ``rollouts.precision`` on this machine.

    With OpenVINO, ``auto`` is int8 on a CPU with VNNI, else bfloat16 where it is faster, else float32. With torch, it
    is float32. It depends on the kind of CPU alone: by a measurement, two runs of one config could differ.

    Raises:
        ConfigError: The engine is not installed or does not support the precision, or this CPU has no instructions for
            it.
    """
    if rollouts.engine == "torch":
        if rollouts.precision == "int8":
            raise ConfigError("rollouts.precision = 'int8' needs rollouts.engine = 'openvino'")
        return "float32" if rollouts.precision == "auto" else rollouts.precision
    if importlib.util.find_spec("openvino") is None:
        raise ConfigError(
            "rollouts.engine = 'openvino', but the package openvino is not installed: "
            "pip install openvino, or choose -o rollouts.engine=torch (slower)"
        )
    native = native_precisions()
    if rollouts.precision == "auto":
        return [precision for precision in native if precision != "bfloat16" or has_fast_bfloat16()][-1]
    if rollouts.precision not in native:
        raise ConfigError(
            f"rollouts.precision = {rollouts.precision!r}, but this CPU has no instructions for it; "
            f"it has {', '.join(native)}"
        )
    return rollouts.precision


def resolved(rollouts: RolloutsConfig, *, exact: bool) -> dict[str, str]:
    """Engine and precision of V's encoder, for a manifest.

    With ``exact``, ``auto`` resolves to the same precision on all machines, so the resolved precision is
    given; otherwise workers may have other kinds of CPU, and the configured value is given.
    """
    return {
        "engine": rollouts.engine,
        "precision": encoder_precision(rollouts) if exact else rollouts.precision,
    }
