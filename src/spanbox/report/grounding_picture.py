"""A picture with the boxes of the spans of its sentence, in matching colours; the sentence stands below it."""

from collections.abc import Iterator, Sequence
from colorsys import hls_to_rgb
from functools import cache
from typing import NamedTuple
from unicodedata import category

from PIL import Image, ImageDraw, ImageFont

from spanbox.report.figures import can_draw, fonts

# Okabe and Ito's palette, darkened where white text on it would be hard to read.
COLOURS = ("#0072b2", "#c24f00", "#00805d", "#a8528a", "#8a6a00", "#5b4fc7", "#b3261e", "#3d6f8f")
NOT_SHOWN = "#6b7480"
GOLDEN_RATIO = (5**0.5 - 1) / 2
WIDEST = 1000  # pixels of the picture
NARROWEST = 480
TALLEST = 2000  # of an image that is enlarged
LEAST_SIDE = 4  # of a frame, which has lines inside its edges
MARGIN = 14
TEXT_SIZE = 20
LINE = 32
VISIBLE = "LNPS"  # categories of letters, numbers, punctuation and symbols
UNDRAWABLE = ("Cc", "Zl", "Zp")  # categories of control characters and line ends, at which drawing a text fails


class Marked(NamedTuple):
    """A span of the sentence; its box in pixels of the image, None where the image does not show it; its score."""

    start: int
    end: int
    box: tuple[float, float, float, float] | None
    score: float | None


def grounding_picture(image: Image.Image, text: str, spans: Sequence[Marked]) -> Image.Image:
    """An RGB picture of the image with boxes, and the sentence with its spans below.

    Spans with the same box have one colour, those with different boxes different ones. A span without a box is grey and
    struck through. Where spans overlap, the later one colours the characters. Line ends, tabs and other control
    characters are drawn as spaces.
    """
    text = "".join(" " if category(character) in UNDRAWABLE else character for character in text)
    scale = _scale(*image.size)
    shown = image.resize((round(image.width * scale), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    width = max(shown.width, NARROWEST)
    lines = list(_lines(text, width - 2 * MARGIN))
    sheet = Image.new("RGB", (width, shown.height + LINE * len(lines) + 2 * MARGIN), "white")
    sheet.paste(shown)
    draw = ImageDraw.Draw(sheet)
    colours = _colours(spans)
    for span, colour in zip(spans, colours, strict=True):
        if span.box is not None:
            label = f"{span.score:z.2f}" if span.score is not None else ""
            _frame(draw, _within(span.box, scale, shown.size), colour, label, sheet.width)
    marks: list[str | None] = [None] * len(text)
    for span, colour in zip(spans, colours, strict=True):
        marks[span.start : span.end] = [colour] * (span.end - span.start)
    for row, (start, end) in enumerate(lines):
        _write_line(draw, text[start:end], marks[start:end], shown.height + MARGIN + row * LINE)
    return sheet


def _scale(width: int, height: int) -> float:
    """Of the image: wide ones are reduced; narrow ones are enlarged, unless they become too tall."""
    if width < NARROWEST:
        return max(1.0, min(NARROWEST / width, TALLEST / height))
    return min(WIDEST / width, 1.0)


def undrawn_characters(text: str) -> list[str]:
    """The characters of a text that no installed font has: the picture shows empty boxes in their place."""
    visible = (character for character in dict.fromkeys(text) if category(character)[0] in VISIBLE)
    return [character for character in visible if not can_draw(character)]


def _colours(spans: Sequence[Marked]) -> list[str]:
    """The colour of each span and its box."""
    number_of: dict[tuple[float, float, float, float], int] = {}
    for span in spans:
        if span.box is not None:
            number_of.setdefault(span.box, len(number_of))
    return [NOT_SHOWN if span.box is None else _colour(number_of[span.box]) for span in spans]


def _colour(number: int) -> str:
    """The palette's colours; after them dark hues, each far from those before it on the colour circle."""
    if number < len(COLOURS):
        return COLOURS[number]
    red, green, blue = hls_to_rgb(number * GOLDEN_RATIO % 1, 0.3, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _write_line(draw: ImageDraw.ImageDraw, text: str, marks: Sequence[str | None], y: int) -> None:
    x = float(MARGIN)
    if text.endswith(" "):
        text = text[:-1]  # a line does not end in a mark
    for character, colour in zip(text, marks, strict=False):
        width = _width(character)
        if colour is not None:
            draw.rectangle((x, y, x + width, y + LINE - 6), fill=colour)
        fill = "#1b1f24" if colour is None else "white"
        draw.text((x, y + LINE - 13), character, font=_font(character), fill=fill, anchor="ls")
        if colour == NOT_SHOWN:
            draw.line((x, y + LINE / 2 - 2, x + width, y + LINE / 2 - 2), fill="white", width=2)
        x += width


def _within(box: tuple[float, ...], scale: float, size: tuple[int, int]) -> tuple[float, ...]:
    """The edges of a box in the shown image, clipped to it, and at least as far apart as the lines of its frame."""
    edges = [min(max(0.0, scale * edge), side) for edge, side in zip(box, (*size, *size), strict=True)]
    x0, y0 = (max(0.0, min(edge, side - LEAST_SIDE)) for edge, side in zip(edges[:2], size, strict=True))
    return x0, y0, max(edges[2], x0 + LEAST_SIDE), max(edges[3], y0 + LEAST_SIDE)


def _frame(draw: ImageDraw.ImageDraw, edges: tuple[float, ...], colour: str, label: str, sheet_width: int) -> None:
    x0, y0, x1, y1 = edges
    draw.rectangle((x0, y0, x1, y1), outline="white", width=5)
    draw.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=colour, width=3)
    if label:
        width = sum(map(_width, label)) + 8
        top = y0 - LINE + 6 if y0 >= LINE - 6 else y0
        left = max(0.0, min(x0, sheet_width - width))
        draw.rectangle((left, top, left + width, top + LINE - 8), fill=colour)
        draw.text((left + 4, top), label, font=_font("0"), fill="white")


def _lines(text: str, width: float) -> Iterator[tuple[int, int]]:
    """The intervals of the text that fit into a line: broken after a space, or anywhere without one."""
    start = last_space = 0
    used = 0.0
    for place, character in enumerate(text):
        used += _width(character)
        if character == " ":
            last_space = place + 1
        if used > width and place > start:
            cut = last_space if last_space > start else place
            yield start, cut
            start = last_space = cut
            used = sum(_width(each) for each in text[start : place + 1])
    yield start, len(text)


@cache
def _width(character: str) -> float:
    return float(_font(character).getlength(character))


@cache
def _font(character: str) -> ImageFont.FreeTypeFont:
    """The first installed font that has a character."""
    for path, known in _fonts():
        if ord(character) in known:
            return _sized(path)
    return _sized(_fonts()[0][0])


@cache
def _sized(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, TEXT_SIZE)


@cache
def _fonts() -> tuple[tuple[str, frozenset[int]], ...]:
    from matplotlib import font_manager

    paths = [str(font_manager.findfont(family)) for family in fonts()]
    return tuple((path, frozenset(font_manager.get_font(path).get_charmap())) for path in paths)
