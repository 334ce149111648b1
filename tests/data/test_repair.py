"""Repairs: what is certain is repaired and counted, the rest is left, the original is not changed."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from spanbox.data.audit import audit
from spanbox.data.images import load_image, turn_boxes
from spanbox.data.manifest import Box, Entity, Manifest, ObjectBox, Record, write_manifest
from spanbox.data.paraphrases import Paraphrase, ParaphraseSpan
from spanbox.data.repair import fix_manifest
from spanbox.errors import DataError, OutputError


def noise(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def records(folder: Path, count: int = 40) -> list[Record]:
    """Good records with two boxes and a proposal each."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        width, height = generator.integers(60, 160, 2).tolist()
        noise(folder / f"{number}.png", (width, height), number)
        low = generator.uniform(0.1, 0.5, (3, 2)) * (width, height)
        high = low + generator.uniform(0.2, 0.5, (3, 2)) * (width, height)
        boxes = np.concatenate([low, high], axis=1).round(1).tolist()
        one, two, three = (tuple(box) for box in boxes)
        text = f"the cat 🐈 sat on 垫子 number {number}"
        start = text.index("sat")
        entities = (Entity(4, 7, boxes=(one, two)), Entity(start, start + 3))
        made.append(Record(str(number), f"{number}.png", text, entities=entities, objects=(ObjectBox(three),)))
    return made


def with_boxes(record: Record, change: Callable[[Box], Box]) -> Record:
    entities = tuple(
        Entity(entity.start, entity.end, boxes=tuple(map(change, entity.boxes))) for entity in record.entities
    )
    objects = tuple(ObjectBox(change(proposal.box)) for proposal in record.objects)
    return Record(record.id, record.image, record.text, entities=entities, objects=objects)


def test_boxes_of_another_convention(tmp_path: Path) -> None:
    good = records(tmp_path)
    write_manifest(
        tmp_path / "m.jsonl", [with_boxes(r, lambda b: (b[0], b[1], b[2] - b[0], b[3] - b[1])) for r in good]
    )
    before = (tmp_path / "m.jsonl").read_bytes()
    done, _ = fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert done == {
        "boxes of entities, x y width height in pixels: converted": 80,
        "boxes of objects, x y width height in pixels: converted": 40,
    }
    for found, expected in zip(Manifest(tmp_path / "fixed.jsonl"), good, strict=True):
        np.testing.assert_allclose(found.entities[0].boxes, expected.entities[0].boxes, atol=0.01)
        np.testing.assert_allclose(found.objects[0].box, expected.objects[0].box, atol=0.01)
    assert (tmp_path / "m.jsonl").read_bytes() == before


@pytest.mark.slow
def test_boxes_of_images_that_are_not_there_yet(tmp_path: Path) -> None:
    """Those in pixels are converted with the others; those in a unit of their image are counted."""
    good = records(tmp_path)
    write_manifest(tmp_path / "m.jsonl", [with_boxes(r, lambda b: (*b[:2], b[2] - b[0], b[3] - b[1])) for r in good])
    sizes = [load_image(tmp_path / record.image).size for record in good]
    fractions = [
        with_boxes(record, lambda b, w=width, h=height: (b[0] / w, b[1] / h, b[2] / w, b[3] / h))
        for record, (width, height) in zip(good, sizes, strict=True)
    ]
    write_manifest(tmp_path / "f.jsonl", fractions)
    for record in good[:4]:
        (tmp_path / record.image).unlink()
    fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    for found, expected in zip(Manifest(tmp_path / "fixed.jsonl"), good, strict=True):
        np.testing.assert_allclose(found.entities[0].boxes, expected.entities[0].boxes, atol=0.01)
    done, left = fix_manifest(tmp_path / "f.jsonl", tmp_path / "fixed.jsonl")
    assert done == {
        "boxes of entities, x0 y0 x1 y1 in fractions: converted; y before x fits as well: look at some boxes": 72,
        "boxes of objects, x0 y0 x1 y1 in fractions: converted; y before x fits as well: look at some boxes": 36,
    }
    assert left == {
        "boxes of entities, x0 y0 x1 y1 in fractions, of images that cannot be read: not converted": 8,
        "boxes of objects, x0 y0 x1 y1 in fractions, of images that cannot be read: not converted": 4,
    }


