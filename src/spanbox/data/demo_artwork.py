"""The objects of the demo scenes: their names, and their pictures from the artwork or from a font of emoji."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from spanbox.data.demo_sentences import Language
from spanbox.documents import refuse_special
from spanbox.errors import DataError

EMOJI_SIZE = 109  # pixels: the only size of bitmap emoji in Noto's font
NO_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class Concept:
    """An object of the scenes, with its names."""

    id: str
    subgroup: str
    names: dict[Language, str]
    image: str  # member of the artwork archive
    emoji: str = ""
    font: str | None = None  # the emoji is drawn from it, instead of the image


def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO((files("spanbox.data") / "artwork" / "fluent-emoji.zip").read_bytes()))


@cache
def all_concepts() -> tuple[Concept, ...]:
    """All objects of the archive, in its order."""
    return tuple(_read_concepts())


def _read_concepts() -> Iterator[Concept]:
    with _archive() as archive:
        for line in archive.read("concepts.jsonl").splitlines():
            row = json.loads(line)
            names: dict[Language, str] = {"en": row["name_en"], "zh": row["name_zh"]}
            yield Concept(row["id"], row["subgroup"], names, row["image"], row["emoji"])


@cache
def _artworks() -> dict[str, bytes]:
    with _archive() as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".webp")}


def artwork(concept: Concept) -> Image.Image:
    """The picture of an object, RGBA. Raises DataError for a font without it."""
    return _drawing(concept.image) if concept.font is None else _glyph(concept.emoji, concept.font)


@cache
def _drawing(name: str) -> Image.Image:
    return Image.open(io.BytesIO(_artworks()[name])).convert("RGBA")


@cache
def _glyph(emoji: str, font: str) -> Image.Image:
    """An emoji of a font, without the empty space around it. Raises DataError."""
    drawn, missing = (_written(text, font) for text in (emoji, NO_CHARACTER))
    edges = drawn.getbbox()
    if edges is None or drawn.tobytes() == missing.tobytes():
        raise DataError(f"{font}: has no picture of {emoji}; give a font with all colour emoji, or fewer concepts")
    return drawn.crop(edges)


def _written(text: str, font: str) -> Image.Image:
    try:
        refuse_special(Path(font))
        opened = ImageFont.truetype(font, EMOJI_SIZE)
    except OSError as error:
        raise DataError(
            f"{font}: is not a font with emoji of {EMOJI_SIZE} pixels ({error}); give one such as NotoColorEmoji.ttf "
            "of Debian's fonts-noto-color-emoji"
        ) from None
    canvas = Image.new("RGBA", (2 * EMOJI_SIZE, 2 * EMOJI_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((EMOJI_SIZE // 4, EMOJI_SIZE // 4), text, font=opened, embedded_color=True)
    return canvas
