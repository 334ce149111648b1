"""Boxes that leave their images, and the convention in which the boxes of a whole set were written.

Boxes are `[x0, y0, x1, y1]` in pixels of the image as shown.
"""

from array import array
from collections.abc import Iterator

import numpy as np

from spanbox.data.audit.conventions import (
    CORNERS,
    FRACTIONS,
    PERCENT,
    PIXELS,
    STORED,
    THOUSANDTHS,
    TOLERANCE,
    Boxes,
    Reading,
    find_reading,
)
from spanbox.data.images import ImageFacts
from spanbox.data.manifest import Box, is_inverted

MOST_BOXES = 1_000_000  # whose convention is looked for together, 64 bytes each
_WHOLE = 0.005  # of each side, by which a box of the whole image may differ from it


def find_misplaced_boxes(named: list[tuple[str, Box]], width: int, height: int) -> Iterator[tuple[str, str]]:
    """Boxes that leave their image, or are odd in it, as (kind, detail)."""
    for name, box in named:
        if is_inverted(box):
            continue
        x0, y0, x1, y1 = box
        detail = f"{name}: {list(box)} in an image of {width} x {height}"
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            yield "box outside the image", detail
        elif not _fits(box, width, height):
            yield "box partly outside the image", detail
        elif name.startswith("entities"):
            x_margin, y_margin = _WHOLE * width, _WHOLE * height
            if x0 <= x_margin and y0 <= y_margin and x1 >= width - x_margin and y1 >= height - y_margin:
                yield "box of the whole image", detail
        if min(x1 - x0, y1 - y0) < 1:
            yield "box below a pixel", detail


class BoxStatistics:
    """Boxes of one source (entities or objects) of a manifest, all together."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.first_line = 0
        self._rows = array("d")
        self._count = 0
        self._images, self._last_image = 0, ""
        self._generator = np.random.default_rng(0)

    def add(self, box: Box, name: str, image: ImageFacts | None, line: int) -> None:
        """Remember a box of the image of that name; of more than `MOST_BOXES` a random part."""
        self.first_line = self.first_line or line
        row = (*box, *image.size, *image.stored) if image else (*box, 0.0, 0.0, 0.0, 0.0)
        self._count += 1
        if image is not None and name != self._last_image:  # pairs of one image are usually together
            self._images, self._last_image = self._images + 1, name
        if self._count <= MOST_BOXES:
            self._rows.extend(row)
        elif (place := int(self._generator.integers(self._count))) < MOST_BOXES:
            self._rows[8 * place : 8 * place + 8] = array("d", row)

    @property
    def has_images(self) -> bool:
        """Whether the size of any image is known."""
        return self._images > 0

    def reading(self) -> Reading:
        """The convention of the boxes. Four zeros stand for no box and show nothing."""
        table = np.frombuffer(self._rows, dtype=np.float64).reshape(-1, 8)
        table = table[np.isfinite(table).all(axis=1) & table[:, :4].any(axis=1)]
        return find_reading(Boxes(table[:, :4], table[:, 4:6], table[:, 6:], self._images))

    def findings(self) -> Iterator[tuple[str, int, str]]:
        """The reading that explains the boxes, if it is not the documented one, as (kind, line, detail)."""
        reading = self.reading()
        if not reading.is_as_documented:
            unit = "" if reading.unit in ("", PIXELS, STORED) else f", {reading.unit}"
            fits = f"; {reading.boxes - reading.contradict:,} fit as {reading.format}{unit}" if reading.format else ""
            detail = f"{self._count:,} boxes of {self.source}: {reading.reason}{fits}{reading.remark}"
            yield kind_of(reading), self.first_line, detail


def kind_of(reading: Reading) -> str:
    """The kind of finding of a reading that is not the documented one."""
    if not reading.format and reading.unit != FRACTIONS:
        return "boxes of unknown convention"
    if reading.format not in ("", CORNERS):
        return f"boxes look like {reading.format}"
    if reading.unit == STORED:
        return "boxes of the image before turning"
    if reading.unit in (FRACTIONS, PERCENT, THOUSANDTHS):
        return f"boxes look like {reading.unit}"
    return "boxes for another size of the images"


def _fits(box: Box, width: int, height: int) -> bool:
    x0, y0, x1, y1 = box
    return -TOLERANCE <= x0 < x1 <= width + TOLERANCE and -TOLERANCE <= y0 < y1 <= height + TOLERANCE
