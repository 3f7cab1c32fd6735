"""OpenVINO itself, imported so that it reports to nobody."""

from __future__ import annotations

import sys
from functools import cache

# OpenVINO reports to its makers that it is imported, from a fork of this process that is waited for at the end. A fork
# of a process with threads may hang for good. It does without where this package is not to be had.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402


@cache
def core() -> ov.Core:
    """The process's one core."""
    return ov.Core()
