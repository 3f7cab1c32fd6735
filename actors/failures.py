"""Failures that Ray reports: one classification for tasks, for pools and for trials."""

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

from pipeline.execution.failures import Failure, FailureKind, raised

# In this order: Ray's classes of a lost node and of a lack of memory may also be those of a lost actor.
_KINDS = (
    (ActorUnavailableError, FailureKind.UNREACHABLE),
    (NodeDiedError, FailureKind.NODE_LOST),
    (OutOfMemoryError, FailureKind.OUT_OF_MEMORY),
    (RayActorError, FailureKind.WORKER_LOST),
    (WorkerCrashedError, FailureKind.WORKER_LOST),
)


def classify(error: RayError) -> Failure:
    """Failure that an error of Ray reports."""
    if isinstance(error, RayTaskError):
        return raised(error.cause)
    kind = next((kind for of_ray, kind in _KINDS if isinstance(error, of_ray)), FailureKind.OTHER)
    if kind is FailureKind.OTHER:
        return Failure(kind, f"it failed on Ray: {error!r}", error)
    if kind is FailureKind.UNREACHABLE:
        return Failure(kind, "the connection to it was lost", error)
    first_line = str(error).strip().splitlines()[0]  # hints and logs follow it
    return Failure(kind, f"its worker died: {first_line}", error)


def raised_message(error: BaseException) -> str:
    """Message of an error as it was raised in a task, however many tasks passed it on."""
    while isinstance(error, RayTaskError) and error.cause is not error:
        error = error.cause
    return str(error) or type(error).__name__
