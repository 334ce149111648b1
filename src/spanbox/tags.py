"""BIO tags of tokens: which tokens begin an entity of a type, lie inside of one, or outside of all.

Tag 0 is outside; type t has the tags 1 + 2t (begin) and 2 + 2t (inside). An entity is a run of tokens: one begin,
then any number of insides of its type.

    B sentences    K spans    T tokens    L tags, 1 + 2 * number of types
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.structures import PADDING_ID

OUTSIDE = 0


class TaggedSpan(NamedTuple):
    """A run of tokens, half-open, and the number of its type."""

    first: int
    end: int
    type: int


def tag_count(types: int) -> int:
    return 1 + 2 * types


def tag_tokens(span_tokens: Tensor, span_types: Tensor, tagged: Tensor) -> tuple[Tensor, Tensor]:
    """Tags of the tokens, from the spans.

    Tags cannot nest: of spans that share a token the longest is kept, of equally long ones the first.

    Args:
        span_tokens: (B, K, T) bool, tokens of each span.
        span_types: (B, K) int64, `PADDING_ID` where there is no span.
        tagged: (B, T) bool, tokens that have a tag.

    Returns:
        Tags (B, T) int64, `PADDING_ID` on the other tokens; and the spans (B, K) bool that have no tags, because a
        longer one has their tokens.
    """
    tags = torch.full(tagged.shape, PADDING_ID).masked_fill(tagged, OUTSIDE)
    left_out = torch.zeros(span_types.shape, dtype=torch.bool)
    lengths = span_tokens.sum(dim=2)
    for row in range(len(tags)):
        used = (span_types[row] != PADDING_ID).nonzero()[:, 0].tolist()
        for span in sorted(used, key=lambda span: -int(lengths[row, span])):
            tokens = (span_tokens[row, span] & tagged[row]).nonzero()[:, 0]
            if not len(tokens) or (tags[row, tokens] != OUTSIDE).any():
                left_out[row, span] = True
                continue
            begin = 1 + 2 * int(span_types[row, span])
            tags[row, tokens] = begin + 1
            tags[row, tokens[0]] = begin
    return tags, left_out


def tagged_spans(tags: Sequence[int]) -> list[TaggedSpan]:
    """The spans of a sequence of tags. An inside tag that does not continue a span of its type begins one."""
    spans: list[TaggedSpan] = []
    current: int | None = None  # type of the open span
    first = 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        kind = None if tag == OUTSIDE else (tag - 1) // 2
        begins = kind is not None and (tag % 2 == 1 or kind != current)
        if current is not None and (begins or kind is None):
            spans.append(TaggedSpan(first, place, current))
        if begins:
            first = place
        current = kind
    return spans


def may_start(types: int) -> Tensor:
    """(L,) bool: tags that the first token can have: all but inside tags."""
    tags = torch.arange(tag_count(types))
    return (tags == OUTSIDE) | (tags % 2 == 1)


def may_follow(types: int) -> Tensor:
    """(L, L) bool: whether the tag of a column can follow that of a row; an inside tag only follows its own type."""
    tags = torch.arange(tag_count(types))
    same_type = (tags[:, None] - 1) // 2 == (tags - 1) // 2
    return may_start(types) | (same_type & (tags[:, None] != OUTSIDE))
