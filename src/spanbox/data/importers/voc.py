"""Boxes in Pascal VOC annotation files, one XML file per image.

The files come from strangers, so they are read with defusedxml, which expands no entities, and up to a limit of size,
depth and boxes. Coordinates are read without changes, in pixels; the importer of a data set applies their convention.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree

from spanbox.data.importers import read_file
from spanbox.data.manifest import Box, is_inverted
from spanbox.errors import DataError

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_BOXES = 1000

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocFile:
    """The content of one annotation file."""

    size: tuple[int, int] | None  # width and height of the image that was annotated, where given
    boxes: dict[str, list[Box]]  # by name, white space collapsed; a name may recur
    unusable: list[str]  # boxes that were left out, in words
    names_of_unusable: set[str]  # a name may have usable boxes too


def read_voc(path: Path) -> VocFile:
    """Read an annotation file. A box without an area or with a corner that is not a number is left out and listed.

    Raises:
        DataError: the file is not XML, defines entities, or is larger or deeper than the limits.
    """
    root = parse_xml(path)
    boxes: dict[str, list[Box]] = {}
    unusable: list[str] = []
    names: set[str] = set()
    # Direct children alone: looking through all levels would take quadratic time where objects are nested.
    found = [(element, corners) for element in root.findall("object") for corners in element.findall("bndbox")]
    if len(found) > MAX_BOXES:
        raise DataError(f"{path}: has {len(found)} boxes; at most {MAX_BOXES} are read of an image")
    for element, corners in found:
        name = " ".join((element.findtext("name") or "").split())
        texts = [corners.findtext(corner) for corner in _CORNERS]
        box = _box(texts)
        if box is None:
            unusable.append(f"{name!r}: {texts} has no area or is not a box")
            names.add(name)
        else:
            boxes.setdefault(name, []).append(box)
    return VocFile(_size(root), boxes, unusable, names)


def parse_xml(path: Path) -> Any:
    """The root element of an XML file within the limits. Raises DataError."""
    content = read_file(path, MAX_BYTES)
    root, depth = None, 0
    try:
        for event, element in ElementTree.iterparse(BytesIO(content), events=("start", "end")):
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            if depth > MAX_DEPTH:
                raise DataError(f"{path}: refused, its elements are nested more than {MAX_DEPTH} deep")
    except DefusedXmlException as error:
        raise DataError(f"{path}: refused, it defines or fetches entities ({type(error).__name__})") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: is not XML that can be read ({error})") from None
    return root


def _box(texts: list[str | None]) -> Box | None:
    try:
        x0, y0, x1, y1 = (float(text or "") for text in texts)
    except ValueError:
        return None
    return None if is_inverted((x0, y0, x1, y1)) else (x0, y0, x1, y1)


def _size(root: Any) -> tuple[int, int] | None:
    """Width and height; `None` where they are missing, not numbers or, as some tools write them, 0."""
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
