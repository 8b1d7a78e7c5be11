"""Errors that a user can correct. The console scripts print them as one line and exit with status 1."""


class DefeatError(Exception):
    """Something in the user's input or files is wrong; the message says what, where, and what to do."""


class DataError(DefeatError):
    """A data set, an annotation record or an image cannot be used."""


class WeightsError(DefeatError):
    """A weight file cannot be read, or does not fit the model it was given to."""


class ConfigError(DefeatError):
    """A configuration value is missing, misspelt or contradicts another one."""


class StorageError(DefeatError):
    """A file cannot be written: a full disk, a quota, missing rights."""


class WorkerError(DefeatError):
    """A worker process of a data loader has died, is stuck, or cannot hand its batches over."""
