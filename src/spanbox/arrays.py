"""NumPy arrays from untrusted files: the header is checked against the file before anything is allocated.

`numpy.load` trusts the header: a damaged one raises errors of the Python tokenizer, and a huge shape is allocated. Here
the header must have the form that NumPy writes, the type must be an expected one, and the file must be exactly as long
as the shape requires. Arrays are mapped, so that memory is used only for the parts that are read.
"""

import math
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile
from zlib import error as ZlibError

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LONGEST_HEADER = 10_000
"""Bytes, as in NumPy."""

ARCHIVE_SIZE = 256 * 2**20
"""Bytes of all arrays of an `.npz` file together."""

_HEADER = re.compile(r"\{'descr': '([<>|=][a-z]\d{1,2})', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n")
_MOST_DIGITS = 18  # of a dimension: an index has 64 bits


class DamagedArrayError(ValueError):
    """A file is not the array that it should be."""


def open_array(path: Path, dtypes: Sequence[type[np.generic]], dimensions: int) -> NDArray[Any]:
    """A `.npy` file, mapped copy-on-write: changes of the array stay in memory.

    Args:
        path: the file.
        dtypes: accepted types, in the byte order of this machine.
        dimensions: expected number of dimensions.

    Raises:
        DamagedArrayError: the file is not such an array.
        OSError: the file cannot be read.
    """
    if not path.is_file():  # opening a named pipe would wait for ever
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb") as file:
        dtype, shape = _read_header(file)
        offset = file.tell()
    if dtype not in [np.dtype(accepted) for accepted in dtypes]:
        expected = " or ".join(np.dtype(accepted).name for accepted in dtypes)
        raise DamagedArrayError(f"expected {expected}, found {dtype.name} of shape {shape}")
    if len(shape) != dimensions:
        raise DamagedArrayError(f"expected {dimensions} dimensions, found shape {shape}")
    size, wanted = path.stat().st_size, offset + math.prod(shape) * dtype.itemsize
    if size != wanted:
        raise DamagedArrayError(f"shape {shape} of {dtype.name} takes {wanted} bytes, the file has {size}")
    if math.prod(shape) == 0:  # nothing to map
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "c", offset, shape)  # not "r": PyTorch warns of arrays that cannot be written


def read_archive(path: Path, limit: int = ARCHIVE_SIZE) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file by name.

    Raises:
        DamagedArrayError: the file is damaged, holds anything but plain arrays, or unpacks to more than `limit` bytes.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > limit:
                raise DamagedArrayError(f"the arrays have more than {limit >> 20} MiB, the limit for them")
            if any(member.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for member in members):
                raise DamagedArrayError("an array is compressed in an unusual way")
            contents = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
    except (BadZipFile, ZlibError, EOFError, NotImplementedError, RuntimeError, LookupError, UnicodeError) as error:
        raise DamagedArrayError(f"not a whole archive of arrays ({error})") from None
    return {name: _from_bytes(name, content) for name, content in contents.items()}


def _from_bytes(name: str, content: bytes) -> NDArray[Any]:
    file = BytesIO(content)
    dtype, shape = _read_header(file)
    found, wanted = len(content) - file.tell(), math.prod(shape) * dtype.itemsize
    if found != wanted:
        raise DamagedArrayError(f"{name}: shape {shape} of {dtype.name} takes {wanted} bytes, found {found}")
    return np.frombuffer(content, dtype, math.prod(shape), file.tell()).reshape(shape)


def _read_header(file: BinaryIO) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape from the header of a `.npy` file in C order; the file stands at the data afterwards."""
    magic = file.read(len(npy.magic(1, 0)))
    if magic not in (npy.magic(1, 0), npy.magic(2, 0), npy.magic(3, 0)):
        raise DamagedArrayError("not a .npy file")
    length = int.from_bytes(file.read(2 if magic == npy.magic(1, 0) else 4), "little")
    if length > LONGEST_HEADER:
        raise DamagedArrayError(f"the header has {length} bytes, at most {LONGEST_HEADER} are read")
    header = _HEADER.fullmatch(file.read(length).decode("latin-1"))
    sides = [side.strip() for side in header[2].split(",")] if header else []
    if header is None or any(len(side) > _MOST_DIGITS or " " in side for side in sides):
        raise DamagedArrayError("the header is damaged, or describes no plain array")
    shape = tuple(int(side) for side in sides if side)
    try:
        dtype = np.dtype(header[1])
        np.empty((0, *shape), dtype)  # refuses shapes that no array can have
    except (TypeError, ValueError):
        raise DamagedArrayError(f"the header describes no array: {header[1]} of shape {shape}") from None
    return dtype, shape
