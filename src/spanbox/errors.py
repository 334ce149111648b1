"""Errors that a user can fix.

Every message has the place (file and line, or config key), what was found, what was expected and the remedy. The
command line prints it without a traceback and exits with 2. Programming errors are `assert`s.
"""


class SpanboxError(Exception):
    """Base class of all errors that a user can fix."""


class ConfigError(SpanboxError):
    """A wrong config file, override or combination of settings."""


class OutputError(SpanboxError):
    """A file or folder cannot be written: a full disk, no rights, a path that is a folder."""


class DataError(SpanboxError):
    """A wrong manifest, image or data set."""


class CheckpointError(SpanboxError):
    """A run folder or checkpoint that is missing, damaged or of another architecture."""


class TrainingError(SpanboxError):
    """Training cannot continue: a loss that is not finite, too many broken images."""


def first_line(error: Exception) -> str:
    """The first line of the message of a library's error; its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
