"""Failures of calls to Ray's workers: one classification for tasks and for pools."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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
from pipeline.execution.jobs import cause_message


class FailureKind(Enum):
    """Kind of a failed call."""

    FATAL = "an error of this project, which another attempt would meet again"
    RAISED = "the job or the task raised an error"
    WORKER_LOST = "the worker's process or node is gone"
    UNREACHABLE = "the connection failed; the worker may be alive"
    HUNG = "the worker was silent for too long"
    OTHER = "an error of Ray itself"


# Out of memory has its own class, also for actors.
_WORKER_LOST = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)


@dataclass(frozen=True)
class Failure:
    """A failed call.

    Attributes:
        kind: Kind of the failure.
        what: Description for messages.
        cause: Error that the job raised, or Ray's error; None if the worker hung.
    """

    kind: FailureKind
    what: str
    cause: BaseException | None


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


def hung(timeout_s: float) -> Failure:
    """Failure of a worker that was silent for ``timeout_s`` seconds."""
    what = (
        f"its worker hung: it gave no sign of life for {timeout_s:g} s and was killed "
        "(execution.timeout_s: raise it if a job takes longer)"
    )
    return Failure(FailureKind.HUNG, what, None)
