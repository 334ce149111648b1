"""The result of running the command."""

from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]

HANGS = 600.0
"""Seconds after which a process or an answer counts as hanging; far above what anything takes on a busy machine."""
