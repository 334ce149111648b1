"""The console of all commands, made in one place: text from data and file names is never read as markup."""

import shlex
import sys
from typing import Any
from unicodedata import bidirectional, category

from rich.console import Console
from rich.table import Table
from rich.text import Text

UNSAFE = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, ends of lines
DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # they reorder the text that follows

WIDEST = 1000  # columns


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console that prints brackets, `:smile:` and numbers as they are."""
    return Console(file=sys.stderr if stderr else None, markup=False, emoji=False, highlight=False, **options)


def print_figures(table: Table) -> None:
    """Print a table of figures, which a narrow terminal continues on the next line: rich would cut off digits."""
    console = make_console()
    whole = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    make_console(width=max(console.width, whole)).print(table)


def plain(text: str) -> Text:
    """Text from the data or a path for the terminal: no markup; characters that could steer the terminal as escapes."""
    return Text(escaped(text))


def escaped(text: str) -> str:
    """The text with characters that could steer the terminal as escapes."""
    return "".join(ascii(char)[1:-1] if _steers(char) else char for char in text)


def _steers(character: str) -> bool:
    return category(character) in UNSAFE or bidirectional(character) in DIRECTIONS


def command(*words: object) -> str:
    """A command of spanbox that a shell understands: paths with blanks or quotes are quoted."""
    return shlex.join(["spanbox", *map(str, words)])
