"""Importers of published sets with boxes: Flickr30k Entities, COCO, RefCOCO, Visual Genome."""

from pathlib import Path

import pytest

from import_sources import BOX, coco, flickr30k, image, records, refcoco, reference, run, spans, write_json
from spanbox.data.importers.coco import link_words, plural
from spanbox.data.importers.flickr30k import parse_sentence
from spanbox.data.manifest import Manifest

# Flickr30k Entities


def test_flickr30k_entities(tmp_path: Path) -> None:
    root = flickr30k(tmp_path / "src")
    summary = run("flickr30k-entities", root)
    (record,) = records(root, "train")
    assert record.text == "A woman holds a man 's arm in a park with it ."
    whole = (0.0, 0.0, 40.0, 9.0)
    assert spans(record) == {"A woman": (BOX, whole), "a man 's arm": (whole,), "a park": (), "it": ()}
    assert [(e.type, e.ambiguous) for e in record.entities] == [
        ("people", False), ("bodyparts", False), ("scene", True), ("notvisual", False),
    ]  # fmt: skip
    assert (record.group, record.id) == ("17", "17-0")
    assert Manifest(tmp_path / "out" / "train.jsonl").image_path(record).is_file()
    assert summary.splits["train"].oddity_counts == {
        "unusable box": 1,
        "caption without a relation to its image": 1,
        "image without sentences": 1,
    }


def test_phrases_of_flickr30k_that_lost_their_boxes_may_be_shown(tmp_path: Path) -> None:
    root = flickr30k(tmp_path / "src")
    path = root / "Annotations" / "17.xml"
    for content, expected in (
        (path.read_text().replace("<name>1</name><name>2</name>", "<name>1</name>"), [False, True, True, False]),
        ("<annotation>", [True, True, True, False]),
    ):
        path.write_text(content)
        run("flickr30k-entities", root)
        assert [entity.ambiguous for entity in records(root, "train")[0].entities] == expected


def test_a_phrase_ends_at_the_first_token_that_ends_in_a_bracket() -> None:
    assert parse_sentence("[/EN#5/other x] y] [/EN#6/people/other 一 猫] z") == (
        "x y] 一 猫 z",
        [(0, 1, "5", "other"), (5, 8, "6", "people")],
    )
    assert parse_sentence("[/EN#5/other never closed") == ("never closed", [])


# COCO and RefCOCO


def test_coco(tmp_path: Path) -> None:
    root = coco(tmp_path / "src")
    summary = run("coco", root)
    first, second, third = records(root, "val")
    people = ((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 40.0, 10.0))
    assert spans(first) == {"men": people, "dog": (BOX,)}
    assert {first.span_text(e): e.ambiguous for e in first.entities} == {"men": True, "dog": False}
    assert spans(second) == {"puppy": (BOX,)}
    assert third.entities == ()
    assert len(third.objects) == 3
    assert first.group_key == second.group_key
    assert first.text == "Two men and a dog ."
    assert summary.splits["val"].oddity_counts == {"box of a crowd": 1, "unusable box": 1}


def test_an_empty_caption_is_left_out_and_counted(tmp_path: Path) -> None:
    root = coco(tmp_path / "src")
    texts = ["A dog .", "", " \n"]
    captions = [{"image_id": 7, "id": i, "caption": text} for i, text in enumerate(texts)]
    write_json(root / "annotations" / "captions_val2017.json", {"annotations": captions})
    summary = run("coco", root).splits["val"]
    assert [record.text for record in records(root, "val")] == ["A dog ."]
    assert summary.oddity_counts["unusable record"] == 2
    assert ("7-1", "text: is empty") in [(oddity.where, oddity.detail) for oddity in summary.oddities]


def test_coco_of_own_photos_whose_ids_begin_anew_in_each_split_shares_no_group(tmp_path: Path) -> None:
    """Programs that write the format of COCO count the images of each split from 1: they are others all the same."""
    root = coco(tmp_path / "src")
    for kind in ("captions", "instances"):
        content = (root / "annotations" / f"{kind}_val2017.json").read_bytes()
        (root / "annotations" / f"{kind}_train2017.json").write_bytes(content)
    image(root / "train2017" / "7.jpg", (90, 60))
    run("coco", root)
    train, val = records(root, "train"), records(root, "val")
    assert len({record.group_key for record in train}) == len({record.group_key for record in val}) == 1
    assert train[0].group_key != val[0].group_key


