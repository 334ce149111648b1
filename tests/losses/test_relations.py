"""What is a positive and what is contrasted: tables worked out by hand, plain loops, and what must not matter."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import relation_reference
from batches import make_batch, random_batch, with_relevance
from spanbox.losses.relations import (
    sentence_image_relation,
    sentence_view_relation,
    span_region_relation,
    span_view_relation,
)
from spanbox.structures import PADDING_ID, Batch


def table(batch: Batch) -> list[str]:
    """A row for each span, a letter for each region: P positive, N negative, . neither; a space between pairs."""
    positives, candidates, _ = span_region_relation(batch)
    assert (candidates | ~positives).all(), "every positive is a candidate"
    letters = [
        "".join("P" if positive else "N" if candidate else "." for positive, candidate in zip(*row, strict=True))
        for row in zip(positives.tolist(), candidates.tolist(), strict=True)
    ]
    regions = batch.links.shape[2]
    return [" ".join(row[start : start + regions] for start in range(0, len(row), regions)) for row in letters]


def test_sentences_and_images_belong_together_by_group() -> None:
    positives, candidates, _ = sentence_image_relation(make_batch([[], [], []], [0, 0, 0], [], group=[7, 5, 7]))
    assert positives.int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert candidates.all()


@pytest.mark.parametrize("seed", range(10))
def test_sentences_and_images_equal_the_plain_loop(seed: int) -> None:
    batch = random_batch(seed, pairs=6)
    for mask, expected in zip(
        sentence_image_relation(batch)[:2], relation_reference.sentence_image_masks(batch), strict=True
    ):
        assert mask.tolist() == expected


def test_the_same_words_about_other_images_are_neither() -> None:
    """Pairs 0 and 1 are the same words about two images; pair 2 says the same as pair 3 about the same image."""
    batch = make_batch([[], [], [], []], [0] * 4, [], group=[1, 2, 3, 3])
    positives, candidates, _ = sentence_image_relation(replace(batch, wording=torch.tensor([7, 7, 8, 8])))
    assert positives.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert candidates.int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_the_same_words_everywhere_leave_nothing_to_contrast() -> None:
    batch = make_batch([[], [], []], [0] * 3, [])
    positives, candidates, _ = sentence_image_relation(replace(batch, wording=torch.zeros(3, dtype=torch.int64)))
    assert torch.equal(candidates, positives)


def test_three_pairs_worked_out_by_hand() -> None:
    """Pairs 0 and 1 show the same image, pair 2 another one; 1, 2 and 3 are identities."""
    batch = make_batch(
        identities=[[1, 2], [1, 3], [1]],
        regions=[2, 2, 1],
        links=[(0, 0, 0), (1, 1, 0), (1, 1, 1), (2, 0, 0)],
        group=[10, 10, 20],
    )
    assert table(batch) == [
        "PN .. P.",  # 1 with a box: its own region and that of pair 2, not contrasted with the other caption's regions
        "NN .. N.",  # 2 without a box: no anchor, but a negative for the regions of its own image and of pair 2
        ".. NN ..",  # 1 without a box: regions that show 1 are neither
        ".. PP N.",  # 3 with two boxes
        "PN NN P.",  # 1 in another image: regions of both captions
        ".. .. ..",  # padding
    ]


def test_own_links() -> None:
    batch = make_batch([[1, 2], [3]], [2, 2], [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
    assert table(batch) == ["NP NN", "PN NN", "NN PN", ".. .."]


def test_one_entity_with_three_boxes() -> None:
    assert table(make_batch([[1]], [4], [(0, 0, 0), (0, 0, 1), (0, 0, 3)])) == ["PPNP"]


def test_one_region_that_shows_two_entities() -> None:
    assert table(make_batch([[1, 2]], [2], [(0, 0, 0), (0, 1, 0)])) == ["PN", "PN"]


def test_one_entity_named_twice_in_a_sentence() -> None:
    """The second mention has a box of its own; each region shows what both name."""
    assert table(make_batch([[1, 1]], [2], [(0, 0, 0), (0, 1, 1)])) == ["PP", "PP"]


def test_a_mention_without_a_box_of_what_its_own_image_shows_is_neither() -> None:
    assert table(make_batch([[1, 1]], [2], [(0, 0, 0)])) == ["PN", ".N"]


def test_same_identity_across_pairs_is_positive_in_both_directions() -> None:
    assert table(make_batch([[1], [1]], [1, 1], [(0, 0, 0), (1, 0, 0)])) == ["P P", "P P"]


def test_same_identity_without_a_box_is_neither_positive_nor_negative() -> None:
    assert table(make_batch([[1], [1]], [1, 1], [(0, 0, 0)])) == ["P N", ". N"]


def test_a_span_without_a_box_is_a_negative_for_the_regions_of_its_own_image() -> None:
    batch = make_batch([[1, 2]], [1], [(0, 0, 0)])
    assert table(batch) == ["P", "N"]


def test_captions_of_one_image_are_not_contrasted() -> None:
    assert table(make_batch([[1], [2]], [2, 2], [(0, 0, 0), (1, 0, 0)], group=[5, 5])) == ["PN ..", ".. PN"]


def test_captions_of_one_image_share_their_positives_by_identity() -> None:
    assert table(make_batch([[1], [1]], [2, 2], [(0, 0, 0), (1, 0, 0)], group=[5, 5])) == ["PN P.", "P. PN"]


def test_a_proposal_is_a_negative_of_every_span_of_other_images() -> None:
    assert table(make_batch([[1], [2]], [2, 1], [(0, 0, 0), (1, 0, 0)])) == ["PN N.", "NN P."]


def test_padding_is_nothing_to_anyone() -> None:
    assert table(make_batch([[1, 2], []], [2, 0], [(0, 0, 0)])) == ["PN ..", "NN ..", ".. ..", ".. .."]


def test_links_of_padding_do_not_count() -> None:
    batch = make_batch([[1], [1]], [1, 1], [(0, 0, 0), (1, 0, 0)])
    assert table(replace(batch, span_identity=torch.tensor([[1], [PADDING_ID]]))) == ["P N", ". ."]
    assert table(replace(batch, region_valid=torch.tensor([[True], [False]]))) == ["P .", ". ."]


def with_boxes(batch: Batch, *boxes: list[list[float]]) -> Batch:
    """The batch with these boxes of each pair."""
    return replace(batch, regions=torch.tensor(boxes))


LEFT, MOST_OF_IT, HALF_OF_IT = [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.5, 0.75], [0.0, 0.0, 0.5, 0.5]
LESS_THAN_HALF, RIGHT = [0.0, 0.0, 0.5, 0.49], [0.5, 0.0, 1.0, 1.0]


def test_a_region_that_overlaps_a_box_of_the_span_is_not_contrasted() -> None:
    """From one half on; another box of the same thing, such as a detector's."""
    batch = make_batch([[1]], [5], [(0, 0, 0)])
    boxes = [LEFT, MOST_OF_IT, HALF_OF_IT, LESS_THAN_HALF, RIGHT]
    assert table(with_boxes(batch, boxes)) == ["P..NN"]


