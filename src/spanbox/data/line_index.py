"""Where the lines of a manifest begin, kept beside it as `<name>.index.npy`.

The array (int64) holds `[version, size, mtime_ns, boxes without an area, pairs with a relevance below 1, checksum,
start, start, ..., size]`. An index for a manifest of this size and time means that every line was read and found valid.
A damaged index, or one of another version, is made again.

Nothing is mapped: a mapped file that shrinks would kill the process.
"""

import os
import weakref
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spanbox.arrays import DamagedArrayError, open_array
from spanbox.errors import DataError, OutputError
from spanbox.files import replacing

VERSION = 3
HEADER = 6
CHECKSUM = 5  # its place in the header
ENTRY = 8  # bytes
ENTRIES_AT_ONCE = 1 << 16


class OpenFile:
    """A file that is open for reading at any position, from several threads and forked workers at once."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        weakref.finalize(self, os.close, self._descriptor)

    def state(self) -> tuple[int, int]:
        """Size in bytes and time of the last change in nanoseconds."""
        stat = os.fstat(self._descriptor)
        return stat.st_size, stat.st_mtime_ns

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`; fewer where the file ends."""
        return os.pread(self._descriptor, size, start)


class _Entries(Protocol):
    def __getitem__(self, rows: slice, /) -> NDArray[np.int64]: ...


class _StoredEntries:
    """Entries of an array file, read when they are needed."""

    def __init__(self, path: Path, offset: int) -> None:
        self._file = OpenFile(path)
        self._offset = offset

    def __getitem__(self, rows: slice) -> NDArray[np.int64]:
        content = self._file.read(self._offset + ENTRY * rows.start, ENTRY * (rows.stop - rows.start))
        return np.frombuffer(content[: len(content) // ENTRY * ENTRY], dtype=np.int64)


class LineIndex:
    """The lines of a manifest: how many there are, and the bytes of each."""

    def __init__(self, entries: _Entries, count: int, inverted_count: int, weighted_count: int) -> None:
        """`entries` are the starts of the lines and the end of the last one, after `HEADER` others."""
        self._entries = entries
        self.count = count
        self.inverted_count = inverted_count  # boxes without an area
        self.weighted_count = weighted_count  # pairs with a relevance below 1, of the text or of a box

    def bounds(self, line: int) -> tuple[int, int] | None:
        """The start of a line, from 0, and that of the next one; None when the index file was cut off meanwhile."""
        found = self._entries[slice(HEADER + line, HEADER + line + 2)].tolist()
        return (found[0], found[1]) if len(found) == 2 else None


def index_path(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.name}.index.npy")


def load_index(manifest: Path, size: int, mtime_ns: int) -> LineIndex | None:
    """The index beside a manifest; None when there is none for this size and time, or it is damaged."""
    path = index_path(manifest)
    try:
        array = open_array(path, [np.int64], dimensions=1)
        count = len(array) - HEADER - 1
        if count < 1 or array[:3].tolist() != [VERSION, size, mtime_ns] or not _is_whole(array, size):
            return None
        inverted, weighted = array[3:CHECKSUM].tolist()
        return LineIndex(_StoredEntries(path, path.stat().st_size - array.nbytes), count, inverted, weighted)
    except (DamagedArrayError, OSError, DataError):
        return None


def make_index(
    starts: Sequence[int], size: int, mtime_ns: int, *, inverted_count: int, weighted_count: int
) -> NDArray[np.int64]:
    """The array of an index."""
    header = [VERSION, size, mtime_ns, inverted_count, weighted_count, 0]
    array = np.concatenate([header, starts, [size]], dtype=np.int64)
    array[CHECKSUM] = _checksum(array)
    return array


def save_index(manifest: Path, array: NDArray[np.int64]) -> LineIndex:
    """Write the array beside the manifest, and return the index. Where it cannot be written it is held in memory."""
    try:
        if os.access(manifest.parent, os.W_OK):
            with replacing(index_path(manifest)) as file:
                np.save(file, array, allow_pickle=False)
    except OutputError:
        pass  # a full disk does not keep anybody from reading
    inverted, weighted = array[3:CHECKSUM].tolist()
    return LineIndex(array, len(array) - HEADER - 1, inverted, weighted)


def _is_whole(array: NDArray[np.int64], size: int) -> bool:
    """Whether the checksum is right and the lines ascend within the manifest."""
    if int(array[CHECKSUM]) != _checksum(array) or int(array[HEADER]) < 0 or int(array[-1]) != size:
        return False
    for start in range(HEADER, len(array), ENTRIES_AT_ONCE):
        part = array[start : start + ENTRIES_AT_ONCE + 1]
        if (part[1:] <= part[:-1]).any():
            return False
    return True


def _checksum(array: NDArray[np.int64]) -> int:
    """A 63-bit hash of all entries but the checksum itself."""
    digest = blake2b(array[:CHECKSUM].tobytes(), digest_size=8)
    for start in range(CHECKSUM + 1, len(array), ENTRIES_AT_ONCE):
        digest.update(array[start : start + ENTRIES_AT_ONCE].tobytes())
    return int.from_bytes(digest.digest(), "big") >> 1
