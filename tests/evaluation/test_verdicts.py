"""Verdicts on pairs and links: planted faults are found, and data without faults is left alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from spanbox.evaluation.agreement import within_pair
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.mixture import choose, fit_mixture, p_values
from spanbox.evaluation.verdicts import judge, score_fold
from spanbox.structures import NAMED_ONLY, SHOWN

DIM, PER_PAIR = 24, 4


def make_bank(pairs: int, *, seed: int = 0, noise: float = 0.5) -> FeatureBank:
    """Each pair has four objects, each with a region and a span whose features are near each other."""
    generator = torch.Generator().manual_seed(seed)

    def near(points: torch.Tensor) -> torch.Tensor:
        return normalize(points + noise * torch.randn(points.shape, generator=generator) / DIM**0.5, dim=-1)

    things = normalize(torch.randn(pairs * PER_PAIR, DIM, generator=generator), dim=-1)
    scenes = normalize(things.reshape(pairs, PER_PAIR, DIM).sum(dim=1), dim=-1)
    number = torch.arange(pairs * PER_PAIR)
    low = (number % PER_PAIR)[:, None] * 0.25 * torch.tensor([1.0, 0.0])
    return FeatureBank(
        text=near(scenes),
        image=near(scenes),
        group=torch.arange(pairs),
        sample=torch.arange(pairs),
        place=torch.arange(pairs),
        wording=torch.arange(pairs),
        spans=near(things),
        span_pair=number // PER_PAIR,
        span_identity=number,
        span_entity=number % PER_PAIR,
        span_shown=torch.full((len(number),), SHOWN, dtype=torch.int8),
        regions=near(things),
        region_pair=number // PER_PAIR,
        region_box=torch.cat([low, low + torch.tensor([0.25, 1.0])], dim=1),
        links=torch.stack([number, number], dim=1),
    )


def with_swapped_images(bank: FeatureBank, pairs: list[int]) -> FeatureBank:
    """The images of some pairs, and the features of their regions, one on."""
    chosen, following = torch.tensor(pairs), torch.tensor(pairs).roll(-1)
    image, regions = bank.image.clone(), bank.regions.reshape(len(bank), PER_PAIR, DIM).clone()
    image[chosen], regions[chosen] = image[following], regions[following]
    return replace(bank, image=image, regions=regions.flatten(0, 1))


def with_moved_links(bank: FeatureBank, spans: list[int]) -> FeatureBank:
    links = bank.links.clone()
    links[spans, 1] = links[spans, 1] // PER_PAIR * PER_PAIR + (links[spans, 1] + 1) % PER_PAIR
    return replace(bank, links=links)


def without_boxes(bank: FeatureBank, spans: list[int]) -> FeatureBank:
    shown = bank.span_shown.clone()
    shown[spans] = NAMED_ONLY
    kept = ~torch.isin(bank.links[:, 0], torch.tensor(spans))
    return replace(bank, span_shown=shown, links=bank.links[kept])


@pytest.mark.slow
def test_good_data_is_left_alone() -> None:
    verdicts = judge([score_fold(make_bank(300, seed=seed), seed) for seed in range(2)])
    assert sum(pair.is_wrong for pair in verdicts.pairs) <= 6
    assert sum(link.is_wrong for link in verdicts.links) <= 24
    assert len(verdicts.pairs) == 600
    assert len(verdicts.links) == 2400


def test_swapped_images_are_found() -> None:
    swapped = list(range(0, 300, 10))
    verdicts = judge([score_fold(with_swapped_images(make_bank(300), swapped), 0)])
    found = {pair.place for pair in verdicts.pairs if pair.is_wrong}
    assert len(found & set(swapped)) >= 0.9 * len(swapped)
    assert len(found - set(swapped)) <= 3
    assert not found & {link.place for link in verdicts.links}  # their boxes are of another image
    assert abs(verdicts.wrong_pairs - 0.1) < 0.05


def with_captions(bank: FeatureBank, pairs: list[int]) -> FeatureBank:
    """Some pairs without spans and regions."""
    kept = (~torch.isin(bank.span_pair, torch.tensor(pairs))).nonzero()[:, 0]
    names = ("spans", "span_pair", "span_identity", "span_entity", "span_shown", "regions", "region_pair", "region_box")
    left = {name: getattr(bank, name)[kept] for name in names}
    return replace(bank, **left, links=torch.arange(len(kept)).repeat(2, 1).T)


def test_swapped_images_are_found_beside_captions_without_boxes() -> None:
    """Images without regions have no score of the fine level, and are no wrong ones to compare that with."""
    swapped = list(range(0, 300, 10))
    bank = with_captions(
        with_swapped_images(make_bank(300, noise=1.0), swapped), [i for i in range(300) if i % 10 in range(1, 8)]
    )
    verdicts = judge([score_fold(bank, 0)])
    found = {pair.place for pair in verdicts.pairs if pair.is_wrong}
    assert len(found & set(swapped)) >= 0.9 * len(swapped)
    assert len(found - set(swapped)) <= 3


def test_one_pair_with_boxes_among_captions_is_judged_by_the_coarse_level() -> None:
    bank = with_captions(make_bank(100), list(range(1, 100)))
    verdicts = judge([score_fold(bank, 0)])
    assert [pair.place for pair in verdicts.pairs] == list(range(100))
    assert not verdicts.pairs[0].is_wrong
    assert not verdicts.links  # no span and region of two groups


def test_pairs_of_one_group_are_not_judged() -> None:
    """No wrong pair can be made of them; without one to compare with, each would look wrong."""
    for number in (1, 5):
        bank = make_bank(number)
        verdicts = judge([score_fold(replace(bank, group=torch.zeros(number, dtype=torch.int64)), 0)])
        assert (verdicts.pairs, verdicts.links, verdicts.wrong_pairs, verdicts.wrong_links) == ([], [], None, None)


def test_features_that_mean_nothing_judge_no_box_and_no_pair() -> None:
    """As those of spans and regions of a model of the coarse level alone."""
    bank = make_bank(100)
    noise = torch.randn(bank.spans.shape, generator=torch.Generator().manual_seed(5))
    verdicts = judge([score_fold(replace(bank, spans=normalize(noise, dim=-1)), 0, fine=False)])
    assert not any(pair.is_wrong for pair in verdicts.pairs)
    assert (len(verdicts.pairs), verdicts.links) == (100, [])


def test_links_of_one_identity_are_not_judged() -> None:
    """No wrong link can be made of them: every region may show it."""
    bank = make_bank(20)
    verdicts = judge([score_fold(replace(bank, span_identity=torch.zeros_like(bank.span_identity)), 0)])
    assert len(verdicts.pairs) == 20
    assert (verdicts.links, verdicts.wrong_links) == ([], None)


def test_moved_links_are_found_with_the_right_box() -> None:
    moved = list(range(0, 1200, 5))
    verdicts = judge([score_fold(with_moved_links(make_bank(300), moved), 0)])
    wrong = {4 * link.place + link.entity: link for link in verdicts.links if link.is_wrong}
    assert len(wrong.keys() & set(moved)) >= 0.9 * len(moved)
    assert len(wrong.keys() - set(moved)) <= 0.02 * 1200
    right = [span for span in moved if span in wrong and wrong[span].has_better and wrong[span].proposed]
    assert sum(round(4 * wrong[span].proposed[0]) == span % 4 for span in right) >= 0.9 * len(moved)  # type: ignore[index]


def with_scenes(bank: FeatureBank) -> FeatureBank:
    """The same bank, with a part that all spans and regions of a pair share, of another strength in each pair."""
    generator = torch.Generator().manual_seed(3)
    strength = 3 * torch.rand(len(bank), 1, generator=generator)
    scene = (strength * normalize(torch.randn(len(bank), DIM, generator=generator), dim=-1))[bank.span_pair]
    return replace(bank, spans=normalize(bank.spans + scene, dim=-1), regions=normalize(bank.regions + scene, dim=-1))


@pytest.mark.parametrize("every", [5, 2])
def test_moved_links_are_found_where_scores_say_more_of_the_image_than_of_the_region(every: int) -> None:
    """As in a model that was trained on wrong boxes."""
    moved = list(range(0, 1200, every))
    verdicts = judge([score_fold(with_moved_links(with_scenes(make_bank(300)), moved), 0)])
    wrong = {4 * link.place + link.entity for link in verdicts.links if link.is_wrong}
    assert len(wrong & set(moved)) >= 0.95 * len(moved)
    assert len(wrong - set(moved)) <= 0.01 * 1200
    assert abs(verdicts.wrong_links - 1 / every) < 0.02


def with_one_region(bank: FeatureBank) -> FeatureBank:
    """Only the first span and the first region of each pair."""
    first = torch.arange(0, len(bank.spans), PER_PAIR)
    spans = {name: getattr(bank, name)[first] for name in ("spans", "span_pair", "span_identity", "span_entity")}
    regions = {name: getattr(bank, name)[first] for name in ("regions", "region_pair", "region_box")}
    links = torch.arange(len(first)).repeat(2, 1).T
    return replace(bank, **spans, **regions, span_shown=bank.span_shown[first], links=links)


def test_single_regions_are_compared_with_those_of_other_images() -> None:
    bank = with_one_region(make_bank(300))
    wrong = list(range(0, 300, 10))
    regions = bank.regions.clone()
    regions[wrong] = normalize(torch.randn(len(wrong), DIM, generator=torch.Generator().manual_seed(4)), dim=-1)
    links = judge([score_fold(replace(bank, regions=regions), 0)]).links
    found = {link.place for link in links if link.is_wrong}
    judged = {link.place for link in links}
    assert len(judged & set(wrong)) > 10  # of pairs that do not belong together no link is judged
    assert len(found & set(wrong)) >= 0.9 * len(judged & set(wrong))
    assert len(found - set(wrong)) <= 6


def test_scores_within_the_pair_are_those_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    pair, identity = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([7, 8, 7, 7, 5, 6])
    width = torch.tensor([3, 3, 3, 2, 1, 1])
    candidates = torch.arange(3) < width[:, None]
    scores = torch.randn(6, 3, generator=generator)
    found = within_pair(scores, candidates, pair, identity)
    overall = scores[candidates].double().mean()
    for span in range(6):
        own = pair == pair[span]
        cells = scores[own][candidates[own]].double()
        mean = (cells.sum() + 4 * overall) / (len(cells) + 4)
        for region in range(int(width[span])):
            others = scores[own & (identity != identity[span]), region].double()
            baseline = (others.sum() + mean) / (len(others) + 1)
            assert float(found[span, region]) == pytest.approx(float(scores[span, region] - baseline))


def test_entities_without_a_box_get_the_region_that_shows_them_if_one_does() -> None:
    stripped = list(range(0, 1200, 10))
    absent = list(range(5, 1200, 20))
    bank = without_boxes(make_bank(300), stripped + absent)
    spans = bank.spans.clone()
    spans[absent] = normalize(torch.randn(len(absent), DIM, generator=torch.Generator().manual_seed(9)), dim=-1)
    links = [link for link in judge([score_fold(replace(bank, spans=spans), 0)]).links if link.box is None]
    found = {4 * link.place + link.entity for link in links if link.has_better}
    assert len(found & set(stripped)) >= 0.85 * len(stripped)
    assert len(found & set(absent)) <= 0.15 * len(absent)


def test_without_spans_or_regions_the_pairs_are_judged_alone() -> None:
    bank = make_bank(50)
    nothing = torch.empty(0, dtype=torch.int64)
    bank = replace(
        bank,
        spans=bank.spans[:0], span_pair=nothing, span_identity=nothing, span_entity=nothing,
        span_shown=nothing.to(torch.int8), links=torch.empty(0, 2, dtype=torch.int64),
    )  # fmt: skip
    verdicts = judge([score_fold(bank, 0)])
    assert verdicts.links == []
    assert sum(pair.is_wrong for pair in verdicts.pairs) <= 2


def test_two_pairs_are_not_judged_wrong() -> None:
    assert not any(pair.is_wrong for pair in judge([score_fold(make_bank(2, noise=0.1), 0)]).pairs)


def test_p_values_count_the_wrong_ones_that_score_as_high() -> None:
    assert p_values(np.array([5.0, 2.0, 0.0]), np.array([1.0, 2.0, 3.0])).tolist() == [0.25, 0.75, 1.0]


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.4])
def test_the_share_of_wrong_items_is_found(wrong: float) -> None:
    generator = np.random.default_rng(0)
    count = round(wrong * 4000)
    p = np.r_[generator.uniform(size=count), generator.beta(0.2, 20, size=4000 - count)]
    mixture = fit_mixture(p)
    assert abs(mixture.wrong - wrong) < 0.03
    right = mixture.right(p)
    assert (np.diff(right[np.argsort(p)]) <= 1e-12).all()  # a larger p-value is never more probable
    assert abs((1 - right).mean() - wrong) < 0.04  # calibrated
    widths = np.diff(mixture.edges)
    assert (mixture.density * widths).sum() == pytest.approx(1)


def test_a_mixture_of_nothing_takes_all_for_right() -> None:
    assert fit_mixture(np.empty(0)).right(np.array([0.5])).tolist() == [1.0]


def test_a_choice_sums_to_one_and_follows_the_evidence() -> None:
    present, others = np.array([9.0, 0.0, 0.0] * 50), np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0]] * 50)
    candidates = np.array([[True, True], [True, True], [True, False]] * 50)
    choice = choose(present, others, candidates)
    total = choice.present + choice.others.sum(axis=1) + choice.nobody
    assert np.allclose(total, 1)
    assert [round(choice.present[0]), round(choice.others[1, 0]), round(choice.nobody[2])] == [1, 1, 1]
    assert choose(None, others, candidates).present.sum() == 0