@pytest.mark.parametrize("convert", [lambda b: (*b[:2], b[2] - b[0], b[3] - b[1]), lambda b: tuple(x / 200 for x in b)])
def test_without_any_image_no_convention_of_boxes_is_certain(tmp_path: Path, convert: Callable[[Box], Box]) -> None:
    good = records(tmp_path)
    for record in good:
        (tmp_path / record.image).unlink()
    write_manifest(tmp_path / "m.jsonl", [with_boxes(record, convert) for record in good])
    assert fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl").done.total() == 0


def test_offsets_of_another_convention(tmp_path: Path) -> None:
    good = records(tmp_path)

    def to_bytes(text: str, offset: int) -> int:
        return len(text[:offset].encode())

    bad = [
        Record(
            r.id,
            r.image,
            r.text,
            entities=tuple(Entity(to_bytes(r.text, e.start), to_bytes(r.text, e.end)) for e in r.entities),
        )
        for r in good
    ]
    write_manifest(tmp_path / "m.jsonl", bad)
    done, _ = fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert done == {"spans look like byte offsets: converted": 40}
    assert {r.span_text(r.entities[1]) for r in Manifest(tmp_path / "fixed.jsonl")} == {"sat"}


@pytest.mark.parametrize("in_bytes", [True, False])
def test_offsets_of_paraphrases_are_read_by_themselves(tmp_path: Path, in_bytes: bool) -> None:
    """Paraphrases of another program may count in another way than the texts, and as documented."""
    text, other = "猫坐在垫子上", "垫子上有一只猫，它叫咪咪"
    span = ParaphraseSpan(0, 18, 21) if in_bytes else ParaphraseSpan(0, 6, 7)
    pairs = [
        Record(
            str(i), f"{i}.png", text, entities=(Entity(0, 3, identity="猫"),), paraphrases=(Paraphrase(other, (span,)),)
        )
        for i in range(40)
    ]
    write_manifest(tmp_path / "m.jsonl", pairs)
    of_paraphrases = {"spans look like byte offsets, of paraphrases: converted": 40} if in_bytes else {}
    findings = audit([tmp_path / "m.jsonl"]).findings["spans look like byte offsets"].examples
    assert [("of paraphrases" in example.detail) for example in findings] == [False, True][: 1 + in_bytes]
    done, _ = fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert done == {"spans look like byte offsets: converted": 40, **of_paraphrases}
    for record in Manifest(tmp_path / "fixed.jsonl"):
        assert record.span_text(record.entities[0]) == "猫"
        assert record.paraphrases[0].entities == (ParaphraseSpan(0, 6, 7),)


def test_names_ids_groups_and_repetitions(tmp_path: Path) -> None:
    noise(tmp_path / "images" / "Café.png", (30, 20), 0)
    (tmp_path / "copy.png").write_bytes((tmp_path / "images" / "Café.png").read_bytes())
    cat = Entity(2, 5)
    write_manifest(
        tmp_path / "m.jsonl",
        [
            Record("1", "images\\café.png", "a cat", entities=(cat,)),
            Record("2", "images/Café.png", "a cat", entities=(cat,)),  # the first again
            Record("1", "copy.png", "a dog"),
            Record("4", "none.png", "none", meta={"kept": 1}, relevance=0.5),
        ],
    )
    done, _ = fix_manifest(tmp_path / "m.jsonl", tmp_path / "out" / "fixed.jsonl")
    assert done == {
        "names of images in another spelling: corrected": 1,
        "pairs given twice: removed": 1,
        "ids used twice: made unique": 1,
        "images of equal pixels in different groups: one group": 1,
    }
    fixed = Manifest(tmp_path / "out" / "fixed.jsonl")
    assert [(r.id, r.group, r.text) for r in fixed] == [
        ("1", "images/Café.png", "a cat"),
        ("1-2", "images/Café.png", "a dog"),
        ("4", "none.png", "none"),
    ]
    assert all(fixed.image_path(record).is_file() for record in fixed[:2])
    assert (fixed[2].meta, fixed[2].relevance) == ({"kept": 1}, 0.5)


