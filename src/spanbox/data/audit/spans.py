"""Spans that cut words, and offsets that were counted in another way.

A single span that ends inside a word may be intended. When many spans of a set do, and (nearly) none would if the
offsets were UTF-16 units, bytes, inclusive, one off, or left out white space or emoji, the offsets are to be converted.
In Chinese, where no spaces separate words, the evidence is spans that leave the text, begin or end with a mark of
punctuation, or miss their identity. Several readings may explain such spans. Of these, the one counts that parts fewer
letters, or else changes fewer spans; where none does, it is undetermined.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from unicodedata import category

import msgspec

from spanbox.data.manifest import Entity, Record
from spanbox.data.words import cuts_word, is_invisible, surely_cuts_word

_SEPARATORS = ",;:!?，。、；：！？…"  # with which no name begins or ends; a full stop or bracket may belong to it
_TEXTS = 8  # remembered, so that a text is not counted again for each of its spans
_LEAST_WRONG = 0.5  # share of wrong spans as they are, from which few spans are enough
_MANY_WRONG = 8  # wrong spans that are enough at any share
_MOST_RIGHT = 0.05  # share of wrong spans, of those wrong as they are, that may stay wrong in another reading
_SAME = 0.05  # share by which counts of two readings may differ that explain the spans equally well

Span = tuple[int, int]


def from_units(text: str, offset: int, encoding: str, unit: int) -> int | None:
    """The place in `text` of an offset that counts units of an encoding; None inside a character or beyond the end."""
    encoded = _encoded(text, encoding)
    if not 0 <= unit * offset <= len(encoded):
        return None
    try:
        return len(encoded[: unit * offset].decode(encoding))
    except UnicodeDecodeError:
        return None


def without(text: str, offset: int, left_out: Callable[[str], bool], *, end: bool) -> int | None:
    """The place in `text` of an offset that skips some characters: before the counted one or, for an end, behind it."""
    counted = _counted(text, left_out)
    if end:
        return counted[offset - 1] + 1 if 0 < offset <= len(counted) else None
    return counted[offset] if 0 <= offset < len(counted) else None


@lru_cache(_TEXTS)
def _encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


@lru_cache(_TEXTS)
def _counted(text: str, left_out: Callable[[str], bool]) -> list[int]:
    """The places of the characters that are counted."""
    return [place for place, character in enumerate(text) if not left_out(character)]


def _shifted(start: int, end: int) -> Callable[[str, Span], Span | None]:
    return lambda text, span: (span[0] + start, span[1] + end)


def _in_units(encoding: str, unit: int) -> Callable[[str, Span], Span | None]:
    def read(text: str, span: Span) -> Span | None:
        start, end = (from_units(text, offset, encoding, unit) for offset in span)
        return None if start is None or end is None else (start, end)

    return read


def _leaving_out(left_out: Callable[[str], bool]) -> Callable[[str, Span], Span | None]:
    def read(text: str, span: Span) -> Span | None:
        start, end = (
            without(text, offset, left_out, end=at_end) for offset, at_end in zip(span, (False, True), strict=True)
        )
        return None if start is None or end is None else (start, end)

    return read


def is_emoji(character: str) -> bool:
    return character > "\uffff" or character in "\u200d\ufe0f"


def is_emoji_or_symbol(character: str) -> bool:
    """Also the emoji of the first 65,536 characters, such as ❤ and ✨, which programs that remove emoji take away."""
    is_symbol = "\u2190" <= character <= "\u2bff" and category(character) == "So"
    return is_symbol or is_emoji(character) or character in "‼⁉\u20e3〰〽㊗㊙"


READINGS: dict[str, Callable[[str, Span], Span | None]] = {
    "spans look like inclusive ends": _shifted(0, 1),
    "spans look one too long": _shifted(0, -1),
    "spans look counted from 1": _shifted(-1, -1),
    "spans look one too low": _shifted(1, 1),
    "spans look like UTF-16 offsets": _in_units("utf-16-le", 2),
    "spans look like byte offsets": _in_units("utf-8", 1),
    "spans look like offsets without white space": _leaving_out(str.isspace),
    "spans look like offsets without emoji": _leaving_out(is_emoji),
    "spans look like offsets without emoji and symbols": _leaving_out(is_emoji_or_symbol),
}
"""The span under another reading of its offsets, by the kind of finding; None where it would be no span."""
UNKNOWN = "spans of unknown convention"


def paraphrased_pairs(record: Record) -> Iterator[Record]:
    """The paraphrases of a pair as pairs, with the entities where they name them."""
    for paraphrase in record.paraphrases:
        entities = [
            Entity(span.start, span.end, identity=record.entities[span.entity].identity)
            for span in paraphrase.entities
            if 0 <= span.entity < len(record.entities)
        ]
        yield msgspec.structs.replace(record, text=paraphrase.text, entities=tuple(entities), paraphrases=())


class SpanStatistics:
    """Spans of a manifest, of its texts or of its paraphrases, under each reading of their offsets."""

    def __init__(self, things: str = "spans") -> None:
        self.things = things
        self.affected = dict.fromkeys(READINGS, 0)  # spans that the reading changes
        self.wrong_as_given = dict.fromkeys(READINGS, 0)
        self.wrong_as_read = dict.fromkeys(READINGS, 0)
        self.parted_as_read = dict.fromkeys(READINGS, 0)  # spans that part two letters, which may be meant
        self.first_line = 0
        self._spans_as_read = dict.fromkeys(READINGS, 0)  # hashes: readings that are one in these texts

    def add(self, record: Record, line: int) -> None:
        for entity in record.entities:
            given = entity.start, entity.end
            wrong = is_wrong(record.text, given, entity.identity)
            for kind, read in READINGS.items():
                span = read(record.text, given)
                if span != given:
                    self.affected[kind] += 1
                    self.wrong_as_given[kind] += wrong
                    self.wrong_as_read[kind] += span is None or is_wrong(record.text, span, entity.identity)
                    self.parted_as_read[kind] += span is not None and any(cuts_word(record.text, edge) for edge in span)
                self._spans_as_read[kind] = hash((self._spans_as_read[kind], span))
            if wrong and not self.first_line:
                self.first_line = line

    def reading(self) -> str | None:
        """The kind of the reading that explains the spans best, if one does."""
        found = self._best()
        return found[0] if len(found) == 1 else None

    def findings(self) -> Iterator[tuple[str, int, str]]:
        """The reading as (kind, line, detail)."""
        found = self._best()
        if found:
            kind = found[0]
            detail = (
                f"{self.wrong_as_given[kind]} of {self.affected[kind]} {self.things} cut a word, leave the text, begin "
                "or end with a space or a comma, or miss their name; "
            )
            if len(found) == 1:
                yield kind, self.first_line, f"{detail}{self.wrong_as_read[kind]} would if they were read so"
            else:
                read = " or ".join(kind.removeprefix("spans look ").removeprefix("like ") for kind in found)
                yield UNKNOWN, self.first_line, f"{detail}they may be {read}"

    def _best(self) -> list[str]:
        """The kinds of the readings that explain the most wrong spans; mostly none or one."""
        fitting = [kind for kind in READINGS if self._fits(kind)]
        most = max((self.wrong_as_given[kind] for kind in fitting), default=0)
        fitting = [kind for kind in fitting if self.wrong_as_given[kind] >= (1 - _SAME) * most]
        for counts in (self.parted_as_read, self.affected):
            least = min((counts[kind] for kind in fitting), default=0)
            fitting = [kind for kind in fitting if counts[kind] <= least + _SAME * self.affected[kind]]
        return list({self._spans_as_read[kind]: kind for kind in reversed(fitting)}.values())[::-1]

    def _fits(self, kind: str) -> bool:
        affected, wrong = self.affected[kind], self.wrong_as_given[kind]
        enough = wrong >= _LEAST_WRONG * affected or wrong >= _MANY_WRONG
        return (
            affected >= (2 if "UTF" in kind or "byte" in kind else 4)
            and wrong >= 2
            and enough
            and self.wrong_as_read[kind] <= _MOST_RIGHT * wrong
        )


def find_odd_spans(record: Record) -> Iterator[tuple[str, str]]:
    """Spans that cut a word or name, begin or end with white space, or hold no visible character, as (kind, detail)."""
    for i, entity in enumerate(record.entities):
        start, end, text = entity.start, entity.end, record.text
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            continue
        cuts_word = surely_cuts_word(text, start) or surely_cuts_word(text, end)
        if cuts_word or _cuts_name(text, (start, end), entity.identity):
            excerpt = text[max(0, start - 12) : end + 12]
            yield "span cuts a word", f"entities[{i}]: [{start}, {end}) is {text[start:end]!r} in {excerpt!r}"
        if text[start].isspace() or text[end - 1].isspace():
            yield "span with white space at its edge", f"entities[{i}]: [{start}, {end}) is {text[start:end]!r}"
        if is_invisible(text[start:end].replace("\ufffd", "")):
            yield "span without a visible character", f"entities[{i}]: [{start}, {end}) is {text[start:end]!a}"


def _cuts_name(text: str, span: Span, name: str) -> bool:
    """Whether a span begins or ends inside a name without being a part of it.

    So a span that was moved shows in scripts without spaces, too. A part of a name alone may be meant.
    """
    length = len(name)
    cuts = any(name and text.find(name, max(0, edge - length + 1), edge + length - 1) >= 0 for edge in span)
    return cuts and text[slice(*span)] not in name


def is_wrong(text: str, span: Span, identity: str = "") -> bool:
    """Whether an interval leaves the text, cuts a word, or begins or ends with white space or a mark of punctuation.

    Where the text holds the identity of the entity letter by letter, the interval is wrong if it is another part.
    """
    start, end = span
    if not 0 <= start < end <= len(text) or surely_cuts_word(text, start) or surely_cuts_word(text, end):
        return True  # `dog`, the identity, within `dogs` too
    if identity and identity in text:
        return text[start:end] != identity
    return any(_is_separator(text[place]) for place in (start, end - 1))


@cache
def _is_separator(character: str) -> bool:
    return character.isspace() or character in _SEPARATORS
