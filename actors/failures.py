"""What a Ray failure means to the pipeline, and where the log of the worker lies."""

from __future__ import annotations

import socket
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

from pipeline.errors import JobError, WorldModelsError


def session_logs() -> Path:
    """The folder of this node's Ray logs; every node has one of the same path."""
    return Path(ray.get_runtime_context().get_session_dir()) / "logs"


def log_location(host: str, pid: int) -> str:
    """Where the output of a worker process lies."""
    folder = session_logs()
    found = sorted(folder.glob(f"worker-*-{pid}.err")) if host in (socket.gethostname(), "127.0.0.1") else []
    path = found[0] if found else folder / f"worker-*-{pid}.err"
    return f"the worker's log: {path} (and .out beside it) on {host}, pid {pid}"


def explain(error: RayTaskError, what: str) -> WorldModelsError:
    """An exception that user code raised on a worker, as an error of ours.

    One of ours comes back as it is; any other is wrapped, with where the log lies.
    """
    if isinstance(error.cause, WorldModelsError):
        return error.cause
    return JobError(f"{what} failed: {error.cause!r}; {log_location(error.ip, error.pid)}")
