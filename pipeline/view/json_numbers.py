"""Numbers that are not finite, which JSON for browsers does not know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def without_nan(value: Any) -> Any:
    """Copy plain values, with None in place of each number that is infinite or not a number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    return type(value)(map(without_nan, value)) if isinstance(value, list | tuple) else value
