"""Slow loops over texts, character by character: words, tokens of spans, spans after an edit."""

import unicodedata

from spanbox.spans import Piece


def span_token_mask(spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[list[bool]]:
    """A token belongs to a span if they have a character in common."""
    return [[bool({*range(*span)} & {*range(*token)}) for token in offsets] for span in spans]


def mapped_span(text: str, pieces: list[Piece], span: tuple[int, int]) -> tuple[int, int] | None:
    """The place of a span after an edit, character by character; None where it is lost.

    Each new character carries the interval that it comes from: its own place, or all that its piece replaced.
    """
    low, high = span
    changed = [(start, end) for start, end, replacement in pieces if replacement is not None]
    if any(start < high and low < end and not low <= start <= end <= high for start, end in changed):
        return None
    new: list[tuple[str, int, int]] = []
    for start, end, replacement in pieces:
        if replacement is None:
            new += [(text[place], place, place + 1) for place in range(start, end)]
        else:
            new += [(character, start, end) for character in replacement]
    own = [
        index
        for index, (_, start, end) in enumerate(new)
        if (low <= start < end <= high) or (start == end and low < start < high)
    ]
    origins = [new[index][1:] for index in own]
    if not own or own != list(range(own[0], own[-1] + 1)) or origins != sorted(origins):
        return None
    mapped = own[0], own[-1] + 1
    return mapped if "".join(character for character, _, _ in new[mapped[0] : mapped[1]]).strip() else None


def words(text: str) -> list[tuple[int, int]]:
    """Words, character by character: a letter or digit and what belongs to it."""
    found, start = [], None
    for place, character in enumerate(text):
        is_letter = character.isalnum()
        is_mark = unicodedata.category(character)[0] == "M"
        joins = character in "\u200c\u200d'’‐-" and text[place + 1 : place + 2].isalnum()
        if start is None and is_letter:
            start = place
        elif start is not None and not (is_letter or is_mark or joins):
            found.append((start, place))
            start = None
    return [*found, (start, len(text))] if start is not None else found
