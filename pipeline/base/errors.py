"""Errors that a user can encounter, each with the exit code of the command that it ends."""

from __future__ import annotations

from collections.abc import Hashable

SUBMIT_AGAIN = "submit the same run again"  # how a job of a cluster resumes


def resume_hint(how: str) -> str:
    """Sentence for the user of a command whose completed work is saved.

    Args:
        how: Imperative clause that resumes it.
    """
    return f"Completed work is saved. To resume, {how}"


class WorldModelsError(Exception):
    """An error that a user can act on: the message says what, where, what was expected and what to do next.

    Args:
        message: Message without the hint how to resume.
        resume_after: Imperative clause: what to do before the same command resumes, or "" for nothing. The hint is
            added to the message. None: no hint.

    Attributes:
        for_readers: Message for a command that only reads, which has no work to resume.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, resume_after: str | None = None) -> None:
        self.for_readers = message
        if resume_after is not None:
            first = f"{resume_after}, then " if resume_after else ""
            stop = "" if message.endswith("?") else "."
            if resume_after:
                self.for_readers = f"{message}{stop} {resume_after[0].upper()}{resume_after[1:]}, then try again."
            message = f"{message}{stop} {resume_hint(f'{first}run the same command again')}."
        super().__init__(message)


class ConfigError(WorldModelsError):
    """The configuration or the command line is invalid, or this machine cannot satisfy it."""

    exit_code = 2


class StorageError(WorldModelsError):
    """The run directory cannot be read or written."""


class AlreadyExistsError(StorageError):
    """A create-only key exists already."""


class DamagedDataError(StorageError):
    """Committed bytes in the run directory are missing or changed."""


class LeaseError(StorageError):
    """Another driver holds the run's lease."""


class ClusterError(WorldModelsError):
    """A cluster does not answer, or answers unexpectedly."""


class TrainingError(WorldModelsError):
    """Training diverged: a loss or a weight is not finite."""


class JobError(WorldModelsError):
    """A job failed on a worker. The message names the job and the location of the worker's log."""


class EpisodeError(JobError):
    """An environment raised. The worker discarded the environment and can continue.

    Args:
        message: Episode and exception, in words.
        job_id: ID of the job. None only while unpickling, which sets it afterwards.
    """

    def __init__(self, message: str, job_id: Hashable = None) -> None:
        super().__init__(message)
        self.job_id = job_id

    @classmethod
    def raised(cls, episode: str, when: str, error: Exception, job_id: Hashable) -> EpisodeError:
        """Error of an environment that raised ``error`` in an episode, named in words, ``when`` it was used.

        Args:
            episode: Episode, in words.
            when: Use of the environment at that moment, in words.
            error: Exception of the environment.
            job_id: ID of the episode's job.
        """
        return cls(f"the environment raised in {episode}, {when}: {error!r}", job_id)


class SessionEnded(WorldModelsError):
    """A wall-clock limit ended this session. The run is not over: the same command resumes it."""

    exit_code = 3
