"""Entities in a translation: each is replaced by a marker, and put back in the place of its marker afterwards.

    "The cat is left of the dog"  ->  "The X1 is left of the X2"  ->  ...  ->  "X2 has an X1 on its left"

Names stay spelled as they are, and offsets follow from the edit that puts them back. A translation is used with
entities only if every marker comes out exactly once.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from spanbox.data.words import indefinite_article, is_unspaced
from spanbox.spans import CharSpan, EditMap, Piece, merge_spans

_LETTERS = "XYZQWVKJ"  # rare in words, and kept by translators when a number follows, as in names of products
_ARTICLE_AT_END = re.compile(r"(?<!\S)(an?|An?)(\s+)$")
_LONGEST_ARTICLE = 8  # characters, with the spaces behind it


@dataclass(frozen=True)
class MarkedText:
    """A text with markers in place of its entities.

    Overlapping entities share a marker.
    """

    text: str
    original: str
    spans: tuple[CharSpan, ...]  # of the entities, in the original
    carried: tuple[CharSpan, ...]  # span of each marker's text, in the original
    letter: str  # of the markers

    @property
    def has_words(self) -> bool:
        """Whether there is anything to translate besides the markers."""
        return any(map(str.isalpha, re.sub(self._pattern(r"\d+"), "", self.text)))

    def restore(self, translated: str, *, english: bool) -> tuple[str, list[CharSpan]] | None:
        """The translation with its entities put back, and their spans; None if a marker was lost or repeated.

        Args:
            translated: of `text`.
            english: whether it is in English, so that the article before a marker is fitted to the entity.
        """
        markers = list(re.finditer(self._pattern(r"(\d+)"), translated, re.IGNORECASE))
        place_of = {marker[1]: marker.span() for marker in markers}
        numbers = [str(number) for number in range(1, len(self.carried) + 1)]
        if len(markers) != len(numbers) or place_of.keys() != set(numbers):
            return None
        pieces, places = [], []
        for number, (start, end) in zip(numbers, self.carried, strict=True):
            low, high = _without_spaces(translated, place_of[number], self.original[start:end])
            pieces.append(Piece(low, high, self.original[start:end]))
            places.append((low, high))
            article = _ARTICLE_AT_END.search(translated, max(low - _LONGEST_ARTICLE, 0), low) if english else None
            if article:
                fitting = indefinite_article(self.original[start:end])
                recase = str.capitalize if article[1][0] == "A" else str
                pieces.append(Piece(*article.span(1), recase(fitting)))
        edit = EditMap.replace(translated, pieces)
        moved = edit.map_spans(places)
        assert moved is not None, "each marker is a piece of its own"
        return edit.text, [self._place_of(span, moved) for span in self.spans]

    def _place_of(self, span: CharSpan, moved: Sequence[CharSpan]) -> CharSpan:
        """The place of an entity in the new text, from the places of the markers' texts."""
        carrier = bisect_right(self.carried, span[0], key=lambda carried: carried[0]) - 1
        shift = moved[carrier][0] - self.carried[carrier][0]
        return span[0] + shift, span[1] + shift

    def _pattern(self, number: str) -> str:
        """A marker, no part of a word. A number or another marker may stand beside it, as in Chinese: 3X1X2."""
        return rf"(?<![A-Za-z]){self.letter}\s?{number}(?![0-9]|(?!{self.letter}\s?[0-9])[A-Za-z])"


def mark_entities(text: str, spans: Sequence[CharSpan]) -> MarkedText:
    """The text with a marker in place of each entity; overlapping ones share one.

    The markers use the first letter of which the text has no marker already.
    """
    carried = merge_spans(spans)
    letter = next((letter for letter in _LETTERS if not re.search(rf"{letter}\s?\d", text, re.IGNORECASE)), _LETTERS[0])
    pieces = [Piece(start, end, f"{letter}{number}") for number, (start, end) in enumerate(carried, start=1)]
    return MarkedText(EditMap.replace(text, pieces).text, text, tuple(spans), tuple(carried), letter)


def _without_spaces(text: str, place: CharSpan, entity: str) -> CharSpan:
    """The place of a marker, with the spaces around it where the entity and its neighbour are written without."""
    low, high = place
    before, after = text[:low].rstrip(), text[high:].lstrip()
    if before and is_unspaced(before[-1]) and is_unspaced(entity[0]):
        low = len(before)
    if after and is_unspaced(after[0]) and is_unspaced(entity[-1]):
        high = len(text) - len(after)
    return low, high
