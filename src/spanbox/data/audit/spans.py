"""Spans that cut words, and offsets that were counted in another way.

A single span that ends inside a word may be intended. When most spans of a set do, and none would if the offsets were
UTF-16 units, bytes, or inclusive, the offsets are to be converted.
"""

from collections.abc import Iterator
from functools import cache
from unicodedata import category, name

from spanbox.data.manifest import Record

# Scripts that separate words by spaces. Chinese, Japanese and Thai have no spaces; Korean and Arabic attach particles.
_SPACED = ("LATIN ", "GREEK ", "CYRILLIC ", "ARMENIAN ", "GEORGIAN ", "DIGIT ", "COMBINING ")
_INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs", "Zs", "Zl", "Zp")
_MOST_RIGHT = 0.05  # share of wrong spans under a reading that is to be believed
_LEAST_WRONG = 0.5  # share of wrong spans as they are

READINGS = {
    "inclusive": "spans look like inclusive ends",
    "shifted": "spans look counted from 1",
    "utf-16": "spans look like UTF-16 offsets",
    "utf-8": "spans look like byte offsets",
}


class SpanStatistics:
    """Spans of a manifest under each reading of their offsets."""

    def __init__(self) -> None:
        self.affected = dict.fromkeys(READINGS, 0)  # spans that the reading changes
        self.wrong_as_given = dict.fromkeys(READINGS, 0)
        self.wrong_as_read = dict.fromkeys(READINGS, 0)
        self.first_line = 0

    def add(self, record: Record, line: int) -> None:
        for entity in record.entities:
            given = entity.start, entity.end
            wrong = _is_wrong(record.text, *given)
            for reading, span in _readings(record.text, *given):
                self.affected[reading] += 1
                self.wrong_as_given[reading] += wrong
                self.wrong_as_read[reading] += span is None or _is_wrong(record.text, *span)
            if wrong and not self.first_line:
                self.first_line = line

    def findings(self) -> Iterator[tuple[str, int, str]]:
        """The reading that explains the spans best, if one does, as (kind, line, detail)."""
        fitting = [reading for reading in READINGS if self._fits(reading)]
        if fitting:
            best = min(fitting, key=lambda reading: self.wrong_as_read[reading] / self.affected[reading])
            detail = (
                f"{self.wrong_as_given[best]} of {self.affected[best]} spans cut a word or leave the text; "
                f"{self.wrong_as_read[best]} would if they were read so"
            )
            yield READINGS[best], self.first_line, detail

    def _fits(self, reading: str) -> bool:
        affected = self.affected[reading]
        return (
            affected >= (2 if reading.startswith("utf") else 4)
            and self.wrong_as_given[reading] >= _LEAST_WRONG * affected
            and self.wrong_as_read[reading] <= _MOST_RIGHT * affected
        )


def find_odd_spans(record: Record) -> Iterator[tuple[str, str]]:
    """Spans that cut a word or hold no visible character, as (kind, detail)."""
    for i, entity in enumerate(record.entities):
        start, end, text = entity.start, entity.end, record.text
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            continue
        if _cuts_word(text, start) or _cuts_word(text, end):
            excerpt = text[max(0, start - 12) : end + 12]
            yield "span cuts a word", f"entities[{i}]: [{start}, {end}) is {text[start:end]!r} in {excerpt!r}"
        if all(category(character) in _INVISIBLE or character == "\ufffd" for character in text[start:end]):
            yield "span without a visible character", f"entities[{i}]: [{start}, {end}) is {text[start:end]!a}"


def _readings(text: str, start: int, end: int) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """What the span would be under each reading that changes it; None where it would not be a span."""
    yield "inclusive", (start, end + 1)
    yield "shifted", (start - 1, end - 1)
    if not text.isascii():
        yield "utf-8", _converted(text, "utf-8", 1, start, end)
    if any(character > "\uffff" for character in text):
        converted = _converted(text, "utf-16-le", 2, start, end)
        if converted != (start, end):
            yield "utf-16", converted


def _converted(text: str, encoding: str, unit: int, start: int, end: int) -> tuple[int, int] | None:
    encoded = text.encode(encoding)
    if not 0 <= start <= end or unit * end > len(encoded):
        return None
    try:
        return len(encoded[: unit * start].decode(encoding)), len(encoded[: unit * end].decode(encoding))
    except UnicodeDecodeError:  # in the middle of a character
        return None


def _is_wrong(text: str, start: int, end: int) -> bool:
    """Whether the interval leaves the text, cuts a word, or begins or ends with white space."""
    if not 0 <= start < end <= len(text) or text[start].isspace() or text[end - 1].isspace():
        return True
    return _cuts_word(text, start) or _cuts_word(text, end)


def _cuts_word(text: str, place: int) -> bool:
    return 0 < place < len(text) and _in_word(text[place - 1]) and _in_word(text[place])


@cache
def _in_word(character: str) -> bool:
    return (character.isalnum() or category(character) == "Mn") and name(character, "").startswith(_SPACED)
