"""Pickles of plain values: lists, dictionaries, text and numbers, and nothing else.

RefCOCO is published as a pickle, a small program that builds its values. Python's unpickler would run any function that
the file names, and reserves gigabytes for a file of twelve bytes. This module uses the pure-Python unpickler of the
standard library, reduced to the operations that build plain values: none of them finds or calls a function, or makes a
tuple, whose hash may take for ever.
"""

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

from spanbox.data.importers import read_file
from spanbox.errors import DataError

MAX_BYTES = 512 * 1024 * 1024

_BUILDING = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1),
    *(pickle.FLOAT, pickle.BINFLOAT),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
)
_DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError,
            RecursionError, MemoryError, struct.error)  # fmt: skip


class _PlainUnpickler(pickle._Unpickler):
    """Knows the operations of `_BUILDING` alone."""

    dispatch: ClassVar = {operation[0]: pickle._Unpickler.dispatch[operation[0]] for operation in _BUILDING}

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it would use {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """The value of a pickle, also one of Python 2. Nothing in it is executed.

    Raises:
        DataError: it is damaged, or holds anything but lists, dictionaries, text and numbers.
    """
    content = read_file(path, MAX_BYTES)
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _DAMAGED as error:
        raise DataError(
            f"{path}: refused, is not a plain pickle of lists, dictionaries, text and numbers ({type(error).__name__})"
        ) from None
