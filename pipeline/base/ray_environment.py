"""Environment variables of Ray that say where a run is: in a job, or on a cluster."""

from __future__ import annotations

import json
import os

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the driver of a job, to the job's description
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # seconds between SIGTERM and SIGKILL when a job is stopped; Ray's default is 3


def is_job() -> bool:
    """Whether this process is the driver of a Ray job."""
    return _JOB in os.environ


def has_uploaded_sources() -> bool:
    """Whether this process is the driver of a Ray job with uploaded sources, which are deleted with the job."""
    job = json.loads(os.environ.get(_JOB) or "{}")
    return "working_dir" in job.get("runtime_env", {})


def cluster_address(ray_address: str | None) -> str | None:
    """Address of the cluster that a run on Ray joins; None for a local Ray.

    Args:
        ray_address: Value of ``execution.ray_address``.
    """
    address = ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address
