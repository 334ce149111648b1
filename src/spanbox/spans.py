"""Character spans to token masks.

Characters are Unicode code points, intervals are half-open, as in the manifest and in the offsets of fast tokenizers.
"""

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
