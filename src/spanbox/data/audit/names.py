"""Hints for image files that do not exist: the folder may hold the name in another spelling.

File names differ in case, in slashes, in percent escapes, and in the Unicode form of accents between the systems that
wrote the manifest and those that hold the files.
"""

import os
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

MAX_ENTRIES = 100_000  # of a folder; larger ones are not searched


def find_other_spelling(folder: Path, name: str) -> str | None:
    """The path, relative to `folder`, of the one file whose name equals `name` but for its spelling."""
    parts = [part for part in unquote(name).replace("\\", "/").split("/") if part not in ("", ".")]
    place, found = (Path("/"), "/") if name.startswith("/") else (folder, "")
    for part in parts:
        actual = ".." if part == ".." else _entries(place).get(_key(part))
        if not actual:
            return None
        place, found = place / actual, os.path.join(found, actual)  # noqa: PTH118 - keeps ".." as it is
    return found if place.is_file() else None


def describe_difference(name: str, other: str) -> str:
    """In which ways two spellings of a name differ."""
    differences = []
    if "\\" in name:
        differences.append("slashes")
    if unquote(name) != name:
        differences.append("percent escapes")
    plain, other = unquote(name).replace("\\", "/"), other
    if normalize("NFC", plain) != plain or normalize("NFC", other) != other:
        differences.append("form of accents (NFC, NFD)")
    if normalize("NFC", plain) != normalize("NFC", other) and _key(plain) == _key(other):
        differences.append("upper and lower case or spaces")
    return ", ".join(differences) or "spelling"


@lru_cache(16)
def _entries(folder: Path) -> dict[str, str]:
    """The names in a folder by their simplest spelling; none where two names share it."""
    names: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                key = _key(entry.name)
                names[key] = "" if key in names else entry.name
                if len(names) > MAX_ENTRIES:
                    return {}
    except (OSError, ValueError):
        return {}
    return names


def _key(name: str) -> str:
    return normalize("NFC", name.casefold()).strip()