def test_an_overlap_counts_for_the_span_whose_box_it_is() -> None:
    """1 has the left box, 2 the right one; 3 has none and is contrasted with all. Any of several boxes counts."""
    batch = make_batch([[1, 2, 3]], [3], [(0, 0, 0), (0, 1, 2)])
    assert table(with_boxes(batch, [LEFT, MOST_OF_IT, RIGHT])) == ["P.N", "NNP", "NNN"]
    both = make_batch([[1]], [3], [(0, 0, 0), (0, 0, 2)])
    assert table(with_boxes(both, [LEFT, MOST_OF_IT, RIGHT])) == ["P.P"]


def test_an_overlap_means_nothing_across_images() -> None:
    batch = make_batch([[1], [2]], [1, 1], [(0, 0, 0), (1, 0, 0)])
    assert table(with_boxes(batch, [LEFT], [LEFT])) == ["P N", "N P"]


def test_an_overlap_with_padding_does_not_count() -> None:
    """Region 0 is linked, but padding: there is nothing that region 1 could overlap."""
    batch = with_boxes(make_batch([[1]], [3], [(0, 0, 0), (0, 0, 2)]), [LEFT, LEFT, RIGHT])
    assert table(replace(batch, region_valid=torch.tensor([[False, True, True]]))) == [".NP"]


