"""Address of the cluster that a run joins."""

from __future__ import annotations

import os

from pipeline.config.schema import ExecutionConfig


def cluster_address(execution: ExecutionConfig) -> str | None:
    """Address of the cluster that a run on Ray joins; None for a local Ray."""
    address = execution.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address
