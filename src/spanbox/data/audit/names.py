"""Hints for image files that do not exist: the folder, or the tar, may hold the name in another spelling.

File names differ in case, in slashes, in percent escapes, in the Unicode form of accents, and in the width of letters
and the kind of spaces between the systems that wrote the manifest and those that hold the files.
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from spanbox.data.source import TAR, exists
from spanbox.data.tar_index import members
from spanbox.errors import DataError

MAX_ENTRIES = 100_000  # of a folder; larger ones are not searched
_WIDE_NARROW_OR_FIXED = (0x00A0, 0x2007, 0x2011, 0x202F, 0x3000, *range(0xFF01, 0xFFEF))
_PLAIN = {code: normalize("NFKC", chr(code)) for code in _WIDE_NARROW_OR_FIXED}
"""Letters of full and half width, spaces and hyphens without a break. `²` or `①` are no other spelling of a digit."""


def find_other_spelling(folder: Path, name: str) -> str | None:
    """The path, relative to `folder`, of the one file whose name equals `name` but for its spelling."""
    parts = [part for part in unquote(name).replace("\\", "/").split("/") if part not in ("", ".")]
    place, found = (Path("/"), "/") if name.startswith("/") else (folder, "")
    while parts:
        in_tar = place.suffix == TAR and place.is_file()
        part = "/".join(parts) if in_tar else parts[0]
        parts = [] if in_tar else parts[1:]
        actual = ".." if part == ".." else (_members if in_tar else _entries)(place).get(_key(part))
        if not actual:
            return None
        place, found = place / actual, os.path.join(found, actual)  # noqa: PTH118 - keeps ".." as it is
    return found if exists(place) and not place.is_dir() else None


def describe_difference(name: str, other: str) -> str:
    """In which ways two spellings of a name differ."""
    differences = []
    if "\\" in name:
        differences.append("slashes")
    if unquote(name) != name or unquote(other) != other:
        differences.append("percent escapes")
    plain, other = unquote(name).replace("\\", "/"), unquote(other)
    if normalize("NFC", plain) != plain or normalize("NFC", other) != other:
        differences.append("form of accents (NFC, NFD)")
    if normalize("NFC", plain) != normalize("NFC", other) and _key(plain) == _key(other):
        differences.append("upper and lower case, width of letters or spaces")
    return ", ".join(differences) or "spelling"


@lru_cache(16)
def _entries(folder: Path) -> dict[str, str]:
    """The names in a folder by their simplest spelling; none where two names share it."""
    try:
        with os.scandir(folder) as entries:
            return _by_key(entry.name for entry in entries)
    except (OSError, ValueError):
        return {}


@lru_cache(16)
def _members(tar: Path) -> dict[str, str]:
    """The names in a tar, as `_entries`."""
    try:
        return _by_key(member.name for member in members(tar))
    except DataError:
        return {}


def _by_key(names: Iterable[str]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in names:
        key = _key(name)
        by_key[key] = "" if key in by_key else name
        if len(by_key) > MAX_ENTRIES:
            return {}
    return by_key


def _key(name: str) -> str:
    return normalize("NFC", unquote(name).translate(_PLAIN).casefold()).strip()