def test_words_that_name_a_category() -> None:
    boxes = [("cell phone", BOX), ("person", BOX), ("mouse", BOX)]
    text = "A woman's Cell Phones, mice and a telephone; manhole"
    assert [text[e.start : e.end] for e in link_words(text, boxes)] == ["Cell Phones", "woman", "mice"]
    assert [plural(word) for word in ("bus", "knife", "city", "boy", "wine glass", "sandwich")] == [
        "buses", "knives", "cities", "boys", "wine glasses", "sandwiches",
    ]  # fmt: skip


def test_the_words_of_a_category_are_of_no_other_one() -> None:
    text, names = "A dog eats hot dogs", ("dog", "hot dog", "bear")
    found = list(link_words(text, [("dog", BOX)], names))
    assert [(entity.start, entity.end, entity.type) for entity in found] == [(2, 5, "dog")]
    both = link_words(text, [("dog", BOX), ("hot dog", BOX)], names)
    assert [text[entity.start : entity.end] for entity in both] == ["hot dogs", "dog"]


def test_refcoco(tmp_path: Path) -> None:
    root = refcoco(tmp_path / "src", [reference(), reference(ann_id=99), reference(split="../x"), 5])
    summary = run("refcoco", root)
    found = records(root, "testA")
    assert [(r.id, r.text) for r in found] == [("3-4", "the dog"), ("3-5", "left one")]
    assert spans(found[0]) == {"the dog": (BOX,)}
    assert found[0].entities[0].type == "dog"
    assert summary.splits["train"].oddity_counts["unusable reference"] == 3


def test_refcoco_as_json(tmp_path: Path) -> None:
    root = refcoco(tmp_path / "src", [])
    (root / "refs(unc).p").unlink()
    write_json(root / "refs(umd).json", [reference(), reference(sentences=[{"sent_id": 9, "raw": "红色的狗"}])])
    run("refcoco", root)
    assert [r.text for r in records(root, "testA")] == ["the dog", "left one", "红色的狗"]


# Visual Genome


@pytest.mark.parametrize("version", ["1.0", "1.4"])
def test_visual_genome(tmp_path: Path, version: str) -> None:
    old = version == "1.0"
    region = {"phrase": " a red dog ", "x": 10, "y": 5, "width": 20, "height": 20}
    regions = [region | ({"id": 4, "image": 1} if old else {"region_id": 4, "image_id": 1})]
    regions += [region | {"x": -5, "width": 15, "region_id": 5, "image_id": 1}, region | {"width": 0, "region_id": 6}]
    root = tmp_path / "src"
    write_json(root / "region_descriptions.json", [{"id": 1, "regions": regions}, {"id": 2, "regions": [region]}])
    things = [{"x": 1, "y": 2, "w": 3, "h": 4, "names": ["dog"]}, {"x": 50, "y": 2, "w": 3, "h": 4, "names": ["cat"]}]
    write_json(root / "objects.json", [{"id" if old else "image_id": place, "objects": things} for place in (1, 3)])
    write_json(
        root / "image_data.json",
        [{"id" if old else "image_id": 1, "width": 40, "height": 30, "url": "https://x/VG_100K_2/1.jpg"}],
    )
    image(root / "VG_100K_2" / "1.jpg")
    summary = run("visual-genome", root)
    one, two, three = records(root)
    assert (one.id, one.text, spans(one)) == ("1-4", "a red dog", {"a red dog": (BOX,)})
    assert spans(two) == {"a red dog": ((0.0, 5.0, 10.0, 25.0),)}
    assert spans(three) == {"a red dog": ()}
    assert [record.entities[0].ambiguous for record in (one, two, three)] == [False, False, True]
    assert [(o.box, o.label) for o in one.objects] == [((1.0, 2.0, 4.0, 6.0), "dog")]
    assert Manifest(tmp_path / "out" / "all.jsonl").image_path(one).is_file()
    assert summary.splits["all"].oddity_counts == {
        "clipped box": 1, "unusable box": 1, "unusable proposal": 1, "region of an unknown image": 1,
    }  # fmt: skip
