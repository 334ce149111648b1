"""Boxes in Pascal VOC annotation files, one XML file an image.

Read with defusedxml: these files come from strangers, and an XML file can ask its reader to fetch or to expand without
end. Coordinates are taken as they stand, in pixels; what a data set means by them is its importer's business.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree

from spanbox.data.manifest import Box, is_inverted
from spanbox.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocFile:
    """What one annotation file says."""

    size: tuple[int, int] | None  # width and height of the image that was annotated, where given
    boxes: dict[str, list[Box]]  # by name, white space collapsed; a name may recur
    unusable: list[str]  # boxes that were left out, in words


def read_voc(path: Path) -> VocFile:
    """Read an annotation file. A box without an area or with a corner that is no number is left out and listed.

    Raises:
        DataError: the file is no XML, or asks for entities to be expanded.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except DefusedXmlException as error:
        raise DataError(f"{path}: refused, it defines or fetches entities ({type(error).__name__})") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: is no XML that can be read ({error})") from None
    boxes: dict[str, list[Box]] = {}
    unusable: list[str] = []
    for element in root.iter("object"):
        name = " ".join((element.findtext("name") or "").split())
        for corners in element.iter("bndbox"):
            texts = [corners.findtext(corner) for corner in _CORNERS]
            box = _box(texts)
            if box is None:
                unusable.append(f"{name!r}: {texts} has no area or is no box")
            else:
                boxes.setdefault(name, []).append(box)
    return VocFile(_size(root), boxes, unusable)


def _box(texts: list[str | None]) -> Box | None:
    try:
        x0, y0, x1, y1 = (float(text or "") for text in texts)
    except ValueError:
        return None
    return None if is_inverted((x0, y0, x1, y1)) else (x0, y0, x1, y1)


def _size(root: Any) -> tuple[int, int] | None:
    """Width and height; `None` where they are missing, no numbers or, as some tools write them, 0."""
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
