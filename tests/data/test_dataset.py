"""From records to samples: boxes, spans and links; pixels that agree with them; broken images."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pairs import BLUE, RED, Box, entity, save_manifest
from spanbox.data.dataset import Annotation, PairDataset, SampleLimits, annotate, to_pixels, to_square
from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record
from spanbox.data.masking import MaskSettings
from spanbox.errors import DataError
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, SHOWN, Incident, Sample, SampleViews, stable_id

SIZE = (200, 100)  # of the images that records are annotated against
LIMITS = SampleLimits(image_size=16)
TEXT = "The cat and the dog met a bird"


def record_of(*entities: Entity, text: str = TEXT, objects: tuple[ObjectBox, ...] = ()) -> Record:
    return Record(id="r", image="r.png", text=text, entities=entities, objects=objects)


def annotated(*entities: Entity, limits: SampleLimits = LIMITS, objects: tuple[ObjectBox, ...] = ()) -> Annotation:
    return annotate(record_of(*entities, objects=objects), SIZE, limits)


def replace_entity(entity: Entity, *, ambiguous: bool) -> Entity:
    return msgspec.structs.replace(entity, ambiguous=ambiguous)


def linked(annotation: Annotation, text: str = TEXT) -> list[tuple[str, list[int]]]:
    """Text of each span, and the regions that show it."""
    return [
        (text[start:end], row.nonzero().flatten().tolist())
        for (start, end), row in zip(annotation.spans, annotation.links, strict=True)
    ]


def kinds(annotation: Annotation | Sample) -> list[str]:
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
    annotation = annotate(record_of(*entities, text=text), SIZE, LIMITS)
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
    record = record_of(Entity(start=3, end=20), text=text)
    annotation = annotate(record, SIZE, LIMITS)
    assert linked(annotation, text) == [("Garfield Park", [])]


def test_identities_are_the_folded_text_or_what_the_record_says() -> None:
    text = "Garfield  PARK or 公园"
    record = record_of(entity(text, "Garfield  PARK"), entity(text, "公园", identity="Garfield Park"), text=text)
    assert annotate(record, SIZE, LIMITS).identities == (stable_id("garfield park"),) * 2


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


# ---------------------------------------------------------------- decoded samples


def dataset_of(
    manifest: Manifest, limits: SampleLimits = LIMITS, seed: int = 0, *, training: bool = True
) -> PairDataset:
    return PairDataset(manifest, limits, seed, replace_broken=training)


def only_sample(manifest: Manifest, limits: SampleLimits = LIMITS) -> Sample:
    item = dataset_of(manifest, limits, training=False)[0, 0]
    assert isinstance(item, Sample)
    return item


def painted(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A blue image with a red box."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, box)
    return image


def redness(pixels: Tensor) -> Tensor:
    """Share of pixels that are nearly red; (3, H, W) or (R, 3, H, W)."""
    red, _, blue = pixels.float().unbind(-3)
    return ((red > 200) & (blue < 55)).float().mean((-2, -1))


def test_sample_of_a_record(tmp_path: Path) -> None:
    record = Record(id="x", image="x.png", text=TEXT, group="g", entities=(entity(TEXT, "dog", (0, 0, 20, 10)),))
    sample = only_sample(save_manifest(tmp_path, [record]))
    assert (sample.id, sample.text, sample.group) == ("x", TEXT, stable_id("g"))
    assert sample.pixels.shape == (3, 16, 16)
    assert sample.pixels.dtype == torch.uint8
    assert sample.pixels.is_contiguous()
    assert sample.span_texts == ("dog",)
    torch.testing.assert_close(sample.regions, torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
    assert sample.crops is None
    assert sample.incidents == ()


def test_captions_of_one_image_share_a_group(tmp_path: Path) -> None:
    records = [Record(id=name, image="x.png", text=name) for name in "ab"]
    first, second = (dataset_of(save_manifest(tmp_path, records))[0, i] for i in (0, 1))
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert first.group == second.group == stable_id("x.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_agree_with_pixels_and_crops_of_images_stored_on_their_side(tmp_path: Path, orientation: int) -> None:
    """The box is where the image as shown is red, however it is stored."""
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that leads back from the shown image
    box = (100, 20, 140, 80)
    shown = painted((160, 100), box)
    stored = shown.transpose(Image.Transpose(undone[orientation])) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    record = Record(id="x", image="x.png", text=TEXT, entities=(entity(TEXT, "cat", box),))
    sample = only_sample(save_manifest(tmp_path, [record]), SampleLimits(image_size=32, crop_size=12))
    assert sample.crops is not None
    assert redness(sample.crops[:, :, 1:-1, 1:-1]).item() == 1
    x0, y0, x1, y1 = (sample.regions[0] * 32).round().int().tolist()
    assert redness(sample.pixels[:, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]) == 1
    area = (box[2] - box[0]) * (box[3] - box[1]) / (160 * 100)
    assert redness(sample.pixels).item() == pytest.approx(area, abs=0.03)


def crops_of(folder: Path, box: Box, margin: float) -> Tensor:
    painted((160, 100), (40, 30, 80, 50)).save(folder / "x.png")
    record = Record(id="x", image="x.png", text=TEXT, entities=(entity(TEXT, "cat", box),))
    limits = replace(LIMITS, crop_size=40, crop_margin=margin)
    crops = only_sample(save_manifest(folder, [record]), limits).crops
    assert crops is not None
    assert crops.shape == (1, 3, 40, 40)
    assert crops.dtype == torch.uint8
    assert crops.is_contiguous()
    return crops


def test_a_crop_shows_its_box_and_nothing_else(tmp_path: Path) -> None:
    crops = crops_of(tmp_path, (40, 30, 80, 50), margin=0)
    assert redness(crops[..., 1:-1, 1:-1]).item() == 1
    assert redness(crops_of(tmp_path, (80, 50, 120, 90), margin=0)[..., 1:-1, 1:-1]).item() == 0


def test_a_crop_may_have_a_margin(tmp_path: Path) -> None:
    """Half of the box's size on each side: the box takes the middle half of its crop's width and height."""
    crop = crops_of(tmp_path, (40, 30, 80, 50), margin=0.5)[0]
    assert redness(crop[:, 11:29, 11:29]) == 1
    assert redness(crop).item() == pytest.approx(1 / 4, abs=0.03)


def test_a_margin_stops_at_the_border(tmp_path: Path) -> None:
    crop = crops_of(tmp_path, (0, 0, 160, 100), margin=0.5)[0]
    assert redness(crop).item() == pytest.approx(40 * 20 / (160 * 100), abs=0.02)


def test_crops_of_an_image_without_regions(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record(id="x", image="x.png", text=TEXT)])
    crops = only_sample(manifest, replace(LIMITS, crop_size=6)).crops
    assert crops is not None
    assert crops.shape == (0, 3, 6, 6)
    assert crops.dtype == torch.uint8


def test_incidents_of_the_annotation_are_the_samples(tmp_path: Path) -> None:
    record = Record(id="x", image="x.png", text=TEXT, entities=(entity(TEXT, "cat", (0, 0, 99, 9)),))
    assert kinds(only_sample(save_manifest(tmp_path, [record]))) == ["clipped box"]


def noise(width: int, height: int, low: int, high: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(low, high + 1, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 5), (31, 33), (32, 32), (200, 90)])
def test_an_image_is_resized_as_pillow_does(size: tuple[int, int]) -> None:
    image = noise(*size, low=64, high=191)
    square = to_square(image, 32)
    assert square.shape == (3, 32, 32)
    assert square.dtype == torch.uint8
    assert square.is_contiguous()
    expected = to_pixels(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (square.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("size", [(31, 33), (33, 31), (5, 5), (200, 90)])
def test_what_the_filter_overshoots_is_clipped(size: tuple[int, int]) -> None:
    """Pillow may clip between other passes: single pixels differ, a value that wraps around would move the mean."""
    image = noise(*size, low=0, high=255)
    expected = to_pixels(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (to_square(image, 32).float() - expected.float()).abs().mean() < 0.5


# ---------------------------------------------------------------- broken images


def manifest_with_broken(folder: Path, broken: str) -> Manifest:
    records = [Record(id=name, image=f"{name}.png", text=f"text of {name}") for name in "abcdef"]
    for name in broken:
        (folder / f"{name}.png").write_bytes(b"no image")
    return save_manifest(folder, records)


def test_a_broken_image_is_replaced_and_noted(tmp_path: Path) -> None:
    sample = dataset_of(manifest_with_broken(tmp_path, "b"))[0, 1]
    assert isinstance(sample, Sample)
    assert sample.id != "b"
    assert sample.text == f"text of {sample.id}"
    (incident,) = set(sample.incidents)
    assert incident.kind == "broken image"
    assert incident.sample == "b"
    assert "b.png" in incident.detail


def test_the_replacement_is_drawn_from_seed_step_and_index_alone(tmp_path: Path) -> None:
    manifest = manifest_with_broken(tmp_path, "bc")

    def replacements(seed: int, index: int) -> list[str]:
        dataset = dataset_of(manifest, seed=seed)
        torch.rand(3)  # moves the global random state
        items = [dataset[step, index] for step in range(12)]
        assert all(isinstance(item, Sample) for item in items)
        return [item.id for item in items if isinstance(item, Sample)]

    first = replacements(seed=0, index=1)
    assert replacements(seed=0, index=1) == first
    assert set(first) <= set("adef")
    assert len(set(first)) > 1, "it differs between steps"
    assert replacements(seed=1, index=1) != first
    assert replacements(seed=0, index=2) != first


def test_a_readable_pair_is_itself_in_every_step(tmp_path: Path) -> None:
    dataset = dataset_of(manifest_with_broken(tmp_path, "b"))
    for step in range(3):
        sample = dataset[step, 3]
        assert isinstance(sample, Sample)
        assert (sample.id, sample.incidents) == ("d", ())


def test_every_broken_image_on_the_way_is_noted(tmp_path: Path) -> None:
    dataset = dataset_of(manifest_with_broken(tmp_path, "bcdef"))
    samples = [dataset[step, 1] for step in range(8)]
    assert {sample.id for sample in samples if isinstance(sample, Sample)} == {"a"}
    assert max(len(sample.incidents) for sample in samples if isinstance(sample, Sample)) > 1


def test_evaluation_returns_the_incident(tmp_path: Path) -> None:
    item = dataset_of(manifest_with_broken(tmp_path, "b"), training=False)[0, 1]
    assert isinstance(item, Incident)
    assert (item.kind, item.sample) == ("broken image", "b")


def test_twenty_broken_images_in_a_row_are_an_error(tmp_path: Path) -> None:
    dataset = dataset_of(manifest_with_broken(tmp_path, "abcdef"))
    with pytest.raises(DataError, match=r"pairs\.jsonl: 20 images in a row cannot be read; the last: .*\.png"):
        dataset[0, 0]


def test_length_is_the_manifests(tmp_path: Path) -> None:
    assert len(dataset_of(manifest_with_broken(tmp_path, ""))) == 6


class TestViews:
    """Masked views of a red box on blue, where 8 x 8 cells of 4 pixels lie on the image."""

    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Manifest:
        painted((80, 80), (20, 20, 60, 60)).save(tmp_path / "a.png")
        named = entity(TEXT, "cat", (20, 20, 60, 60))
        offered = (ObjectBox(box=(0, 0, 20, 20), score=0.9),)
        return save_manifest(tmp_path, [Record(id="a", image="a.png", text=TEXT, entities=(named,), objects=offered)])

    def drawn(self, manifest: Manifest, key: tuple[int, int] = (0, 0), seed: int = 0, **views: object) -> SampleViews:
        settings = MaskSettings.model_validate({"count": 6, "proposal_share": 0.0, **views})
        limits = SampleLimits(image_size=32, views=settings, view_grid=8)
        sample = dataset_of(manifest, limits, seed)[key]
        assert isinstance(sample, Sample)
        assert sample.views is not None
        return sample.views

    def test_what_hides_the_box_is_against_it_and_what_keeps_it_for_it(self, manifest: Manifest) -> None:
        hiding = self.drawn(manifest, mix={"random": 0, "object": 1, "background": 0})
        keeping = self.drawn(manifest, mix={"random": 0, "object": 0, "background": 1})
        assert hiding.hidden[:, 2:6, 2:6].all()
        assert not keeping.hidden[:, 2:6, 2:6].any()
        assert keeping.hidden.any()
        assert (hiding.sentence.tolist(), hiding.spans.tolist()) == ([-1] * 6, [[-1]] * 6)
        assert (keeping.sentence.tolist(), keeping.spans.tolist()) == ([1] * 6, [[1]] * 6)
        assert hiding.pixels is None

    def test_filled_pixels_no_longer_show_it(self, manifest: Manifest) -> None:
        views = self.drawn(manifest, mix={"random": 0, "object": 1, "background": 0}, fill="zero")
        assert views.pixels is not None
        assert views.pixels.shape == (6, 3, 32, 32)
        assert redness(views.pixels).max() == 0

    def test_they_come_from_seed_step_and_index(self, manifest: Manifest) -> None:
        once, again = self.drawn(manifest, (1, 0)), self.drawn(manifest, (1, 0))
        assert torch.equal(once.hidden, again.hidden)
        assert not torch.equal(once.hidden, self.drawn(manifest, (2, 0)).hidden)
        assert not torch.equal(once.hidden, self.drawn(manifest, (1, 0), seed=1).hidden)

    def test_a_cached_sample_gets_new_ones(self, manifest: Manifest) -> None:
        limits = SampleLimits(image_size=32, views=MaskSettings(count=4), view_grid=8)
        dataset = PairDataset(manifest, limits, 0, replace_broken=True, cache_bytes=10**6)
        first, second = dataset[0, 0], dataset[1, 0]
        assert isinstance(first, Sample)
        assert isinstance(second, Sample)
        assert first.pixels is second.pixels
        assert first.views is not None
        assert second.views is not None
        assert not torch.equal(first.views.hidden, second.views.hidden)

    def test_none_unless_asked_for(self, manifest: Manifest) -> None:
        assert only_sample(manifest).views is None