def test_groups_with_images_of_equal_pixels_are_one_and_a_second_repair_finds_nothing(tmp_path: Path) -> None:
    """A pair of such a group keeps its other images: without them they would be each other's negatives."""
    for name, seed in (("a.png", 0), ("copy.png", 0), ("b.png", 1), ("c.png", 2)):
        noise(tmp_path / name, (40, 40), seed)
    pairs = [
        Record("1", "a.png", "猫"),
        Record("2", "copy.png", "狗", group="g"),
        Record("3", "b.png", "鸟", group="g"),
        Record("4", "c.png", "鱼"),
        Record("5", "b.png", "鸟", group="a.png"),  # the third pair again, in what is the same group
    ]
    write_manifest(tmp_path / "m.jsonl", pairs)
    done, _ = fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert [(record.id, record.group_key) for record in Manifest(tmp_path / "fixed.jsonl")] == [
        ("1", "a.png"), ("2", "a.png"), ("3", "a.png"), ("4", "c.png"),
    ]  # fmt: skip
    assert done == {"images of equal pixels in different groups: one group": 2, "pairs given twice: removed": 1}
    again, _ = fix_manifest(tmp_path / "fixed.jsonl", tmp_path / "again.jsonl")
    assert not again
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "fixed.jsonl").read_bytes()


def test_what_is_not_certain_stays(tmp_path: Path) -> None:
    """Ten boxes of another format are too few, and a box without area has no certain repair."""
    bad = [with_boxes(r, lambda b: (b[0], b[1], b[2] - b[0], b[3] - b[1])) for r in records(tmp_path, 5)]
    write_manifest(tmp_path / "m.jsonl", [*bad, Record("x", "0.png", "x", entities=(Entity(0, 9),))])
    done, left = fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert not done
    format = "x y width height in pixels: not converted, since fewer than 20 boxes show it"
    assert left.keys() == {f"boxes of entities, {format}", f"boxes of objects, {format}"}
    assert (tmp_path / "fixed.jsonl").read_bytes() == (tmp_path / "m.jsonl").read_bytes()


@pytest.mark.slow
def test_a_convention_that_some_boxes_contradict_stays(tmp_path: Path) -> None:
    good = records(tmp_path, 60)
    bad = [with_boxes(record, lambda b: (*b[:2], b[2] - b[0], b[3] - b[1])) for record in good]
    width, _ = load_image(tmp_path / good[0].image).size
    box = (width - 20.0, 5.0, width - 10.0, 9.0)
    odd = Record("odd", good[0].image, "an odd one", entities=(Entity(3, 6, boxes=(box,)),))
    write_manifest(tmp_path / "m.jsonl", [*bad, odd])
    done, left = fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert list(done) == ["boxes of objects, x y width height in pixels: converted"]
    assert list(left) == [
        "boxes of entities, x y width height in pixels: not converted, contradicted by 1 of its boxes"
    ]


def test_offsets_that_few_spans_show_stay(tmp_path: Path) -> None:
    text = "一只猫 sat"
    few = [Record(str(n), "none.png", text, entities=(Entity(10, 13),)) for n in range(5)]
    write_manifest(tmp_path / "m.jsonl", few)
    done, left = fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert not [name for name in done if "spans" in name]
    assert left == {"spans look like byte offsets: not converted, since fewer than 20 spans show it": 5}


