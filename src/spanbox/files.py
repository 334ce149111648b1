"""Output files: each one is written whole or not at all, and a failure is one plain error.

A file is written under another name in the same folder and renamed into place, so that a crash, a full disk or a second
process never leaves half a file, and an older file stays until the new one is complete.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from spanbox.errors import OutputError

PUBLIC_FILE = 0o666  # the mode of a new file, before the umask
PARTIAL = ".partial"  # ending of files and folders that are not complete yet
LOCK = ".lock"
PATIENCE = 1.0
"""Seconds of waiting for a lock before a message is printed."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block succeeds, and is removed when it fails.

    Missing parent folders are made.

    Raises:
        OutputError: the file cannot be written (full disk, no rights, `path` is a folder, ...).
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=PARTIAL, delete=False) as file:
            aside = Path(file.name)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())  # network file systems report a full disk only here
                file.close()
                aside.chmod(PUBLIC_FILE & ~_umask())
                aside.replace(path)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all. Raises OutputError.

    Lone surrogates, which UTF-8 cannot hold, become question marks.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="replace"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people can read, whole or not at all. Raises OutputError."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check_writable_file(path: Path, suffix: str = "") -> None:
    """Check that `path` can be written, before long work whose result it will hold. Raises OutputError.

    Missing parent folders are made; an existing file is left as it is. With a `suffix`, such as `.html`, only a file of
    that kind may be replaced, so that a mistyped path costs no data.
    """
    if suffix and path.is_file() and path.suffix != suffix:
        raise OutputError(f"{path}: exists and is not a {suffix} file, so it is not replaced; name another file")
    with explained(path):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"no right to write {path}")
    check_writable_folder(path.parent)


def check_no_input(path: Path, inputs: Iterable[Path | None]) -> None:
    """Check that an output does not replace a file that the command reads. Raises OutputError."""
    if _is_among(path, inputs):
        raise OutputError(f"{path}: is read by this command, so it is not replaced; name another place")


def check_no_other_output(path: Path, others: Iterable[Path | None]) -> None:
    """Check that an output does not replace another one of the same command. Raises OutputError."""
    if _is_among(path, others):
        raise OutputError(f"{path}: is named for two outputs of this command; name another place for one of them")


def _is_among(path: Path, others: Iterable[Path | None]) -> bool:
    return path.resolve() in {each.resolve() for each in others if each is not None}


def check_writable_folder(folder: Path) -> None:
    """Make a folder where it is missing and check that files can be written into it. Raises OutputError."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()


@contextmanager
def removing_new_folders(folder: Path) -> Iterator[None]:
    """Context for work that creates `folder`: on failure, the folder and parents that it created are removed again.

    Only empty folders are removed.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            try:
                path.rmdir()
            except OSError:  # never made, or not empty
                break
        raise


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Context that one process at a time enters for a folder; others wait. The lock ends with its process.

    The folder is made. Where no lock can be made, as in a folder without the right to write, nothing waits.
    """
    lock = FileLock(folder / LOCK, fallback_to_soft=False)  # a file as a lock would outlive a killed process
    with suppress(OSError, NotImplementedError):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:  # an OSError too
            print(f"{folder}: another command writes here; waiting for it", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_entry(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Context that turns a failure to write into an OutputError which names `path`, the reason and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); free space, check the rights, or name another place"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
