"""Mining finds the nearest wrong pairs exactly, whatever the tiles, and leaves out what may be right."""

import math
from functools import partial

import pytest
import torch

import metric_reference
from banks import make_bank, random_bank
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.mining import KINDS, Kind, interleave, make_search, mine_neighbours, nearest_wrong
from spanbox.structures import stable_id

KIND_NAMES: tuple[Kind, ...] = ("sentences", "images", "spans", "regions")


def assert_as_in_the_loop(
    bank: FeatureBank, kind: Kind, *, count: int, margin: float | None = None, tile_elements: int = 2**22
) -> None:
    """Equally near pairs may stand in any order, so each one is compared by its similarity."""
    mined = mine_neighbours(
        bank, count=count, by=kind, margin=margin, find=partial(nearest_wrong, tile_elements=tile_elements)
    )
    assert mined.neighbours.shape == (len(bank), count)
    found_scores = []
    for row, wrong in zip(mined.neighbours.tolist(), metric_reference.wrong_pairs(bank, kind, margin), strict=True):
        found = row[: row.index(-1)] if -1 in row else row
        assert set(row[len(found) :]) <= {-1}, "what there is stands first"
        assert len(set(found)) == len(found)
        scores = [wrong[pair] for pair in found]
        assert scores == sorted(wrong.values(), reverse=True)[:count]
        found_scores += scores
    assert (kind in mined.similarity) == bool(found_scores)
    if found_scores:
        mean = math.fsum(found_scores) / len(found_scores)
        assert mined.similarity[kind].negative == pytest.approx(mean, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3, 30])
def test_equals_the_loop(seed: int, kind: Kind, count: int) -> None:
    assert_as_in_the_loop(random_bank(seed, pairs=11), kind, count=count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("tile_elements", [1, 30, 100, 500])
def test_tiles_of_any_size_find_the_same(kind: Kind, tile_elements: int) -> None:
    assert_as_in_the_loop(random_bank(7, pairs=23), kind, count=5, tile_elements=tile_elements)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("margin", [0.5, 1.0])
def test_a_margin_equals_the_loop(kind: Kind, margin: float) -> None:
    assert_as_in_the_loop(random_bank(9, pairs=13), kind, count=4, margin=margin, tile_elements=60)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_mean_positive_is_that_of_the_queries_and_their_best(kind: Kind) -> None:
    bank = random_bank(3, pairs=12)
    search = make_search(bank, kind)
    linked = bank.links.tolist()
    best: dict[int, float] = {}
    for pair in range(len(bank)) if kind in ("sentences", "images") else []:
        best[pair] = metric_reference.dot(bank.text[pair], bank.image[pair])
    for span, region in linked if kind in ("spans", "regions") else []:
        asks = span if kind == "spans" else region
        best[asks] = max(best.get(asks, -math.inf), metric_reference.dot(bank.spans[span], bank.regions[region]))
    assert search.positive.tolist() == [best[asks] for asks in sorted(best)]


class TestWhatMayBeRight:
    """Features are all the same, so that only what is left out makes a difference."""

    def test_the_same_image_and_the_same_sentence(self) -> None:
        texts = ["红伞在雨中", "a red umbrella", "红伞在雨中", "雨中的街道", "a street in the rain"]
        bank = make_bank(text=torch.ones(5, 2), group=[0, 1, 2, 1, 4], wording=[stable_id(text) for text in texts])
        for by in ("sentences", "images"):
            neighbours = mine_neighbours(bank, count=5, by=by).neighbours.tolist()
            assert [set(row) - {-1} for row in neighbours] == [{1, 3, 4}, {0, 2, 4}, {1, 3, 4}, {0, 2, 4}, {0, 1, 2, 3}]

    def test_a_region_that_shows_what_the_span_names(self) -> None:
        """Pairs 0 and 1 show 加菲猫, pair 2 Odie: 0 and 1 are no fine negatives of each other."""
        cat, dog = stable_id("加菲猫"), stable_id("odie")
        bank = make_bank(
            pairs=3,
            spans=torch.ones(3, 3),
            span_pair=(0, 1, 2),
            span_identity=(cat, cat, dog),
            regions=torch.ones(3, 3),
            region_pair=(0, 1, 2),
            links=((0, 0), (1, 1), (2, 2)),
        )
        for by in ("spans", "regions"):
            neighbours = mine_neighbours(bank, count=2, by=by).neighbours.tolist()
            assert neighbours[:2] == [[2, -1], [2, -1]]
            assert sorted(neighbours[2]) == [0, 1]

    def test_another_region_of_a_pair_that_shows_it_still_counts(self) -> None:
        bank = make_bank(
            pairs=2,
            spans=torch.ones(2, 2),
            span_pair=(0, 1),
            span_identity=(5, 5),
            regions=torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.25, 0.25]]),
            region_pair=(0, 1, 1),
            links=((0, 0), (1, 1)),
        )
        mined = mine_neighbours(bank, count=1, by="spans")
        assert mined.neighbours.tolist() == [[1], [-1]]
        assert mined.similarity["spans"] == (2.0, 0.5)

    def test_a_margin_leaves_out_what_is_too_near(self) -> None:
        text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        image = torch.tensor([[1.0, 0.0], [0.96, 1.0], [0.9, 1.0]])
        bank = make_bank(text=text, image=image)
        assert mine_neighbours(bank, count=2, by="sentences").neighbours[0].tolist() == [1, 2]
        assert mine_neighbours(bank, count=2, by="sentences", margin=0.95).neighbours[0].tolist() == [2, -1]

    def test_a_margin_leaves_out_nothing_where_the_positive_is_not_similar(self) -> None:
        """Of an untrained model; what it finds similar would be skipped, and what is left is easy."""
        text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        image = torch.tensor([[-0.5, 1.0], [0.9, 1.0], [-0.9, 1.0]])
        bank = make_bank(text=text, image=image)
        assert mine_neighbours(bank, count=2, by="sentences", margin=0.95).neighbours[0].tolist() == [1, 2]


