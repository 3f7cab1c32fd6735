"""Import of OpenVINO with its telemetry disabled."""

from __future__ import annotations

import sys
from functools import cache

# On import, OpenVINO sends telemetry from a fork of this process and waits for the fork at exit. A fork of a process
# with threads may hang forever. OpenVINO skips the telemetry if this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402


@cache
def core() -> ov.Core:
    """Return the process's single OpenVINO core."""
    return ov.Core()
