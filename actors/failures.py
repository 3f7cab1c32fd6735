"""Failures that Ray reports: one classification for tasks and for pools."""

from __future__ import annotations

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from pipeline.base.errors import JobError, WorldModelsError
from pipeline.execution.failures import Failure, FailureKind, cause_message

# Out of memory has its own class, also for actors.
_WORKER_LOST = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)


def classify(error: RayError) -> Failure:
    """Failure that an error of Ray reports."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        fatal = isinstance(cause, WorldModelsError) and not isinstance(cause, JobError)
        return Failure(FailureKind.FATAL if fatal else FailureKind.RAISED, cause_message(cause), cause)
    if isinstance(error, ActorUnavailableError):
        return Failure(FailureKind.UNREACHABLE, "the connection to it was lost", error)
    if isinstance(error, _WORKER_LOST):
        first_line = str(error).strip().splitlines()[0]  # hints and logs follow it
        return Failure(FailureKind.WORKER_LOST, f"its worker died: {first_line}", error)
    return Failure(FailureKind.OTHER, f"it failed on Ray: {error!r}", error)
