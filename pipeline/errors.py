"""The errors a user can meet, each with the exit code of the command that ends on it."""


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


class TrainingError(WorldModelsError):
    """Training produced numbers that cannot be gone on with."""


class JobError(WorldModelsError):
    """A job failed on a worker. Names the job and where the worker's log lies."""


class SittingEnded(WorldModelsError):
    """A wall-clock limit ended this sitting. The run is not over: the same command goes on with it."""

    exit_code = 3
