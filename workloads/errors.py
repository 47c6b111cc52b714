"""Errors a user can act on: one sentence with the value and the next step. All survive pickling."""


class RememeError(Exception):
    """Base of every error shown to the user as one sentence without a traceback."""

    exit_code = 1


class ConfigError(RememeError, ValueError):
    """The run description is wrong; nothing was started."""

    exit_code = 2


class DataError(RememeError, ValueError):
    """The data set is missing, empty, damaged or not what the configuration says."""

    exit_code = 2


class DamagedFileError(RememeError):
    """A file is missing or not as it was written; what it holds is not used."""

    exit_code = 2


class CheckpointError(RememeError):
    """No usable checkpoint or weights where some were expected."""


class WorkersPartedError(RememeError):
    """Workers that train together lost one another; whoever starts them again goes on from the last checkpoint."""


class TakenOverError(RememeError):
    """Another process goes on with the job, for this one was not heard of; it has written nothing since."""


class StorageError(RememeError):
    """Weights or samples could not be written, for instance because the disk is full."""
