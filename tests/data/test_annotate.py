"""From spans and boxes of a pair to the spans, regions and links of its sample."""

from dataclasses import replace

import msgspec
import pytest
import torch

from pairs import Box, entity
from spanbox.data.annotate import Annotation, annotate
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Entity, ObjectBox
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, SHOWN, Incident, stable_id

SIZE = (200, 100)  # of the images that records are annotated against
LIMITS = SampleLimits(image_size=16)
TEXT = "The cat and the dog met a bird"


def annotated(
    *spans: Entity, text: str = TEXT, limits: SampleLimits = LIMITS, objects: tuple[ObjectBox, ...] = ()
) -> Annotation:
    return annotate(text, spans, objects, SIZE, limits, sample="r")


def replace_entity(entity: Entity, *, ambiguous: bool) -> Entity:
    return msgspec.structs.replace(entity, ambiguous=ambiguous)


def linked(annotation: Annotation, text: str = TEXT) -> list[tuple[str, list[int]]]:
    """Text of each span, and the regions that show it."""
    return [
        (text[start:end], row.nonzero().flatten().tolist())
        for (start, end), row in zip(annotation.spans, annotation.links, strict=True)
    ]


def kinds(annotation: Annotation) -> list[str]:
    return [incident.kind for incident in annotation.incidents]


def test_boxes_are_normalised() -> None:
    annotation = annotated(entity(TEXT, "cat", (20, 10, 100, 50)))
    torch.testing.assert_close(annotation.regions, torch.tensor([[0.1, 0.1, 0.5, 0.5]]))
    assert annotation.regions.dtype == torch.float32
    assert annotation.incidents == ()


def test_boxes_are_clipped_and_counted() -> None:
    annotation = annotated(entity(TEXT, "cat", (-20, 10, 300, 50)), entity(TEXT, "dog", (0, 0, 200, 130)))
    torch.testing.assert_close(annotation.regions, torch.tensor([[0.0, 0.1, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]]))
    assert annotation.incidents == (
        Incident("clipped box", "r", "[-20, 10, 300, 50] leaves the image of 200x100"),
        Incident("clipped box", "r", "[0, 0, 200, 130] leaves the image of 200x100"),
    )


def test_edges_that_leave_by_rounding_are_clipped_without_a_word() -> None:
    annotation = annotated(entity(TEXT, "cat", (-0.1, 10, 200.1, 100.05)))
    torch.testing.assert_close(annotation.regions, torch.tensor([[0.0, 0.1, 1.0, 1.0]]))
    assert annotation.incidents == ()


@pytest.mark.parametrize("box", [(300, 10, 350, 50), (-50, 10, 0, 50), (10, 100, 20, 120)])
def test_degenerate_boxes_are_left_out_and_counted(box: Box) -> None:
    annotation = annotated(entity(TEXT, "cat", box, (0, 0, 100, 50)), entity(TEXT, "dog", box))
    assert linked(annotation) == [("cat", [0]), ("dog", [])]
    assert kinds(annotation) == ["degenerate box", "degenerate box"]


def test_a_box_of_several_spans_is_one_region() -> None:
    annotation = annotated(
        entity(TEXT, "cat", (0, 0, 100, 50)), entity(TEXT, "dog", (100, 0, 200, 50), (0, 0, 100, 50))
    )
    assert len(annotation.regions) == 2
    assert linked(annotation) == [("cat", [0]), ("dog", [0, 1])]


def test_boxes_that_are_equal_once_clipped_are_one_region() -> None:
    annotation = annotated(entity(TEXT, "cat", (-50, 0, 100, 50)), entity(TEXT, "dog", (0, -9, 100, 50)))
    assert linked(annotation) == [("cat", [0]), ("dog", [0])]


def test_a_box_given_twice_to_a_span_is_one_region() -> None:
    assert linked(annotated(entity(TEXT, "cat", (0, 0, 9, 9), (0, 0, 9, 9)))) == [("cat", [0])]


def test_a_span_has_several_boxes() -> None:
    annotation = annotated(entity(TEXT, "cat", (0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20)))
    assert linked(annotation) == [("cat", [0, 1, 2])]


def test_spans_without_a_box_come_last_in_their_order() -> None:
    entities = (
        entity(TEXT, "cat"),
        entity(TEXT, "dog", (0, 0, 9, 9)),
        entity(TEXT, "met"),
        entity(TEXT, "bird", (9, 9, 20, 20)),
    )
    assert linked(annotated(*entities)) == [("dog", [0]), ("bird", [1]), ("cat", []), ("met", [])]
    assert annotated(*entities).entities == (1, 3, 0, 2)


def test_a_span_whose_only_box_is_degenerate_has_none() -> None:
    annotation = annotated(entity(TEXT, "cat", (300, 0, 320, 20)), entity(TEXT, "dog", (0, 0, 9, 9)))
    assert linked(annotation) == [("dog", [0]), ("cat", [])]


