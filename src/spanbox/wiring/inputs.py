"""Checks of the inputs of a model in Python: texts, spans, images and their numbers, one or several."""

import math
from collections.abc import Iterable, Sequence
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from spanbox.errors import ConfigError, DataError
from spanbox.spans import CharSpan
from spanbox.wiring.encoding import ImageSource

Span = CharSpan | str
"""A half-open interval of code points of a text, or words of the text: their first occurrence."""
Item = TypeVar("Item")


def find_spans(text: str, spans: Sequence[Span]) -> list[CharSpan]:
    """Spans as intervals of a text. Raises DataError for words that do not occur in it, and for anything else."""
    return [_find(text, span) for span in several(spans, "spans")]


def _find(text: str, span: Span) -> CharSpan:
    if not isinstance(span, str):
        try:
            start, end = map(index, span)
        except (TypeError, ValueError):
            raise DataError(f"{span!r} is not a span; give (start, end) in characters, or words of the text") from None
        return start, end
    start = text.find(span)
    if start < 0 or not span:
        raise DataError(f"{span!r} does not occur in {text!r}; give words of the text, or (start, end)")
    return start, start + len(span)


def several(items: Iterable[Item], kind: str) -> list[Item]:
    """Items as a list. A text does not count as a list of its characters."""
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise DataError(f"{items!r} is not a list of {kind}")
    return list(items)


def checked_text(text: str) -> str:
    """A text, checked. Raises DataError for other types, and for lone surrogates, as broken UTF-8 leaves them."""
    if not isinstance(text, str):
        raise DataError(f"{type(text).__name__} is not a text; expected str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text has {text[error.start]!a}, which is not a character; is it UTF-8?") from None
    return text


def listed_texts(texts: str | Iterable[str]) -> tuple[list[str], bool]:
    """Texts as a list, and whether it was a single one."""
    single = isinstance(texts, str)
    return [checked_text(text) for text in ([texts] if isinstance(texts, str) else several(texts, "texts"))], single


def listed_images(images: ImageSource | Iterable[ImageSource]) -> tuple[list[ImageSource], bool]:
    """Images as a list, and whether it was a single one."""
    of_pixels = isinstance(images, np.ndarray | Tensor) and images.ndim <= 3
    if isinstance(images, str | Path | Image.Image) or of_pixels:
        return [images], True  # type: ignore[list-item]
    return several(images, "images"), False


def paired(items: list[Item], parts: Any, kind: str, *, single: bool) -> list[tuple[Item, Any]]:
    """Pairs of an item and its parts."""
    of_items = [parts] if single else several(parts, kind)
    if len(items) != len(of_items):
        raise DataError(f"{kind} of {len(of_items)} inputs for {len(items)}; give a list for each")
    return list(zip(items, of_items, strict=True))


def checked_threshold(threshold: float) -> float:
    try:
        number = float(threshold)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"threshold is {threshold!r}; expected a finite number, or None for the model's own")
    return number
