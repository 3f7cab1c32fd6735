"""Metadata of weights files: JSON under one key.

safetensors writes several keys in no fixed order, and the same run must give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

KEY = "world_models"

Description = Mapping[str, Any]


def to_metadata(description: Description) -> dict[str, str]:
    """Convert a description to the metadata of a safetensors file."""
    return {KEY: json.dumps(description, sort_keys=True)}