def test_spans_over_the_limit_are_those_without_a_box_and_counted() -> None:
    limits = replace(LIMITS, max_spans=2)
    annotation = annotated(entity(TEXT, "cat"), entity(TEXT, "dog"), entity(TEXT, "bird", (0, 0, 9, 9)), limits=limits)
    assert linked(annotation) == [("bird", [0]), ("cat", [])]
    assert annotation.entities == (2, 0)
    assert annotation.incidents == (Incident("spans over limit", "r", "3 spans, 2 used"),)


def test_a_box_of_a_span_over_the_limit_is_no_region() -> None:
    """Unlinked, it would pass for a negative of what it shows; it may not come back as a proposal either."""
    box = (30, 0, 50, 20)
    spans = (entity(TEXT, "cat", (0, 0, 20, 20)), entity(TEXT, "dog", box))
    limits = replace(LIMITS, max_spans=1, proposals=2)
    annotation = annotated(*spans, limits=limits, objects=(ObjectBox(box=box),))
    assert linked(annotation) == [("cat", [0])]
    assert len(annotation.regions) == 1


def test_regions_over_the_limit_are_counted_and_their_links_cut() -> None:
    limits = replace(LIMITS, max_regions=2)
    boxes: list[Box] = [(0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20)]
    annotation = annotated(entity(TEXT, "cat", *boxes), entity(TEXT, "dog", boxes[2]), limits=limits)
    assert lefts(annotation) == [0, 60]
    assert linked(annotation) == [("cat", [0, 1]), ("dog", [1])]
    assert annotation.incidents == (Incident("regions over limit", "r", "3 boxes, 2 used"),)


def test_every_entity_gets_a_box_before_any_gets_its_second() -> None:
    cat = [(float(x), 0.0, x + 9.0, 9.0) for x in (0, 10, 20)]
    entities = (
        entity(TEXT, "cat", *cat),
        entity(TEXT, "dog", (30, 0, 39, 9), (40, 0, 49, 9)),
        entity(TEXT, "bird", cat[0]),
    )
    expected = {1: [0], 2: [0, 30], 3: [0, 10, 30], 4: [0, 10, 30, 40], 5: [0, 10, 20, 30, 40]}
    for limit, kept in expected.items():
        assert lefts(annotated(*entities, limits=replace(LIMITS, max_regions=limit))) == kept
    assert annotated(*entities, limits=replace(LIMITS, max_regions=1)).shown == (SHOWN, NOT_KNOWN, SHOWN)


def test_without_limits_everything_is_used() -> None:
    text = " ".join(f"thing{i}" for i in range(40))
    entities = [
        entity(text, f"thing{i} " if i < 39 else "thing39", (i, 0, i + 1, 9), (i, 50, i + 1, 59)) for i in range(40)
    ]
    annotation = annotated(*entities, text=text)
    assert (annotation.links.shape, int(annotation.links.sum())) == ((40, 80), 80)
    assert annotation.incidents == ()


def test_what_the_data_know_of_each_span() -> None:
    """Named only: no box. Not known: boxes, but none that is a region."""
    outside = (300, 0, 320, 20)
    entities = (
        entity(TEXT, "cat", (0, 0, 9, 9)),
        entity(TEXT, "dog", (20, 0, 29, 9)),
        entity(TEXT, "met"),
        entity(TEXT, "bird", outside),
        replace_entity(entity(TEXT, "The"), ambiguous=True),
    )
    assert annotated(*entities).shown == (SHOWN, SHOWN, NAMED_ONLY, NOT_KNOWN, NOT_KNOWN)
    assert annotated(*entities, limits=replace(LIMITS, max_regions=1)).shown[:2] == (SHOWN, NOT_KNOWN)
    assert annotated(entity(TEXT, "cat", outside, (0, 0, 9, 9))).shown == (SHOWN,)


def test_ambiguous_entities_are_linked_to_all_their_boxes_or_skipped() -> None:
    boxes: list[Box] = [(0, 0, 20, 20), (30, 0, 50, 20)]
    dog = replace_entity(entity(TEXT, "dog", *boxes), ambiguous=True)
    entities = entity(TEXT, "cat", boxes[0]), dog
    assert linked(annotated(*entities)) == [("cat", [0]), ("dog", [0, 1])]
    limits = replace(LIMITS, skip_ambiguous=True, proposals=4)
    skipped = annotated(*entities, limits=limits, objects=(ObjectBox(boxes[1]),))
    assert linked(skipped) == [("cat", [0])]
    assert lefts(skipped) == [0]  # a box of a skipped entity does not come back as a proposal
    assert skipped.incidents == (Incident("ambiguous entity", "r", "1 of 2 entities left out"),)


def test_candidates_of_a_prediction_are_the_objects_alone() -> None:
    """Those that overlap an entity's box among them: nothing may tell which candidate is right."""
    cat = entity(TEXT, "cat", (0, 0, 20, 20))
    objects = ObjectBox((60, 0, 80, 20), score=0.1), ObjectBox((1, 1, 21, 21), score=0.9), ObjectBox((300, 0, 320, 20))
    limits = replace(LIMITS, objects_only=True, max_regions=1)
    annotation = annotated(cat, entity(TEXT, "dog"), limits=limits, objects=objects)
    assert sorted(lefts(annotation)) == [1, 60]
    assert not annotation.links.any()
    assert annotation.shown == (SHOWN, NAMED_ONLY)
    assert annotated(cat, limits=limits).regions.shape == (0, 4)


