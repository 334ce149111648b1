"""The approximate search finds what the exact one does where it meets everything, and most of it where it does not."""

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import metric_reference
from banks import make_bank, random_bank
from spanbox.errors import ConfigError
from spanbox.evaluation.approximate import FLAT_BELOW, import_faiss, nearest_wrong_approximately
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.mining import (
    KINDS,
    Kind,
    Nearest,
    Search,
    make_search,
    mine_neighbours,
    nearest_wrong,
)

faiss = pytest.importorskip("faiss", reason='pip install "spanbox[faiss]"')

KIND_NAMES = KINDS["both"]
EVERYTHING = 10**6  # cells


def in_order(bank: FeatureBank, kind: Kind) -> tuple[Search, tuple[Tensor, Tensor]]:
    """A search as `mine_neighbours` makes it of this bank."""
    asked: list[tuple[Search, tuple[Tensor, Tensor]]] = []

    def remember(search: Search, pair_ids: tuple[Tensor, Tensor], **arguments: object) -> Nearest:
        asked.append((search, pair_ids))
        return Nearest(torch.full((len(bank), 1), -1), torch.full((len(bank), 1), -torch.inf))

    mine_neighbours(bank, count=1, by=kind, find=remember)
    return asked[0]


def assert_as_exact(
    bank: FeatureBank, kind: Kind, *, count: int, margin: float | None = None, flat_below: int = FLAT_BELOW
) -> None:
    """Equally near pairs may stand in any order, so each one is compared by its similarity."""
    search, pair_ids = in_order(bank, kind)
    exact = nearest_wrong(search, pair_ids, count=count, margin=margin)
    found = nearest_wrong_approximately(
        search, pair_ids, count=count, margin=margin, probes=EVERYTHING, flat_below=flat_below
    )
    assert torch.equal(found.scores, exact.scores)
    assert torch.equal(found.pairs < 0, exact.pairs < 0)
    wrong_pairs = metric_reference.wrong_pairs(bank, kind, margin)
    for pairs, scores, wrong in zip(found.pairs.tolist(), found.scores.tolist(), wrong_pairs, strict=True):
        there = [pair for pair in pairs if pair >= 0]
        assert len(set(there)) == len(there)
        assert [wrong[pair] for pair in there] == scores[: len(there)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3, 30])
def test_meeting_all_keys_equals_the_exact_search(seed: int, kind: Kind, count: int) -> None:
    assert_as_exact(random_bank(seed, pairs=11), kind, count=count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("margin", [None, 0.5, 1.0])
def test_meeting_all_cells_equals_the_exact_search(kind: Kind, margin: float | None) -> None:
    assert_as_exact(random_bank(5, pairs=120), kind, count=4, margin=margin, flat_below=0)


@pytest.mark.slow
def test_most_of_the_nearest_are_found_by_default() -> None:
    """Sentences and images of 400 topics, apart from each other as the features of two towers are."""
    generator = torch.Generator().manual_seed(0)
    pairs, width, count = FLAT_BELOW + 2_000, 16, 10

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    meant = noise(400, width)[torch.randint(400, (pairs,), generator=generator)] + 0.5 * noise(pairs, width)
    text, image = (torch.nn.functional.normalize(meant + 0.3 * noise(pairs, width) + noise(width), dim=1) for _ in "ab")
    search, pair_ids = in_order(make_bank(text=text, image=image), "sentences")
    exact = nearest_wrong(search, pair_ids, count=count)
    found = nearest_wrong_approximately(search, pair_ids, count=count)
    common = (found.pairs[:, :, None] == exact.pairs[:, None]).sum()
    assert common / exact.pairs.numel() > 0.9
    assert not torch.equal(found.pairs.sort(dim=1).values, exact.pairs.sort(dim=1).values), "not all cells are met"


class TestRepeated:
    @pytest.fixture
    def threads(self) -> Iterator[None]:
        before = faiss.omp_get_max_threads()
        yield
        faiss.omp_set_num_threads(before)

    def test_threads_and_chance_change_nothing(self, threads: None) -> None:
        features = torch.randn(2, 900, 24, generator=torch.Generator().manual_seed(1))
        search, pair_ids = in_order(make_bank(text=features[0], image=features[1]), "images")
        found = []
        for seed, number in enumerate((1, 1, 3)):
            torch.manual_seed(seed)
            faiss.omp_set_num_threads(number)
            found.append(nearest_wrong_approximately(search, pair_ids, count=5, probes=3, flat_below=0))
        for again in found[1:]:
            assert torch.equal(found[0].pairs, again.pairs)
            assert torch.equal(found[0].scores, again.scores)

    def test_progress_ends_with_all_pairs(self) -> None:
        reported: list[int] = []
        search, pair_ids = in_order(random_bank(0, pairs=9), "spans")
        nearest_wrong_approximately(search, pair_ids, count=2, on_searched=reported.append)
        assert reported == sorted(reported)
        assert reported[-1] == 9


class TestFalseNegatives:
    def test_a_query_that_meets_nothing_else_looks_further(self) -> None:
        """300 pairs show 加菲猫, and three show what is far from it."""
        pairs = 303
        features = torch.tensor([[1.0, 0.0]] * 300 + [[0.6, 0.8]] * 3)
        bank = make_bank(
            pairs=pairs,
            spans=features,
            span_pair=tuple(range(pairs)),
            span_identity=(0,) * 300 + (1, 2, 3),
            regions=features,
            region_pair=tuple(range(pairs)),
            links=tuple((pair, pair) for pair in range(pairs)),
        )
        for kind in ("spans", "regions"):
            search, pair_ids = in_order(bank, kind)
            found = nearest_wrong_approximately(search, pair_ids, count=3)
            assert found.pairs[:300].sort(dim=1).values.tolist() == [[300, 301, 302]] * 300

    def test_several_features_of_a_pair_count_once(self) -> None:
        bank = make_bank(
            pairs=3,
            spans=torch.eye(3),
            span_pair=(0, 1, 2),
            span_identity=(1, 2, 3),
            regions=torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.8, 0.0, 0.0], [0.2, 0.0, 1.0]]),
            region_pair=(0, 1, 1, 2),
            links=((0, 0),),
        )
        found = nearest_wrong_approximately(*in_order(bank, "spans"), count=3)
        assert found.pairs.tolist() == [[1, 2, -1], [-1, -1, -1], [-1, -1, -1]]
        assert found.scores[0].tolist() == pytest.approx([0.9, 0.2, -torch.inf])

    def test_an_entity_that_is_shown_with_others(self) -> None:
        """The region of pair 1 shows both entities of pair 0, and that of pair 2 only another."""
        bank = make_bank(
            pairs=3,
            spans=torch.ones(5, 2),
            span_pair=(0, 0, 1, 1, 2),
            span_identity=(7, 8, 8, 7, 9),
            regions=torch.ones(3, 2),
            region_pair=(0, 1, 2),
            links=((0, 0), (1, 0), (2, 1), (3, 1), (4, 2)),
        )
        for kind in ("spans", "regions"):
            found = nearest_wrong_approximately(*in_order(bank, kind), count=2)
            assert found.pairs[:2].tolist() == [[2, -1], [2, -1]]
            assert found.pairs[2].sort().values.tolist() == [0, 1]


