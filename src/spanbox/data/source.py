"""Where the bytes of an image are: in a file of a folder, or in a member of a tar.

The path of a member is that of its tar, and its name in it: `shards/0001.tar/00017.jpg`. All code that reads images
opens them here, so a data set may use either, or both. Tars are opened when they are first needed, in each process by
itself.
"""

import errno
import io
import os
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, Protocol

from spanbox.data.line_index import OpenFile
from spanbox.data.tar_index import REASONS, TarIndex
from spanbox.errors import DataError

TAR = ".tar"
OPEN_TARS = 64  # at the same time, in each process: a system limits the files that are open
MAX_MEMBER_BYTES = 256 * 1024 * 1024


class Stored(Protocol):
    """The bytes of an image. Every method raises OSError where there is none, or it cannot be read."""

    def state(self) -> tuple[int, int]:
        """Size in bytes, and the time of the last change in nanoseconds."""

    def read(self) -> bytes:
        """All bytes."""

    def open(self) -> IO[bytes]:
        """An open file."""


class StoredFile:
    """A file of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def state(self) -> tuple[int, int]:
        state = self._path.stat()
        if not S_ISREG(state.st_mode):  # opening a pipe would wait for its writer
            raise OSError(errno.EINVAL, "Is a directory" if S_ISDIR(state.st_mode) else "is not a regular file")
        return state.st_size, state.st_mtime_ns

    def read(self) -> bytes:
        self.state()
        return self._path.read_bytes()

    def open(self) -> IO[bytes]:
        self.state()
        return self._path.open("rb")


class TarMember:
    """A member of a tar."""

    def __init__(self, tar: Path, name: str) -> None:
        self._tar = tar
        self._name = name

    def state(self) -> tuple[int, int]:
        _, _, size, time = self._find()
        return size, time

    def read(self) -> bytes:
        tar, offset, size, _ = self._find()
        if size > MAX_MEMBER_BYTES:
            raise OSError(errno.EFBIG, f"has {size:,} bytes; at most {MAX_MEMBER_BYTES >> 20} MiB are read")
        content = tar.file.read(offset, size)
        if len(content) < size:
            raise OSError(errno.EIO, "its tar was cut off while it was in use")
        return content

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.read())

    def _find(self) -> tuple["_OpenTar", int, int, int]:
        state = self._tar.stat()
        tar = _open_tar(self._tar, state.st_size, state.st_mtime_ns)
        if isinstance(tar, str):
            raise OSError(errno.EIO, tar)
        found = tar.index.find(self._name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file in its tar")
        offset, size = found
        if offset in REASONS:
            raise OSError(errno.EINVAL, REASONS[offset])
        return tar, offset, size, state.st_mtime_ns


class _OpenTar:
    def __init__(self, path: Path) -> None:
        self.file = OpenFile(path)
        self.index = TarIndex(path)


@lru_cache(OPEN_TARS)
def _open_tar(path: Path, size: int, mtime_ns: int) -> _OpenTar | str:
    """An open tar of this size and time, or why it cannot be read: that is not tried again for each member."""
    try:
        return _OpenTar(path)
    except DataError as error:
        return str(error)


def stored(path: Path) -> Stored:
    """The image at a path, which may lead into a tar. Nothing is opened yet."""
    tar = _tar_of(path)
    return StoredFile(path) if tar is None else TarMember(tar, path.relative_to(tar).as_posix())


def exists(path: Path) -> bool:
    """Whether there is something at a path, readable or not. Raises OSError or ValueError where it cannot be a path."""
    tar = _tar_of(path)
    if tar is None:
        return path.exists()
    try:
        stored(path).state()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def state_of(path: Path) -> tuple[int, int] | None:
    """Size and time of an image; None where there is none, or the system refuses the path."""
    try:
        return stored(path).state()
    except (OSError, ValueError):
        return None


def container_of(path: Path) -> Path:
    """The folder or tar that an image is in."""
    return _tar_of(path) or path.parent


def _tar_of(path: Path) -> Path | None:
    if TAR + os.sep not in os.fspath(path):  # without a look at the disk
        return None
    return next((parent for parent in path.parents if parent.suffix == TAR and parent.is_file()), None)
