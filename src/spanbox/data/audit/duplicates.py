"""Repetitions within and between manifests, found in the memory of a few hashes per line.

Of each line seven 64-bit hashes are kept, so that millions of lines fit into memory. Equal hashes stand for equal
strings: among ten million lines the chance that two different strings share one is about three in a million.
"""

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanbox.data.audit.near import Fingerprints
from spanbox.data.manifest import Record

UNKNOWN = 0  # the hash of an image that was not decoded


def hash_text(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class Duplicate(NamedTuple):
    """A pair that repeats something of an earlier one, or contradicts it."""

    kind: str
    row: int
    first: int  # the row of the earlier one
    detail: str = ""


class Columns:
    """One row per line of all manifests, in their order; `N` rows in all."""

    NAMES = ("manifest", "line", "id", "image", "content", "group", "name", "text")

    def __init__(self) -> None:
        self._values = {name: array("Q") for name in self.NAMES}

    def append(self, manifest: int, line: int, record: Record, image: Path, content: int) -> None:
        """Remember a record. `image` is the absolute path of its image, `content` the hash of its pixels or UNKNOWN."""
        image_key = hash_text(str(image))
        # Between manifests the default group is the file, since the path is relative to its own manifest. Within one,
        # groups are compared by their names, as in training.
        group_key = image_key if _is_path_of(image, record.group) else hash_text(f"group {record.group}")
        wording = " ".join(record.text.casefold().split())
        values = (
            *(manifest, line, hash_text(record.id), image_key, content),
            *(group_key, hash_text(record.group_key), hash_text(wording)),
        )
        for name, value in zip(self.NAMES, values, strict=True):
            self._values[name].append(value)

    def __len__(self) -> int:
        return len(self._values["line"])

    def __getitem__(self, name: str) -> NDArray[np.uint64]:
        """(N,) a column."""
        return np.array(self._values[name], dtype=np.uint64)

    def count_distinct(self, name: str, manifest: int | None = None) -> int:
        """The number of different values in a column, in one manifest or in all."""
        values = self[name]
        return len(np.unique(values if manifest is None else values[self["manifest"] == manifest]))


def _is_path_of(image: Path, group: str) -> bool:
    """Whether a group is the default one: none, or the path that its image had beside a manifest in another folder,
    which the commands that write manifests keep as the group."""
    below = group
    while below.startswith("../"):
        below = below.removeprefix("../")
    return not group or str(image).endswith(f"/{below}")


def find_duplicates(columns: Columns) -> Iterator[Duplicate]:
    """All repetitions that are faults or worth a note, one per pair."""
    yield from _repeated_ids(columns)
    yield from _shared_between_manifests(columns)
    yield from _within_manifests(columns)


def find_near_duplicates(columns: Columns, fingerprints: Fingerprints, rows: list[int]) -> Iterator[Duplicate]:
    """Images that nearly equal an earlier one of another manifest, or of another group.

    Args:
        rows: the first row of the image of each fingerprint.
    """
    manifest, group = columns["manifest"], columns["name"]
    of_image = np.array(rows, dtype=np.int64)

    def relation(image: int, others: NDArray[np.int64]) -> NDArray[np.int64]:
        """2: of another manifest, 1: of another group. The next frame of a film hides none of another manifest."""
        row, other = of_image[image], of_image[others]
        return np.where(manifest[row] != manifest[other], 2, np.where(group[row] != group[other], 1, 0))

    for near in fingerprints.near_duplicates(relation):
        row, first = rows[near.later], rows[near.earlier]
        across = manifest[row] != manifest[first]
        if across or group[row] != group[first]:
            kind = "near-duplicate image in two manifests" if across else "near-duplicate images"
            detail = f", similarity {near.similarity:.2f}" + (", mirrored" if near.mirrored else "")
            yield Duplicate(kind, row, first, detail)


def _repeated_ids(columns: Columns) -> Iterator[Duplicate]:
    manifest = columns["manifest"]
    for rows in _repeated(columns["id"]):
        first: dict[int, int] = {}
        for row in rows:
            if first.setdefault(int(manifest[row]), row) != row:
                yield Duplicate("id used twice", row, first[int(manifest[row])])


def _shared_between_manifests(columns: Columns) -> Iterator[Duplicate]:
    """Each pair that repeats one of an earlier manifest; for an image once, by path, content or group."""
    reported: set[int] = set()
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
            for row in rows:
                if manifest[row] != manifest[rows[0]] and not (leaks and row in reported):
                    yield Duplicate(kind, row, rows[0])
                    if leaks:
                        reported.add(row)


def _within_manifests(columns: Columns) -> Iterator[Duplicate]:
    """Images in different groups, different images in a group, and pairs that are given twice."""
    shown = np.where(columns["content"] == UNKNOWN, columns["image"], columns["content"])
    group, text = columns["name"], columns["text"]
    for kind, keys, values in (
        ("same image in different groups", shown, group),
        ("different images in one group", group, shown),
    ):
        for row, first in _compared_with_first(columns, keys):
            if values[row] != values[first]:
                yield Duplicate(kind, row, first)
    with np.errstate(over="ignore"):
        pair = shown * np.uint64(0x9E3779B97F4A7C15) + text
    for row, first in _compared_with_first(columns, pair):
        yield Duplicate("same pair twice", row, first)


def _compared_with_first(columns: Columns, keys: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Each row after the first of its key and manifest, with that first one."""
    manifest = columns["manifest"]
    for rows in _repeated(keys):
        first: dict[int, int] = {}
        for row in rows:
            if first.setdefault(int(manifest[row]), row) != row:
                yield row, first[int(manifest[row])]


def _repeated(keys: NDArray[np.uint64], differs_in: NDArray[np.uint64] | None = None) -> Iterator[list[int]]:
    """The rows that share a key, one list per key, in the order of the rows; only where they differ in `differs_in`."""
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
