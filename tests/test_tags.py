"""BIO tags: from spans to tags and back, and which tag may follow which."""

import itertools

import pytest
import torch

from spanbox.structures import PADDING_ID
from spanbox.tags import TaggedSpan, may_follow, may_start, tag_tokens, tagged_spans

N = PADDING_ID


def tokens_of(*spans: tuple[int, int], length: int = 6) -> torch.Tensor:
    place = torch.arange(length)
    return torch.stack([(place >= start) & (place < end) for start, end in spans])[None]


def test_the_tags_of_two_entities_between_special_tokens() -> None:
    tagged = torch.tensor([[False, True, True, True, True, False]])
    tags, left_out = tag_tokens(tokens_of((1, 3), (4, 5)), torch.tensor([[1, 0]]), tagged)
    assert tags.tolist() == [[N, 3, 4, 0, 1, N]]
    assert not left_out.any()


def test_of_nested_spans_the_longest_is_kept() -> None:
    tagged = torch.ones(1, 6, dtype=torch.bool)
    tags, left_out = tag_tokens(tokens_of((1, 2), (0, 4), (4, 5)), torch.tensor([[0, 1, 0]]), tagged)
    assert tags.tolist() == [[3, 4, 4, 4, 1, 0]]
    assert left_out.tolist() == [[True, False, False]]


def test_equal_spans_the_first_is_kept() -> None:
    tagged = torch.ones(1, 6, dtype=torch.bool)
    tags, left_out = tag_tokens(tokens_of((2, 4), (2, 4)), torch.tensor([[1, 0]]), tagged)
    assert tags.tolist() == [[0, 0, 3, 4, 0, 0]]
    assert left_out.tolist() == [[False, True]]


def test_without_spans_and_without_tokens() -> None:
    tags, _ = tag_tokens(torch.zeros(2, 0, 3, dtype=torch.bool), torch.zeros(2, 0).long(), torch.ones(2, 3).bool())
    assert tags.tolist() == [[0, 0, 0]] * 2
    tags, left_out = tag_tokens(tokens_of((1, 3)), torch.tensor([[0]]), torch.zeros(1, 6).bool())
    assert (tags == N).all()
    assert left_out.all()


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 2, 0, 3], [(0, 2, 0), (3, 4, 1)]),
        ([1, 1], [(0, 1, 0), (1, 2, 0)]),  # two entities side by side
        ([1, 4, 4], [(0, 1, 0), (1, 3, 1)]),  # an inside of another type begins a span
        ([2, 2, 1], [(0, 2, 0), (2, 3, 0)]),
    ],
)
def test_the_spans_of_tags(tags: list[int], spans: list[tuple[int, int, int]]) -> None:
    assert tagged_spans(tags) == [TaggedSpan(*span) for span in spans]


def test_every_allowed_sequence_survives_the_way_back() -> None:
    """All sequences of four tags of two types that the rules allow."""
    start, follow = may_start(2), may_follow(2)
    allowed = [
        tags
        for tags in itertools.product(range(5), repeat=4)
        if start[tags[0]] and all(follow[a, b] for a, b in itertools.pairwise(tags))
    ]
    assert 0 < len(allowed) < 5**4
    for tags in allowed:
        spans = tagged_spans(tags)
        rows = tokens_of(*((span.first, span.end) for span in spans), length=4) if spans else torch.zeros(1, 0, 4)
        types = torch.tensor([[span.type for span in spans]], dtype=torch.int64)
        again, left_out = tag_tokens(rows.bool(), types, torch.ones(1, 4).bool())
        assert again[0].tolist() == list(tags)
        assert not left_out.any()
