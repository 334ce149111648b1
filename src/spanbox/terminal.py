"""The console of all commands, made in one place: text from data and file names is never read as markup."""

import shlex
import sys
from typing import Any

from rich.console import Console


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console that prints brackets, `:smile:` and numbers as they are."""
    return Console(file=sys.stderr if stderr else None, markup=False, emoji=False, highlight=False, **options)


def command(*words: object) -> str:
    """A command of spanbox that a shell understands: paths with blanks or quotes are quoted."""
    return shlex.join(["spanbox", *map(str, words)])
