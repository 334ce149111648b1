"""Policies of cleaning: what becomes of wrong pairs, wrong boxes and entities without a box."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pairs import entity, save_manifest
from spanbox.data.cleaning import (
    Judged,
    JudgedLink,
    JudgedPair,
    Policies,
    cleaned_records,
    cleaning_page,
    verdict_lines,
)
from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record

TEXT = "a red cat and a dog"
ONE, TWO, THREE = (0.0, 0.0, 10.0, 10.0), (10.0, 0.0, 20.0, 10.0), (30.0, 10.0, 40.0, 20.0)


def relative(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return box[0] / 40, box[1] / 20, box[2] / 40, box[3] / 20


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    boxes = (entity(TEXT, "red cat", ONE, TWO), entity(TEXT, "dog"))
    records = [Record(str(i), f"{i}.png", TEXT, entities=boxes, objects=(ObjectBox(THREE),)) for i in range(3)]
    return save_manifest(tmp_path, records)


def judged(*links: JudgedLink, right: float = 0.9) -> Judged:
    """The first pair has links, the second is wrong, the third was not judged."""
    return Judged.of([JudgedPair(0, right), JudgedPair(1, 0.2)], links)


def link(box: Any, right: float, proposed: Any = None, proposed_right: float = 0.0, number: int = 0) -> JudgedLink:
    found = relative(proposed) if proposed else None
    return JudgedLink(0, number, relative(box) if box else None, right, found, proposed_right)


def first(manifest: Manifest, links: Judged, policy: Any, counts: Counter[str] | None = None) -> tuple[Entity, ...]:
    policies = Policies(pairs="keep", links=policy)
    return next(cleaned_records(manifest, links, policies, Counter() if counts is None else counts)).entities


def test_wrong_pairs_are_dropped_weighted_or_kept(manifest: Manifest) -> None:
    ids: dict[str, list[tuple[str, float]]] = {}
    for policy in ("drop", "weight", "keep"):
        policies = Policies(pairs=policy, links="keep")
        ids[policy] = [(r.id, r.relevance) for r in cleaned_records(manifest, judged(), policies, Counter())]
    assert ids["drop"] == [("0", 1), ("2", 1)]
    assert ids["weight"] == [("0", 0.9), ("1", 0.2), ("2", 1)]
    assert ids["keep"] == [("0", 1), ("1", 1), ("2", 1)]


WRONG = judged(link(ONE, 0.1, THREE, 0.8), link(TWO, 0.95, THREE, 0.01))


def test_a_wrong_box_is_replaced_by_the_one_that_fits(manifest: Manifest) -> None:
    counts: Counter[str] = Counter()
    cat, dog = first(manifest, WRONG, "relink", counts)
    assert (cat.boxes, cat.relevance) == ((THREE, TWO), (0.8, 1.0))
    assert dog == manifest[0].entities[1]
    assert counts == {"boxes replaced": 1}


def test_a_wrong_box_is_dropped_or_weighted(manifest: Manifest) -> None:
    assert first(manifest, WRONG, "drop")[0].boxes == (TWO,)
    cat = first(manifest, WRONG, "weight")[0]
    assert (cat.boxes, cat.relevance) == ((ONE, TWO), (0.1, 0.95))
    assert first(manifest, WRONG, "keep") == manifest[0].entities


def test_without_a_box_that_fits_a_wrong_one_is_dropped(manifest: Manifest) -> None:
    cat = first(manifest, judged(link(ONE, 0.1, THREE, 0.3), link(TWO, 0.2)), "relink")[0]
    assert (cat.boxes, cat.ambiguous) == ((), True)  # unknown whether the image shows it, not known to be absent


def test_an_entity_without_a_box_gets_the_region_that_shows_it(manifest: Manifest) -> None:
    found = judged(link(None, 0.0, THREE, 0.75, number=1))
    assert [(e.boxes, e.relevance) for e in first(manifest, found, "relink")] == [((ONE, TWO), ()), ((THREE,), (0.75,))]
    for policy in ("drop", "weight"):
        assert first(manifest, found, policy) == manifest[0].entities
    assert first(manifest, judged(link(None, 0.0, THREE, 0.4, number=1)), "relink") == manifest[0].entities


@pytest.mark.parametrize("policy", ["drop", "relink"])
def test_an_ambiguous_entity_with_one_box_left_or_found_is_so_no_longer(tmp_path: Path, policy: str) -> None:
    cat, dog = Entity(0, 3, boxes=(ONE, TWO), ambiguous=True), Entity(8, 11, ambiguous=True)
    record = Record("0", "0.png", "cat and dog", entities=(cat, dog), objects=(ObjectBox(THREE),))
    manifest = save_manifest(tmp_path, [record])
    verdicts = judged(link(ONE, 0.1), link(TWO, 0.95), link(None, 0.0, THREE, 0.75, number=1))
    cat, dog = first(manifest, verdicts, policy)
    assert (cat.boxes, cat.ambiguous) == ((TWO,), False)
    assert (dog.boxes, dog.ambiguous) == (((THREE,), False) if policy == "relink" else ((), True))
    cat, _ = first(manifest, judged(link(ONE, 0.9), link(TWO, 0.95)), policy)
    assert (cat.boxes, cat.ambiguous) == ((ONE, TWO), True)


def test_of_two_boxes_that_differ_by_little_the_judged_one_is_meant(tmp_path: Path) -> None:
    """Two annotators drew one object for two phrases; the box of the second phrase is wrong."""
    near = (ONE[0] + 0.3, *ONE[1:])
    records = [Record("0", "0.png", TEXT, entities=(entity(TEXT, "red cat", ONE), entity(TEXT, "dog", near)))]
    found = first(save_manifest(tmp_path, records), judged(link(near, 0.1, number=1)), "drop")
    assert [e.boxes for e in found] == [(ONE,), ()]


def test_a_box_that_leaves_the_image_has_the_verdict_of_its_region(tmp_path: Path) -> None:
    """Clipped, it is the box of another phrase too."""
    beyond = (-5.0, *ONE[1:])
    entities = (entity(TEXT, "red cat", beyond), entity(TEXT, "dog", ONE, (-9.0, *ONE[1:])))
    manifest = save_manifest(tmp_path, [Record("0", "0.png", TEXT, entities=entities)])
    for number, boxes in enumerate([[(), entities[1].boxes], [(beyond,), ()]]):
        assert [e.boxes for e in first(manifest, judged(link(ONE, 0.1, number=number)), "drop")] == boxes


def test_a_region_that_is_no_box_of_the_record_is_in_pixels(manifest: Manifest) -> None:
    found = judged(link(None, 0.0, (3.0, 4.0, 17.0, 19.0), 0.75, number=1))
    assert first(manifest, found, "relink")[1].boxes == ((3.0, 4.0, 17.0, 19.0),)


def test_every_verdict_is_listed(manifest: Manifest) -> None:
    lines = list(verdict_lines(manifest, WRONG))
    assert [(line["id"], line["verdict"], line["right"]) for line in lines] == [
        ("0", "right", 0.9),
        ("1", "wrong", 0.2),
    ]
    assert [entry["verdict"] for entry in lines[0]["links"]] == ["another box", "right"]  # type: ignore[attr-defined]


def test_the_page_shows_the_worst_first_with_both_boxes(manifest: Manifest) -> None:
    links = [link(ONE, 0.3, THREE, 0.6), link(TWO, 0.05, THREE, 0.9), link(None, 0.0, THREE, 0.7, number=1)]
    page = cleaning_page(manifest, judged(*links))
    assert page.index("probability 0.050") < page.index("probability 0.300")
    assert "Text and image do not belong together (1)" in page
    assert "Another box fits better (2)" in page
    assert "An entity without a box that a region shows (1)" in page
    assert page.count("stroke-dasharray") == 2 + 3  # the key's two and one proposed box on each card
    assert "<mark>red cat</mark>" in page
    assert "None." in page  # of the kind without a case
