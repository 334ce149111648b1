"""Character spans to token masks, and through edits of their text.

Characters are Unicode code points, intervals are half-open, as in the manifest and in the offsets of fast tokenizers.
"""

from bisect import bisect_left, bisect_right
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
        parts = [text[start:end] if new is None else new for start, end, new in used]
        left = [bool(part) for part in parts]
        self.text = "".join(parts)
        self._places = list(accumulate(map(len, parts), initial=0))  # of the pieces in the new text
        self._rank = list(accumulate(left, initial=0))  # of a piece among those of which something is left
        self._pieces = used
        self._in_text = sorted(range(len(used)), key=lambda place: used[place][:2])
        self._starts = [used[place].start for place in self._in_text]
        self._ends = [used[place].end for place in self._in_text]
        assert [0, *self._ends] == [*self._starts, len(text)], "pieces overlap, or gaps"

    @classmethod
    def replace(cls, text: str, replacements: Iterable[Piece]) -> "EditMap":
        """The map that makes these replacements, given in any order, which must not overlap.

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
        touched = self._in_text[bisect_right(self._ends, span[0]) : bisect_left(self._starts, span[1])]
        pieces = [self._pieces[place] for place in touched]
        if any(piece.text is not None and not _within(piece, span) for piece in (*pieces[:1], *pieces[-1:])):
            return None
        left = [place for place, piece in zip(touched, pieces, strict=True) if piece.text != ""]
        ranks = [self._rank[place] for place in left]
        if not left or ranks != list(range(ranks[0], ranks[0] + len(ranks))):
            return None
        first, last = left[0], left[-1]
        # Only a kept piece can reach beyond the span.
        start = self._places[first] + max(span[0] - self._pieces[first].start, 0)
        end = self._places[last + 1] - max(self._pieces[last].end - span[1], 0)
        return (start, end) if self.text[start:end].strip() else None

    def map_spans(self, spans: Iterable[CharSpan]) -> list[CharSpan] | None:
        """All spans in the new text; None if one of them is lost."""
        mapped = [self.map_span(span) for span in spans]
        return None if None in mapped else [span for span in mapped if span is not None]


def merge_spans(spans: Iterable[CharSpan]) -> list[CharSpan]:
    """Sorted spans, of which those that overlap are joined."""
    merged: list[CharSpan] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _within(piece: Piece, span: CharSpan) -> bool:
    return span[0] <= piece.start and piece.end <= span[1]
