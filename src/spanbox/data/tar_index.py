"""Members of tars by name: where the bytes of each are, kept beside the tar as `<name>.index.npy`.

A tar is read once, header by header. The array (int64) holds `[version, size, mtime_ns, checksum]` and then, for each
member in the order of the hashes of their names, `[hash, offset, size]`. An index for a tar of this size and time is
used as it is; a damaged one, or one of another version, is made again. Where none can be written, it is held in memory.

Tars come from strangers. Links, special files, sparse files, names that are absolute or lead out of the tar, and names
given twice are left out: the index holds the reason in place of the offset. A tar that is cut off is refused.
"""

import io
import os
import tarfile
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from posixpath import normpath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanbox.arrays import DamagedArrayError, open_array
from spanbox.documents import IS_LFS_POINTER, is_lfs_pointer
from spanbox.errors import DataError, OutputError
from spanbox.files import replacing

VERSION = 1
HEADER = 4
CHECKSUM = 3  # its place in the header
MAX_HEADER_BYTES = 1024 * 1024  # of the name and the attributes of a member
BLOCK = 512

LINK, OUTSIDE, TWICE = -1, -2, -3  # in place of an offset
REASONS = {
    LINK: "a link, a special or a sparse file in a tar, which is not read",
    OUTSIDE: "a name that leads out of its tar, which is not read",
    TWICE: "a name that its tar has twice",
}

_UNREADABLE = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, MemoryError, RecursionError)


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its first byte; LINK or OUTSIDE where it is not read
    size: int


class _Headers(io.FileIO):
    """A tar that is open for its headers, of which none may be large."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes; at most {MAX_HEADER_BYTES >> 20} MiB are read")
        return super().read(size) or b""


def members(path: Path) -> Iterator[Member]:
    """The files of a tar that is not compressed, in its order; folders are left out.

    Raises:
        DataError: it is not a tar, or was cut off: raised at the place of the damage.
    """
    position = -1
    try:
        if is_lfs_pointer(path):
            raise ValueError(IS_LFS_POINTER)
        with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if not position < member.offset_data <= archive.offset or member.size < 0:
                    raise ValueError("sizes that lead back")
                position = member.offset_data - 1
                if not member.isdir():
                    yield _member(member)
            end = os.pread(file.fileno(), BLOCK, archive.offset)
            if end != bytes(BLOCK):  # tarfile takes a cut-off or damaged header for the end
                raise ValueError(f"damaged or cut off after {archive.offset:,} bytes")
    except _UNREADABLE as error:
        raise DataError(f"{path}: is not a whole tar without compression ({error})") from None


def _member(member: tarfile.TarInfo) -> Member:
    name = normpath(member.name)
    if member.name.startswith("/") or name.split("/")[0] in ("..", "."):
        return Member(member.name, OUTSIDE, 0)
    if not member.isreg() or member.issparse():
        return Member(name, LINK, 0)
    return Member(name, member.offset_data, member.size)


class TarIndex:
    """The members of a tar by name.

    Args:
        path: the tar.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        rows = _load(path, state.st_size, state.st_mtime_ns)
        if rows is None:
            rows = _make(path)
            _save(path, rows, state.st_size, state.st_mtime_ns)
        self._hashes = np.ascontiguousarray(rows[:, 0])  # a search in a column would copy it
        self._places = rows[:, 1:]

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, name: str) -> tuple[int, int] | None:
        """Offset and size of a member; None where there is none. A negative offset is a key of `REASONS`."""
        wanted = _hash(name)
        row = int(np.searchsorted(self._hashes, wanted))
        if row == len(self) or int(self._hashes[row]) != wanted:
            return None
        offset, size = self._places[row].tolist()
        return offset, size


def index_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.index.npy")


def _hash(name: str) -> int:
    digest = blake2b(normpath(name).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _make(path: Path) -> NDArray[np.int64]:
    """The rows [hash, offset, size], sorted by hash."""
    found = array("q")
    for member in members(path):
        found.extend((_hash(member.name), member.offset, member.size))
    rows = np.frombuffer(found, dtype=np.int64).reshape(-1, 3) if found else np.zeros((0, 3), dtype=np.int64)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    again = rows[1:, 0] == rows[:-1, 0]
    rows[:-1][again, 1] = TWICE
    return rows[np.concatenate([[True], ~again])] if len(rows) else rows


def _load(path: Path, size: int, mtime_ns: int) -> NDArray[np.int64] | None:
    """The rows of the index beside a tar; None when there is none for this size and time, or it is damaged."""
    try:
        content = np.array(open_array(index_path(path), [np.int64], dimensions=1))
    except (DamagedArrayError, OSError):
        return None
    if len(content) < HEADER or content[:CHECKSUM].tolist() != [VERSION, size, mtime_ns]:
        return None
    rows = content[HEADER:]
    if len(rows) % 3 or int(content[CHECKSUM]) != _checksum(rows):
        return None
    return rows.reshape(-1, 3)


def _save(path: Path, rows: NDArray[np.int64], size: int, mtime_ns: int) -> None:
    header = np.array([VERSION, size, mtime_ns, _checksum(rows)], dtype=np.int64)
    try:
        if os.access(path.parent, os.W_OK):
            with replacing(index_path(path)) as file:
                np.save(file, np.concatenate([header, rows.reshape(-1)]), allow_pickle=False)
    except OutputError:
        pass  # a full disk does not keep anybody from reading


def _checksum(rows: NDArray[np.int64]) -> int:
    return int.from_bytes(blake2b(rows.tobytes(), digest_size=8).digest(), "big") >> 1
