"""Boxes of another format: what the boxes of a whole set look like, when single boxes cannot show it.

Boxes are `[x0, y0, x1, y1]` in pixels of the image as shown. Counted here is how many boxes of a set fit into their
images under other readings.
"""

from collections.abc import Iterator

from spanbox.data.images import ImageFacts
from spanbox.data.manifest import Box, is_inverted

TOLERANCE = 1.0  # pixels by which a box may leave the image: annotators and detectors round
_FEW = 0.01  # share of boxes that may contradict a reading
_FRACTION_LIMITS = (-0.05, 1.05)  # of coordinates that are fractions of the sides
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
    """Boxes of one source (entities or objects) of a manifest under other readings of their numbers."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.first_line = 0
        self.count = self.inverted = 0
        self.lowest, self.highest = float("inf"), float("-inf")
        self.sized = self.outside = self.outside_xywh = self.outside_yx = 0  # of boxes whose image could be read
        self.over_100 = self.over_1000 = 0  # boxes in images with a side of 125, of 1250 pixels or more
        self.turned = self.turned_outside = self.turned_outside_stored = 0  # of boxes in images that are turned

    def add(self, box: Box, image: ImageFacts | None, line: int) -> None:
        self.first_line = self.first_line or line
        self.count += 1
        self.inverted += is_inverted(box)
        self.lowest, self.highest = min(self.lowest, *box), max(self.highest, *box)
        if image is None:
            return
        x0, y0, x1, y1 = box
        width, height = image.size
        outside = not _fits(box, width, height)
        self.sized += 1
        self.outside += outside
        self.outside_xywh += not _fits((x0, y0, x0 + x1, y0 + y1), width, height)
        self.outside_yx += not _fits((y0, x0, y1, x1), width, height)
        self.over_100 += max(width, height) >= 125
        self.over_1000 += max(width, height) >= 1250
        if image.size != image.stored:
            self.turned += 1
            self.turned_outside += outside
            self.turned_outside_stored += not _fits(box, *image.stored)

    def findings(self) -> Iterator[tuple[str, int, str]]:
        """The reading that explains the boxes, if one does, as (kind, line, detail)."""
        kind, reason = self._reading()
        if kind:
            yield kind, self.first_line, f"{self.count} boxes of {self.source}: {reason}"

    def _reading(self) -> tuple[str, str]:
        count, sized = self.count, self.sized
        if not count:
            return "", ""
        if _FRACTION_LIMITS[0] <= self.lowest and self.highest <= _FRACTION_LIMITS[1]:
            return "boxes look like fractions", "all numbers are between 0 and 1"
        many_inverted = count >= 4 and self.inverted >= max(2, 0.05 * count)
        if many_inverted and (self.outside_xywh <= _FEW * sized if sized else self.inverted >= 0.2 * count):
            reason = f"{self.inverted} have no area, and as x y width height "
            reason += f"{sized - self.outside_xywh} of {sized} fit into their images" if sized else "all have one"
            return "boxes look like x y width height", reason
        if self.turned_outside and self.turned_outside_stored <= _FEW * self.turned:
            reason = (
                f"{self.turned_outside} of {self.turned} in images with an EXIF orientation leave the image as shown"
            )
            return "boxes of the image before turning", f"{reason}; all fit into it as stored"
        if count >= 4 and self.outside >= max(2, 0.1 * sized) and self.outside_yx <= _FEW * sized:
            reason = f"{self.outside} of {sized} leave their images or have no area; as y0 x0 y1 x1 they fit"
            return "boxes look like y0 x0 y1 x1", reason
        if count >= 8 and self.lowest >= 0:
            if 80 <= self.highest <= 100 and self.over_100 >= 0.8 * count:
                return "boxes look like percent", "all numbers are between 0 and 100, in larger images"
            leave = self.outside >= 0.2 * max(1, sized)
            if 800 <= self.highest <= 1000 and (leave or self.over_1000 >= 0.8 * count):
                return "boxes look like thousandths", "all numbers are between 0 and 1000, in images of other sizes"
        return "", ""


def _fits(box: Box, width: int, height: int) -> bool:
    x0, y0, x1, y1 = box
    return -TOLERANCE <= x0 < x1 <= width + TOLERANCE and -TOLERANCE <= y0 < y1 <= height + TOLERANCE