def test_small_boxes_are_not_taken_for_percent(tmp_path: Path) -> None:
    """Faces in the middle of images of 128 pixels: all numbers are below 100, and none contradicts pixels."""
    generator, made = np.random.default_rng(0), []
    for number in range(30):
        noise(tmp_path / f"{number}.png", (128, 128), number)
        x, y, side = generator.uniform((10, 10, 50), (25, 25, 74)).tolist()
        made.append(
            Record(
                str(number), f"{number}.png", "a face", entities=(Entity(2, 6, boxes=((x, y, x + side, y + side),)),)
            )
        )
    write_manifest(tmp_path / "m.jsonl", made)
    assert not fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl").done.total()
    assert Manifest(tmp_path / "fixed.jsonl")[:] == made


def test_boxes_at_the_edges_of_upright_and_wide_photographs_stay(tmp_path: Path) -> None:
    made = []
    for number in range(30):
        size = (64, 48) if number % 2 else (48, 64)
        noise(tmp_path / f"{number}.png", size, number)
        made.append(
            Record(str(number), f"{number}.png", "it", entities=(Entity(0, 2, boxes=((0.0, 0.0, *map(float, size)),)),))
        )
    write_manifest(tmp_path / "m.jsonl", made)
    assert not fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl").done.total()
    assert Manifest(tmp_path / "fixed.jsonl")[:] == made


@pytest.mark.slow
def test_the_same_box_in_every_image_shows_no_size_of_the_images(tmp_path: Path) -> None:
    """As of a logo: it touches the edges of a square of its own size, in each image."""
    good = [with_boxes(record, lambda box: (0.0, 0.0, 40.0, 40.0)) for record in records(tmp_path)]
    write_manifest(tmp_path / "m.jsonl", good)
    assert not any(kind.startswith("boxes ") for kind in audit([tmp_path / "m.jsonl"]).findings)
    fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert list(Manifest(tmp_path / "fixed.jsonl")) == good


def test_an_image_name_that_the_system_refuses_stays(tmp_path: Path) -> None:
    made = [Record("1", "a" * 300 + ".png", "a cat"), Record("2", "a\0b.png", "a dog")]
    write_manifest(tmp_path / "m.jsonl", made)
    assert not fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl").done.total()
    assert Manifest(tmp_path / "fixed.jsonl")[:] == made


def test_of_two_spellings_none_is_certain(tmp_path: Path) -> None:
    noise(tmp_path / "cat.png", (30, 20), 0), noise(tmp_path / "CAT.png", (30, 20), 1)
    write_manifest(tmp_path / "m.jsonl", [Record("1", "Cat.png", "a cat")])
    assert not fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl").done.total()


def test_it_refuses_to_replace_the_manifest_and_stops_at_a_line_that_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(OutputError, match="is read by this command"):
        fix_manifest(tmp_path / "m.jsonl", tmp_path / "." / "m.jsonl")
    with pytest.raises(DataError, match=r"m\.jsonl, line 1"):
        fix_manifest(tmp_path / "m.jsonl", tmp_path / "fixed.jsonl")
    assert not (tmp_path / "fixed.jsonl").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_their_image(tmp_path: Path, orientation: int) -> None:
    """A red rectangle in the stored image is inside of the turned box of the image as shown."""
    image = Image.new("RGB", (40, 30), "white")
    image.paste("red", (5, 3, 17, 9))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    ((x0, y0, x1, y1),) = turn_boxes([(5.0, 3.0, 17.0, 9.0)], tmp_path / "a.png")
    shown = np.asarray(load_image(tmp_path / "a.png"))[..., 1] < 128
    rows, columns = np.nonzero(shown)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)


@pytest.mark.slow
def test_lines_are_not_held_in_memory(tmp_path: Path) -> None:
    """A hundred lines of 100 kB each: two are one pair, which only a memory of all lines tells."""
    lines = [Record(str(i), "none.png", "a cat", meta={"notes": f"{i % 99} " * 33_333}) for i in range(100)]
    write_manifest(tmp_path / "m.jsonl", lines)
    del lines
    tracemalloc.start()
    repairs = fix_manifest(tmp_path / "m.jsonl", tmp_path / "out.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert repairs.done["pairs given twice: removed"] == 1
    assert peak < 4_000_000