class TestDegenerate:
    @pytest.mark.parametrize("kind", KIND_NAMES)
    def test_one_pair(self, kind: Kind) -> None:
        assert_as_exact(make_bank(), kind, count=3)

    @pytest.mark.parametrize("kind", KIND_NAMES)
    def test_no_spans_and_no_regions(self, kind: Kind) -> None:
        assert_as_exact(make_bank(pairs=4), kind, count=2)

    @pytest.mark.parametrize("kind", ["spans", "regions"])
    def test_spans_without_regions(self, kind: Kind) -> None:
        bank = make_bank(pairs=2, spans=torch.ones(2, 2), span_pair=(0, 1), span_identity=(1, 2))
        assert_as_exact(bank, kind, count=2)

    @pytest.mark.slow
    def test_one_image_for_all(self) -> None:
        assert_as_exact(make_bank(pairs=100, group=[5] * 100), "images", count=2, flat_below=0)

    @pytest.mark.slow
    def test_features_that_have_collapsed(self) -> None:
        assert_as_exact(make_bank(text=torch.ones(200, 4)), "sentences", count=2, flat_below=0)

    @pytest.mark.parametrize("kind", KIND_NAMES)
    @pytest.mark.parametrize("flat_below", [0, FLAT_BELOW])
    def test_features_that_are_no_numbers_are_nobodys_neighbours(self, kind: Kind, flat_below: int) -> None:
        """The other spans and regions of their pairs still are."""
        bank = random_bank(2, pairs=120)
        for features in (bank.text, bank.image, bank.spans, bank.regions):
            features[::7] = torch.nan
        search, pair_ids = in_order(bank, kind)
        exact = nearest_wrong(search, pair_ids, count=9)
        found = nearest_wrong_approximately(search, pair_ids, count=9, probes=EVERYTHING, flat_below=flat_below)
        assert torch.equal(found.scores, exact.scores)

    def test_only_features_that_are_no_numbers(self) -> None:
        assert_as_exact(make_bank(text=torch.full((3, 2), torch.nan)), "images", count=2)


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r'needs faiss.*pip install "spanbox\[faiss\]"'):
        import_faiss()
    bank = make_bank(pairs=2)
    with pytest.raises(ConfigError, match="needs faiss"):
        nearest_wrong_approximately(make_search(bank, "images"), (bank.group,), count=1)
