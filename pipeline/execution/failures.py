"""Failures of workers and of jobs: their kinds, the errors that name them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from pipeline.base.errors import EpisodeError, JobError, WorldModelsError


class FailureKind(Enum):
    """Kind of a failed call to a worker or a task."""

    FATAL = "an error of this project, which another attempt would meet again"
    RAISED = "the job or the task raised an error"
    WORKER_LOST = "the worker's process is gone, perhaps with its node"
    NODE_LOST = "the worker's node is gone"
    OUT_OF_MEMORY = "the worker was killed because its node ran out of memory"
    UNREACHABLE = "the connection failed; the worker may be alive"
    HUNG = "the worker was silent for too long"
    OTHER = "an error of the cluster itself"


@dataclass(frozen=True)
class Failure:
    """A failed call.

    Attributes:
        kind: Kind of the failure.
        what: Description for messages.
        cause: Error that the job raised, or the cluster's error; None if the worker hung.
    """

    kind: FailureKind
    what: str
    cause: BaseException | None

    @property
    def by_environment(self) -> bool:
        """Whether an environment failed: the worker is fit for other jobs, and another attempt may succeed."""
        return isinstance(self.cause, EpisodeError)


def raised(error: BaseException) -> Failure:
    """Failure of a job or a task that raised this error."""
    fatal = isinstance(error, WorldModelsError) and not isinstance(error, JobError)
    return Failure(FailureKind.FATAL if fatal else FailureKind.RAISED, cause_message(error), error)


def hung(timeout_s: float) -> Failure:
    """Failure of a worker that was silent for ``timeout_s`` seconds."""
    what = (
        f"its worker hung: it gave no sign of life for {timeout_s:g} s and was killed "
        "(execution.timeout_s: raise it if a job takes longer)"
    )
    return Failure(FailureKind.HUNG, what, None)


def abandoned_error(name: str, tries: int, what: str, causes: Collection[str]) -> JobError:
    """Error about a job or a task that is abandoned.

    Args:
        name: Name of the job or the task.
        tries: Number of attempts.
        what: Description of the last failure.
        causes: Distinct errors of the attempts. If there is only one, another attempt would fail in the same way.
    """
    message = f"{name} was tried {tries} time{'s' if tries > 1 else ''}; the last time {what}"
    if tries > 1 and len(causes) == 1:
        message += ". It failed in the same way each time and would fail again"
        return JobError(message, resume_after="fix the cause")
    return JobError(message, resume_after="")


def cause_message(error: BaseException) -> str:
    """Description of a job's error. Errors of this project are shown as they are, others with their class."""
    return f"it failed: {error if isinstance(error, WorldModelsError) else repr(error)}"
