"""What stands twice in manifests, found in the memory of a few hashes a line.

Of each line five 64-bit hashes are kept, so that millions of lines fit into memory. Equal hashes stand for equal
strings: among ten million lines the chance that two different strings share one is about three in a million.
"""

from array import array
from collections.abc import Iterator
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanbox.data.manifest import Record

UNKNOWN = 0  # the hash of what was not read


def hash_text(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def hash_file(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file_digest(file, lambda: blake2b(digest_size=8)).digest(), "big")


class Duplicate(NamedTuple):
    """A line that repeats something of an earlier one."""

    kind: str
    row: int
    first: int  # the row that it repeats


class Columns:
    """One row a line of all manifests, in their order; `N` rows in all."""

    NAMES = ("manifest", "line", "id", "image", "content", "group", "text")

    def __init__(self) -> None:
        self._values = {name: array("Q") for name in self.NAMES}

    def append(self, manifest: int, line: int, record: Record, image: Path, content: int) -> None:
        """Remember a record. `image` is where its image lies, `content` the hash of that file or UNKNOWN."""
        image_key = hash_text(str(image))
        # The default group is a path relative to its own manifest: it stands for the file, not for the string.
        group_key = hash_text(f"group {record.group}") if record.group else image_key
        values = (manifest, line, hash_text(record.id), image_key, content, group_key, hash_text(record.text))
        for name, value in zip(self.NAMES, values, strict=True):
            self._values[name].append(value)

    def __getitem__(self, name: str) -> NDArray[np.uint64]:
        """(N,) a column."""
        return np.array(self._values[name], dtype=np.uint64)

    def count_distinct(self, name: str, manifest: int | None = None) -> int:
        """How many different values a column holds, in one manifest or in all."""
        values = self[name]
        return len(np.unique(values if manifest is None else values[self["manifest"] == manifest]))


def find_duplicates(columns: Columns) -> Iterator[Duplicate]:
    """Everything that stands twice and should not, or is worth a note."""
    yield from _repeated_ids(columns)
    yield from _shared_between_manifests(columns)
    yield from _divided_images(columns)


def _repeated_ids(columns: Columns) -> Iterator[Duplicate]:
    manifest = columns["manifest"]
    for rows in _repeated(columns["id"]):
        first: dict[int, int] = {}
        for row in rows:
            if first.setdefault(int(manifest[row]), row) != row:
                yield Duplicate("id used twice", row, first[int(manifest[row])])


def _shared_between_manifests(columns: Columns) -> Iterator[Duplicate]:
    """Once for each later manifest. A file that is told by its path is not told again for its content and group."""
    told: set[int] = set()
    manifest = columns["manifest"]
    for name, kind in (
        ("image", "image in two manifests"),
        ("content", "same image content in two manifests"),
        ("group", "group in two manifests"),
        ("text", "same text in two manifests"),
        ("id", "id also in another manifest"),
    ):
        leaks = name in ("image", "content", "group")
        for rows in _repeated(columns[name], differs_in=manifest):
            untold = [row for row in rows if row not in told] if leaks else rows
            first: dict[int, int] = {}
            for row in untold:
                if int(manifest[row]) not in first and first:
                    yield Duplicate(kind, row, untold[0])
                first.setdefault(int(manifest[row]), row)
            if leaks:
                told.update(rows)


def _divided_images(columns: Columns) -> Iterator[Duplicate]:
    """Pairs of one manifest that show the same image without sharing a group."""
    manifest, group, content = columns["manifest"], columns["group"], columns["content"]
    shown = np.where(content == UNKNOWN, columns["image"], content)
    for rows in _repeated(shown, differs_in=group):
        for index in {int(manifest[row]): None for row in rows}:
            here = [row for row in rows if manifest[row] == index]
            other = next((row for row in here if group[row] != group[here[0]]), None)
            if other is not None:
                yield Duplicate("same image in different groups", other, here[0])


def _repeated(keys: NDArray[np.uint64], differs_in: NDArray[np.uint64] | None = None) -> Iterator[list[int]]:
    """The rows that share a key, one list a key, in the order of the rows; only where they differ in `differs_in`."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(keys)])
    wanted = (lengths > 1) & (ordered[starts] != UNKNOWN)
    if differs_in is not None:
        values = differs_in[order]
        wanted &= np.minimum.reduceat(values, starts) != np.maximum.reduceat(values, starts)
    starts, lengths = starts[wanted], lengths[wanted]
    for group in np.argsort(order[starts]):
        yield order[starts[group] : starts[group] + lengths[group]].tolist()
