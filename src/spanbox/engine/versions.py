"""Versions of checkpoints: which spanbox wrote one, and whether this one reads it.

`architecture.json` of a checkpoint names its format and the spanbox that wrote it, `environment.json` of a run names
the latter. The format is a number that rises when older versions would misread a new checkpoint. Checkpoints of format
0 name neither.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spanbox.documents import DocumentError, read_json
from spanbox.errors import CheckpointError

FORMAT = 1
VERSION = version("spanbox")
VERSION_FILES = ("architecture.json", "environment.json")  # of a checkpoint, of a run


def format_and_version() -> dict[str, Any]:
    """The format and version that a new checkpoint records."""
    return {"format": FORMAT, "spanbox": VERSION}


def refuse_newer_format(folder: Path, architecture: Mapping[str, Any]) -> None:
    """Refuse a checkpoint in a newer format than this version reads.

    Args:
        folder: the checkpoint.
        architecture: content of its `architecture.json`.

    Raises:
        CheckpointError: it is newer, or its format is not a number.
    """
    found = architecture.get("format", 0)
    if type(found) is not int or found < 0:
        raise CheckpointError(f"{folder}/architecture.json: format is {found!r}, no number; copy the checkpoint again")
    if found > FORMAT:
        writer = _version(architecture)
        remedy = f"pip install spanbox=={writer}" if writer else "pip install --upgrade spanbox"
        raise CheckpointError(
            f"{folder}: was written by a newer spanbox{f', {writer}' if writer else ''}, in format {found}; this one, "
            f"{VERSION}, reads formats up to {FORMAT}: {remedy}"
        )


def other_version(folder: Path) -> str:
    """A sentence for errors about a run or checkpoint that another version of spanbox wrote; else empty."""
    for name in VERSION_FILES:
        try:
            content = read_json(folder / name)
        except (DocumentError, OSError):
            continue
        writer = _version(content) if isinstance(content, dict) else None
        if writer is None and name == VERSION_FILES[0]:
            return f"\nIt does not name the version of spanbox that wrote it, which reads it; this is {VERSION}."
        if writer not in (None, VERSION):
            return f"\nspanbox {writer} wrote it, and reads it: pip install spanbox=={writer}. This is {VERSION}."
    return ""


def _version(content: Mapping[str, Any]) -> str | None:
    """The version that a file names; None if it names none, or no version."""
    found = content.get("spanbox")
    plain = isinstance(found, str) and 0 < len(found) < 40 and found.replace(".", "").replace("+", "").isalnum()
    return found if plain else None
