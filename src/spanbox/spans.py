"""Character spans to token masks, and through edits of their text.

Characters are Unicode code points, intervals are half-open, as in the manifest and in the offsets of fast tokenizers.
"""

from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

CharSpan = tuple[int, int]


def trim_span(text: str, span: CharSpan) -> CharSpan:
    """The span without leading and trailing white space; empty if the span is only white space."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def span_token_mask(spans: Tensor, offsets: Tensor) -> Tensor:
    """Mask of the tokens whose characters overlap each span.

    Overlap, not equality: WordPiece tokens lie inside words, a byte-level BPE offset may include the space before it,
    a SentencePiece token may cross the edge of a span. Special tokens and padding have the offsets (0, 0) and overlap
    nothing; neither does an empty span. Trim spans first (`trim_span`), or a space at the end may add the next token.

    Args:
        spans: (..., K, 2) int64 intervals of characters.
        offsets: (..., T, 2) int64 intervals of characters of the tokens.

    Returns:
        (..., K, T) bool.
    """
    span_start, span_end = spans[..., :, None, :].unbind(-1)
    token_start, token_end = offsets[..., None, :, :].unbind(-1)
    overlap = (token_start < span_end) & (token_end > span_start)
    return overlap & (token_start < token_end) & (span_start < span_end)


class Piece(NamedTuple):
    """An interval of a text that an edit keeps, replaces or deletes. An empty interval with a text is an insertion."""

    start: int
    end: int
    text: str | None = None  # None: kept as it is; "": deleted


class EditMap:
    """A text after an edit, and the place of every span of the original in it.

    The pieces cover the original without gaps or overlaps, in the order of the new text, so an edit may also move
    parts. Everything is counted in code points, and nothing is searched for.

    Args:
        text: the original.
        pieces: its parts, in the order of the new text.
    """

    def __init__(self, text: str, pieces: Iterable[Piece]) -> None:
        used = [piece for piece in pieces if piece.start != piece.end or piece.text]
        edges = sorted((start, end) for start, end, _ in used)
        assert [0, *(end for _, end in edges)] == [*(start for start, _ in edges), len(text)], "pieces overlap, or gaps"
        self.pieces = tuple(piece for piece in used if piece.text != "")
        self._changed = [(piece.start, piece.end) for piece in used if piece.text is not None]
        parts = [text[start:end] if new is None else new for start, end, new in self.pieces]
        self._places = list(accumulate(map(len, parts), initial=0))
        self.text = "".join(parts)

    @classmethod
    def replace(cls, text: str, replacements: Iterable[Piece]) -> "EditMap":
        """The map of replacements that do not overlap, in any order.

        Of several insertions at one place, the first stands first; one at the start of a replaced interval stands
        before it.
        """
        pieces, position = [], 0
        for piece in sorted(replacements, key=lambda piece: piece[:2]):
            pieces += [Piece(position, piece.start), piece]
            position = piece.end
        return cls(text, [*pieces, Piece(position, len(text))])

    def map_span(self, span: CharSpan) -> CharSpan | None:
        """The span in the new text; None where it is lost.

        A span stays if it is kept, or if all that was replaced in it lies within it: then it is read with the
        replacements. It is lost if a replacement crosses one of its edges, if nothing visible is left of it, or if its
        parts were torn apart. What is inserted at its edges stays outside.
        """
        if any(start < span[1] and span[0] < end and not _within((start, end), span) for start, end in self._changed):
            return None
        inside = [place for place, piece in enumerate(self.pieces) if _touches(piece, span)]
        pieces = [self.pieces[place][:2] for place in inside]
        if not inside or inside != list(range(inside[0], inside[-1] + 1)) or pieces != sorted(pieces):
            return None
        # Only a kept piece can reach beyond the span.
        start = self._places[inside[0]] + max(span[0] - pieces[0][0], 0)
        end = self._places[inside[-1] + 1] - max(pieces[-1][1] - span[1], 0)
        return (start, end) if self.text[start:end].strip() else None

    def map_spans(self, spans: Iterable[CharSpan]) -> list[CharSpan] | None:
        """All spans in the new text; None if one of them is lost."""
        mapped = [self.map_span(span) for span in spans]
        return None if None in mapped else [span for span in mapped if span is not None]


def _within(inner: CharSpan, outer: CharSpan) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _touches(piece: Piece, span: CharSpan) -> bool:
    """Whether a piece has a part of a span, or is an insertion within it."""
    if piece.start == piece.end:
        return span[0] < piece.start < span[1]
    return piece.start < span[1] and span[0] < piece.end