def test_limits_that_just_fit_are_no_incident() -> None:
    limits = replace(LIMITS, max_spans=1, max_regions=1)
    assert annotated(entity(TEXT, "cat", (0, 0, 20, 20)), limits=limits).incidents == ()


def test_limits_of_zero_leave_the_coarse_level() -> None:
    limits = replace(LIMITS, max_spans=0, max_regions=0, proposals=4)
    annotation = annotated(entity(TEXT, "cat", (0, 0, 9, 9)), limits=limits, objects=(ObjectBox((0, 0, 9, 9)),))
    assert annotation.spans == annotation.identities == ()
    assert annotation.regions.shape == (0, 4)
    assert annotation.links.shape == (0, 0)


def test_no_entities_at_all() -> None:
    annotation = annotated()
    assert annotation.regions.shape == (0, 4)
    assert annotation.links.shape == (0, 0)
    assert annotation.incidents == ()


def test_spans_are_trimmed() -> None:
    text = "The  Garfield Park  here"
    annotation = annotated(Entity(start=3, end=20), text=text)
    assert linked(annotation, text) == [("Garfield Park", [])]


def test_identities_are_the_folded_text_or_what_the_record_says() -> None:
    text = "Garfield  PARK or 公园"
    spans = entity(text, "Garfield  PARK"), entity(text, "公园", identity="Garfield Park")
    assert annotated(*spans, text=text).identities == (stable_id("garfield park"),) * 2


def proposal(x: float, score: float, width: float = 20) -> ObjectBox:
    return ObjectBox(box=(x, 0, x + width, 20), score=score)


def lefts(annotation: Annotation) -> list[float]:
    """Left edges of the regions in pixels."""
    return (annotation.regions[:, 0] * SIZE[0]).round().tolist()


def test_proposals_are_ranked_by_score_and_linked_to_nothing() -> None:
    objects = proposal(20, 0.2), proposal(40, 0.9), proposal(60, 0.5)
    annotation = annotated(entity(TEXT, "cat", (0, 0, 9, 9)), limits=replace(LIMITS, proposals=2), objects=objects)
    assert lefts(annotation) == [0, 40, 60]
    assert linked(annotation) == [("cat", [0])]
    assert annotation.incidents == ()


@pytest.mark.parametrize(("shift", "kept"), [(0, False), (6, False), (7, True), (20, True)])
def test_proposals_that_show_an_entity_are_left_out(shift: float, kept: bool) -> None:
    """Two boxes 20 wide, one moved by `shift`: the IoU is (20 - shift) / (20 + shift), 0.54 at 6 and 0.48 at 7."""
    annotation = annotated(
        entity(TEXT, "cat", (100, 0, 120, 20)),
        limits=replace(LIMITS, proposals=4),
        objects=(proposal(100 + shift, 0.5),),
    )
    assert len(annotation.regions) == 1 + kept


def test_an_iou_of_exactly_one_half_shows_the_entity() -> None:
    cat, wider = entity(TEXT, "cat", (0, 0, 50, 25)), ObjectBox(box=(0, 0, 100, 25))
    assert lefts(annotated(cat, limits=replace(LIMITS, proposals=4), objects=(wider,))) == [0]


def test_proposals_that_show_any_of_the_entities_are_left_out() -> None:
    cats = entity(TEXT, "cat", (0, 0, 20, 20)), entity(TEXT, "dog", (40, 0, 60, 20))
    objects = proposal(0, 0.9), proposal(40, 0.8), proposal(80, 0.7)
    assert lefts(annotated(*cats, limits=replace(LIMITS, proposals=4), objects=objects)) == [0, 40, 80]


def test_proposals_take_the_room_that_entities_leave() -> None:
    objects = tuple(proposal(20 * i, 1 - i / 10) for i in range(1, 6))
    limits = replace(LIMITS, proposals=4, max_regions=3)
    assert lefts(annotated(entity(TEXT, "cat", (0, 0, 9, 9)), limits=limits, objects=objects)) == [0, 20, 40]
    assert lefts(annotated(limits=limits, objects=objects)) == [20, 40, 60]


def test_proposals_are_clipped_and_those_outside_left_out() -> None:
    objects = ObjectBox(box=(-20, 0, 20, 20), score=0.9), ObjectBox(box=(300, 0, 320, 20), score=0.8)
    annotation = annotated(limits=replace(LIMITS, proposals=4), objects=objects)
    torch.testing.assert_close(annotation.regions, torch.tensor([[0.0, 0.0, 0.1, 0.2]]))


def test_proposals_are_left_out_unless_asked_for() -> None:
    assert len(annotated(objects=(proposal(0, 1.0),)).regions) == 0
