"""The errors a user can meet, each with the exit code of the command that ends on it."""

from __future__ import annotations

from collections.abc import Hashable


class WorldModelsError(Exception):
    """Something a user can act on: the message says what, where, what was expected and what to do next."""

    exit_code = 1


class ConfigError(WorldModelsError):
    """The configuration, the command line, or what they ask of this machine cannot be met."""

    exit_code = 2


class StorageError(WorldModelsError):
    """The run directory cannot be read or written."""


class AlreadyExistsError(StorageError):
    """A create-only key is taken."""


class DamagedDataError(StorageError):
    """Bytes in the run directory are missing, or are not those that were committed."""


class LeaseError(StorageError):
    """Another driver has the run."""


class ClusterError(WorldModelsError):
    """A cluster does not answer, or not as it should."""


class TrainingError(WorldModelsError):
    """Training produced numbers that cannot be gone on with."""


class JobError(WorldModelsError):
    """A job failed on a worker. Names the job and where the worker's log lies."""


class EpisodeError(JobError):
    """An environment raised. Names the episode; the worker did away with the environment, and is fit to go on.

    Args:
        message: says which episode, and what was raised.
        job_id: of the job that it was; None only where pickle makes the error anew, and sets it afterwards.
    """

    def __init__(self, message: str, job_id: Hashable = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class SessionEnded(WorldModelsError):
    """A wall-clock limit ended this session. The run is not over: the same command goes on with it."""

    exit_code = 3
