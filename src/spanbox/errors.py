"""What a user can get wrong, said so that it can be mended.

Every error carries where it is (a file and line, or a config key), what was found, what was expected and what to do.
The command line prints it without a traceback and exits with 2. What only a programmer can get wrong is an `assert`.
"""


class SpanboxError(Exception):
    """Base of every error that a user can mend. The message says how."""


class ConfigError(SpanboxError):
    """A config file, an override or a combination of settings is wrong."""


class OutputError(SpanboxError):
    """A file or folder cannot be written: a full disk, no rights, a path that is a folder."""


class DataError(SpanboxError):
    """A manifest, an image or a data set that is read or imported is wrong."""


class CheckpointError(SpanboxError):
    """A run folder or checkpoint is missing, damaged or of another architecture."""


class TrainingError(SpanboxError):
    """Training cannot go on: a loss that is not finite, too many broken images."""
