"""Weights in half precision, for files that people share: the loaders make float32 of them again."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import load, save

_BUFFERS = frozenset({"activation_max"})  # not weights: ranges, of which float16 holds less than they may reach


def to_half(weights: bytes) -> bytes:
    """Convert the weights of a safetensors file to float16; its metadata stays.

    Args:
        weights: Safetensors bytes, float32.

    Raises:
        ValueError: A weight is too large for float16.
    """
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    arrays = load(weights)
    for name, array in arrays.items():
        if name not in _BUFFERS and array.dtype == np.float32:
            with np.errstate(over="ignore"):
                arrays[name] = array.astype(np.float16)
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} reaches {np.abs(array).max():g}, too large for float16")
    data: bytes = save(arrays, header.get("__metadata__"))
    return data