def test_boxes_without_area_overlap_nothing() -> None:
    point = [0.3, 0.3, 0.3, 0.3]
    assert table(with_boxes(make_batch([[1]], [2], [(0, 0, 0)]), [point, point])) == ["PN"]


def test_an_anchor_all_of_whose_negatives_overlap_its_box_has_none_left() -> None:
    assert table(with_boxes(make_batch([[1]], [3], [(0, 0, 0)]), [LEFT, LEFT, MOST_OF_IT])) == ["P.."]


@pytest.mark.slow
@given(seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_equals_the_plain_loops(seed: int) -> None:
    batch = random_batch(seed)
    positives, candidates, _ = span_region_relation(batch)
    expected_positives, expected_candidates = relation_reference.span_region_masks(batch)
    assert positives.tolist() == expected_positives
    assert candidates.tolist() == expected_candidates


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), edges=st.tuples(*[st.integers(0, 5)] * 4))
@settings(max_examples=100, deadline=None)
def test_a_block_is_cut_from_the_whole(seed: int, edges: tuple[int, int, int, int]) -> None:
    batch = random_batch(seed)
    spans, regions = batch.links.shape[1:]
    rows, columns = slice(*sorted(edges[:2])), slice(*sorted(edges[2:]))
    span_rows = slice(rows.start * spans, rows.stop * spans)
    region_columns = slice(columns.start * regions, columns.stop * regions)
    for block, whole in zip(
        span_region_relation(batch, rows, columns)[:2], span_region_relation(batch)[:2], strict=True
    ):
        assert torch.equal(block, whole[span_rows, region_columns])
    for block, whole in zip(
        sentence_image_relation(batch, rows, columns)[:2], sentence_image_relation(batch)[:2], strict=True
    ):
        assert torch.equal(block, whole[rows, columns])


def test_a_block_beside_the_diagonal_knows_its_own_pairs() -> None:
    """Pairs 0 and 1 show the same image: a block with either as row and column contrasts, one with both does not."""
    batch = make_batch([[1], [2]], [2, 2], [(0, 0, 0), (1, 0, 0)], group=[5, 5])
    first, second = slice(0, 1), slice(1, 2)
    assert span_region_relation(batch, second, second)[1].tolist() == [[True, True]]
    assert span_region_relation(batch, second, first)[1].tolist() == [[False, False]]


@pytest.mark.parametrize("seed", range(10))
def test_order_of_pairs_does_not_matter(seed: int) -> None:
    batch = random_batch(seed, pairs=4, spans=2, regions=3)
    order = torch.randperm(4)
    shuffled = replace(batch, **{name: tensor[order] for name, tensor in batch.named_tensors()})

    def by_pair(mask: Tensor) -> Tensor:
        return mask.reshape(4, 2, 4, 3)

    for mask, other in zip(span_region_relation(batch)[:2], span_region_relation(shuffled)[:2], strict=True):
        assert torch.equal(by_pair(other), by_pair(mask)[order][:, :, order])


@pytest.mark.parametrize("seed", range(5))
def test_names_of_groups_and_identities_do_not_matter(seed: int) -> None:
    """Hashes of 63 bits, as they come: no arithmetic on ids."""
    batch = random_batch(seed, pairs=4, spans=3, regions=3)
    names = torch.tensor([2**63 - 1, 2**62, 5, 2**63 - 2])
    renamed = replace(
        batch,
        group=names[batch.group],
        span_identity=torch.where(batch.span_valid, names[batch.span_identity], PADDING_ID),
    )
    for mask, other in zip(span_region_relation(batch)[:2], span_region_relation(renamed)[:2], strict=True):
        assert torch.equal(mask, other)