class TestSeveralKinds:
    def test_interleave(self) -> None:
        first = torch.tensor([[4, 2, -1], [-1, -1, -1], [7, 8, 9]])
        second = torch.tensor([[2, 5, 6], [3, -1, -1], [7, 8, 9]])
        assert interleave([first, second]).tolist() == [[4, 2, 5], [3, -1, -1], [7, 8, 9]]

    def test_of_one_kind_are_as_they_were(self) -> None:
        found = torch.tensor([[4, 2, -1], [-1, -1, -1]])
        assert torch.equal(interleave([found]), found)

    def test_both_levels_are_the_turns_of_the_four(self) -> None:
        bank = random_bank(1, pairs=15)
        parts = [mine_neighbours(bank, count=4, by=kind).neighbours for kind in KIND_NAMES]
        both = mine_neighbours(bank, count=4, by="both")
        assert torch.equal(both.neighbours, interleave(parts))
        assert tuple(both.similarity) == KINDS["both"] == KIND_NAMES

    def test_progress_ends_with_all_pairs_of_all_kinds(self) -> None:
        reported: list[int] = []
        mine_neighbours(
            random_bank(0, pairs=9), count=2, find=partial(nearest_wrong, tile_elements=16), on_searched=reported.append
        )
        assert reported == sorted(reported)
        assert reported[-1] == 4 * 9


class TestDegenerate:
    def test_one_pair_has_no_neighbours(self) -> None:
        mined = mine_neighbours(make_bank(), count=3)
        assert mined.neighbours.tolist() == [[-1, -1, -1]]
        assert mined.similarity == {}
        assert mined.short == 1.0

    def test_without_spans_and_boxes_the_coarse_level_is_left(self) -> None:
        bank = make_bank(pairs=4)
        mined = mine_neighbours(bank, count=2)
        assert tuple(mined.similarity) == KINDS["coarse"]
        assert mined.short == 0.0
        assert (mine_neighbours(bank, count=2, by="fine").neighbours == -1).all()

    def test_spans_without_links_ask_nothing(self) -> None:
        bank = make_bank(
            pairs=2,
            spans=torch.ones(2, 2),
            span_pair=(0, 1),
            span_identity=(1, 2),
            regions=torch.ones(1, 2),
            region_pair=(1,),
        )
        assert mine_neighbours(bank, count=2, by="fine").similarity == {}

    def test_one_image_for_all(self) -> None:
        assert (mine_neighbours(make_bank(pairs=3, group=[5, 5, 5]), count=2).neighbours == -1).all()

    def test_features_that_are_no_numbers_are_nobodys_neighbours(self) -> None:
        text = torch.eye(3)
        image = torch.eye(3)
        image[1] = torch.nan
        mined = mine_neighbours(make_bank(text=text, image=image), count=2, by="sentences")
        assert mined.neighbours[0].tolist() == [2, -1]

    def test_a_region_that_is_no_numbers_does_not_hide_the_others_of_its_pair(self) -> None:
        bank = make_bank(
            pairs=2,
            spans=torch.ones(1, 2),
            span_pair=(0,),
            span_identity=(5,),
            regions=torch.tensor([[1.0, 1.0], [torch.nan, 1.0], [0.5, 0.0]]),
            region_pair=(0, 1, 1),
            links=((0, 0),),
        )
        mined = mine_neighbours(bank, count=1, by="spans")
        assert mined.neighbours.tolist() == [[1], [-1]]
        assert mined.similarity["spans"] == (2.0, 0.5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and `-m cuda`")
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_gpu_finds_the_same(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    text, image = torch.randn(2, 300, 16, generator=generator)
    bank = make_bank(
        text=text,
        image=image,
        spans=image,
        span_pair=tuple(range(300)),
        span_identity=tuple(i % 50 for i in range(300)),
        regions=text,
        region_pair=tuple(range(300)),
        links=tuple((i, i) for i in range(300)),
    )
    on_gpu = mine_neighbours(bank, count=9, by=kind, device="cuda", find=partial(nearest_wrong, tile_elements=5000))
    assert torch.equal(on_gpu.neighbours, mine_neighbours(bank, count=9, by=kind).neighbours)
