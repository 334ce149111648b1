"""Distributions of a manifest: sizes of images and boxes, lengths of texts, scripts; and pairs far outside of them."""

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import cache
from unicodedata import name

import numpy as np
from numpy.typing import NDArray

from spanbox.data.images import ImageFacts
from spanbox.data.manifest import Record
from spanbox.data.words import primary_language
from spanbox.metric_names import SIZES

DEVIATIONS = 8.0  # of the logarithm of a value from the median, in robust standard deviations, of an outlier
FACTOR = 4.0  # by which an outlier differs from the median at least
FEW_OF_TYPE = 10  # entities, in a set whose other types have many more
SCRIPTS = {
    "LATIN": "Latin", "CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "HANGUL": "Hangul", "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic", "GREEK": "Greek", "HEBREW": "Hebrew", "DEVANAGARI": "Devanagari", "THAI": "Thai",
}  # fmt: skip
SCRIPT_OF_LANGUAGE = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "tr", "vi", "id"), ("Latin",)),
    "zh": ("Han",), "ja": ("Kana", "Han"), "ko": ("Hangul",), "ru": ("Cyrillic",), "uk": ("Cyrillic",),
    "ar": ("Arabic",), "fa": ("Arabic",), "el": ("Greek",), "he": ("Hebrew",), "hi": ("Devanagari",), "th": ("Thai",),
}  # fmt: skip


class Shape:
    """Distributions of a manifest, 48 bytes per line."""

    MEASURES = ("line", "width", "height", "characters", "entities", "boxes")

    def __init__(self) -> None:
        self._values = array("d")
        self.scripts: Counter[str] = Counter()
        self.box_sizes: Counter[str] = Counter()

    def add(self, record: Record, image: ImageFacts | None, line: int) -> None:
        width, height = image.size if image else (math.nan, math.nan)
        boxes = [box for entity in record.entities for box in entity.boxes]
        self._values.extend((line, width, height, len(record.text), len(record.entities), len(boxes)))
        self.scripts[script_of(record.text)] += 1
        if image:
            shares = ((x1 - x0) * (y1 - y0) / (width * height) for x0, y0, x1, y1 in boxes)
            self.box_sizes.update(
                size for share in shares for size, (low, high) in SIZES.items() if low <= share < high
            )

    def column(self, measure: str) -> NDArray[np.float64]:
        """(lines,) a measure of each pair; NaN where the image could not be read."""
        table = np.frombuffer(self._values, dtype=np.float64).reshape(-1, len(self.MEASURES))
        return table[:, self.MEASURES.index(measure)]

    def summary(self) -> dict[str, object]:
        """Least, median and largest of each measure, and the counts of scripts and of sizes of boxes."""
        measures: dict[str, object] = {}
        for measure in self.MEASURES[1:]:
            values = self.column(measure)
            values = values[np.isfinite(values)]
            if len(values):
                numbers = (values.min(), np.median(values), values.max())
                measures[measure] = dict(zip(("least", "median", "largest"), map(float, numbers), strict=True))
        return measures | {
            "scripts": dict(self.scripts.most_common()),
            "box sizes": {n: self.box_sizes[n] for n in SIZES},
        }

    def outliers(self) -> Iterator[tuple[str, int, str]]:
        """Pairs far outside of the distributions, as (kind, line, detail)."""
        line = self.column("line")
        longer = np.maximum(self.column("width"), self.column("height"))
        shorter = np.minimum(self.column("width"), self.column("height"))
        for kind, values, what in (
            ("unusual image size", longer, "longer side of {} pixels"),
            ("unusual shape of an image", longer / shorter, "sides in a ratio of {}"),
            ("unusual text length", self.column("characters"), "{} characters"),
            ("unusual number of boxes", self.column("boxes"), "{} boxes"),
        ):
            median, far = _far_from_median(values)
            for row in np.flatnonzero(far).tolist():
                detail = what.format(f"{values[row]:.4g}")
                yield kind, int(line[row]), f"{detail}; the median is {median:.4g}"


def _far_from_median(values: NDArray[np.float64]) -> tuple[float, NDArray[np.bool_]]:
    """The median of the values above 0, and a mask of the values far from it, empty for fewer than 20 values."""
    used: NDArray[np.bool_] = np.isfinite(values) & (values > 0)
    if used.sum() < 20:
        return 0.0, np.zeros(len(values), dtype=np.bool_)
    logs = np.log(np.where(used, values, 1.0))
    median = float(np.median(logs[used]))
    spread = 1.4826 * float(np.median(np.abs(logs[used] - median)))
    far: NDArray[np.bool_] = used & (np.abs(logs - median) > max(DEVIATIONS * spread, math.log(FACTOR)))
    return math.exp(median), far


def find_language_conflict(record: Record) -> Iterator[tuple[str, str]]:
    """A text whose script is not one of its language, as (kind, detail).

    Names in Latin letters are usual in texts of other scripts, and may be most of their letters.
    """
    expected = SCRIPT_OF_LANGUAGE.get(primary_language(record.lang))
    script = script_of(record.text)
    if not expected or script in (*expected, "none"):
        return
    if script != "Latin" or not any(_script(character) in expected for character in record.text):
        yield (
            "language and script differ",
            f"lang {record.lang!r}, but the text is mostly {script}: {record.text[:40]!r}",
        )


def script_of(text: str) -> str:
    """The script of most letters of a text; `none` without letters."""
    counts = Counter(script for script in map(_script, text) if script)
    return counts.most_common(1)[0][0] if counts else "none"


@cache
def _script(character: str) -> str:
    if not character.isalpha():
        return ""
    return SCRIPTS.get(name(character, "").partition(" ")[0], "other")


def find_rare_types(types: Counter[str]) -> Iterator[tuple[str, str]]:
    """Types of which a set has few entities beside many of others, as (kind, detail)."""
    if len(types) > 1:
        median = float(np.median(list(types.values())))
        for kind, count in types.items():
            if count < FEW_OF_TYPE <= median / FEW_OF_TYPE:
                yield "rare type", f"{kind or 'no type'}: {count} entities; the median of the types is {median:.0f}"