@pytest.mark.parametrize(("spans", "regions"), [(0, 2), (2, 0), (0, 0)], ids=["no spans", "no regions", "neither"])
def test_without_spans_or_regions(spans: int, regions: int) -> None:
    for mask in span_region_relation(random_batch(0, pairs=3, spans=spans, regions=regions))[:2]:
        assert mask.shape == (3 * spans, 3 * regions)
        assert mask.dtype == torch.bool


def test_one_pair_without_anything_linked() -> None:
    assert table(make_batch([[1]], [1], [])) == ["N"]


# Weights


def without_zeros(
    positives: list[list[bool]], candidates: list[list[bool]], weights: list[list[float]]
) -> list[Tensor]:
    """Positives and candidates without positives of weight 0, and the weights of the positives that are left."""
    positive, candidate, weight = map(torch.tensor, (positives, candidates, weights))
    zero = positive & (weight == 0)
    return [positive & ~zero, candidate & ~zero, torch.where(positive & ~zero, weight, 0.0)]


@pytest.mark.parametrize("seed", range(30))
def test_weights_equal_the_plain_loops(seed: int) -> None:
    batch = with_relevance(random_batch(seed, pairs=5, spans=3, regions=2), seed)
    coarse = without_zeros(
        *relation_reference.sentence_image_masks(batch), relation_reference.sentence_image_weights(batch)
    )
    fine = without_zeros(*relation_reference.span_region_masks(batch), relation_reference.span_region_weights(batch))
    for relation, expected in ((sentence_image_relation(batch), coarse), (span_region_relation(batch), fine)):
        assert torch.equal(relation.positives, expected[0])
        assert torch.equal(relation.candidates, expected[1])
        assert torch.equal(torch.where(relation.positives, relation.weight, 0.0), expected[2])


@pytest.mark.parametrize("seed", range(10))
def test_a_block_of_weights_is_cut_from_the_whole(seed: int) -> None:
    batch = with_relevance(random_batch(seed, pairs=5, spans=3, regions=2, views=2), seed)
    rows, columns = slice(1, 4), slice(2, 5)
    views = {"keeping": True, "hiding": True}
    for block, whole, queries, keys in (
        (sentence_image_relation(batch, rows, columns), sentence_image_relation(batch), 1, 1),
        (sentence_view_relation(batch, rows, columns, **views), sentence_view_relation(batch, **views), 1, 3),
        (span_region_relation(batch, rows, columns), span_region_relation(batch), 3, 2),
        (span_view_relation(batch, rows, columns), span_view_relation(batch), 3, 4),
    ):
        for values, expected in zip(block, whole, strict=True):
            assert torch.equal(values, expected[queries : 4 * queries, 2 * keys : 5 * keys])


def test_weights_by_hand() -> None:
    """Two captions of one image; both pairs name 1, the second by a link of 0.5 and, weaker, by a second mention."""
    batch = make_batch([[1], [1, 1]], [1, 1], [(0, 0, 0), (1, 0, 0), (1, 1, 0)], group=[5, 5])
    links = torch.tensor([[[0.75], [0.0]], [[0.5], [0.25]]])
    batch = replace(batch, relevance=torch.tensor([1.0, 0.5]), link_relevance=links)
    assert sentence_image_relation(batch).weight.tolist() == [[1.0, 0.5], [0.5, 0.5]]
    assert span_region_relation(batch).weight[[0, 2, 3]].tolist() == [[0.75, 0.5], [0.75, 0.5], [0.75, 0.25]]


def test_a_positive_of_weight_zero_is_neither() -> None:
    batch = make_batch([[1], [2]], [1, 1], [(0, 0, 0), (1, 0, 0)])
    batch = replace(batch, link_relevance=torch.tensor([[[0.0]], [[0.5]]]), relevance=torch.tensor([0.0, 1.0]))
    assert table(batch) == [". N", "N P"]
    assert sentence_image_relation(batch).candidates.tolist() == [[False, True], [True, True]]
