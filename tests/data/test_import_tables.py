"""Importers of captions, of tables and of JSON by the names of its fields, and sources that are too large."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from import_sources import image, records, run, spans, write_json, write_tar
from spanbox.data.importers import ImportSummary, driver
from spanbox.data.importers import captions as caption_files
from spanbox.data.importers.driver import Source, run_import
from spanbox.data.importers.fields import split_name
from spanbox.data.importers.formats import FORMATS
from spanbox.data.manifest import Manifest, Record
from spanbox.errors import DataError


def test_flickr8k_in_both_forms(tmp_path: Path) -> None:
    root = tmp_path / "src"
    image(root / "Images" / "a.jpg")
    (root / "Flickr8k.token.txt").write_text("a.jpg#0\tA dog .\na.jpg#1 Two cats\nno caption here\nb.jpg#0\tGone\n")
    summary = run("flickr8k", root)
    assert [(r.id, r.text) for r in records(root)] == [("a-0", "A dog ."), ("a-1", "Two cats"), ("b-0", "Gone")]
    assert len({r.group for r in records(root)[:2]}) == 1
    assert summary.splits["all"].oddity_counts == {"wrong line": 1, "missing image": 1}
    (root / "Flickr8k.token.txt").unlink()
    (root / "captions.txt").write_text('image,caption\na.jpg,"A dog, red"\n')
    run("flickr8k", root)
    assert [(r.text, r.lang, r.source) for r in records(root)] == [("A dog, red", "en", "flickr8k")]


def test_tables_with_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "src" / "t.tsv"
    image(path.parent / "a.png")
    path.write_text(
        "file\ttitle\tlanguage\tnumber\na.png\t红色的猫\tzh\t7\n\ta dog\ten\t8\n \ta fox\ten\t9\na.png\t　\tzh\t10\n",
        encoding="utf-8",
    )
    (tmp_path / "spec.yaml").write_text("{image: file, text: title, lang: language, id: number}")
    summary = run_import(
        "table", FORMATS["table"].importer, Source(path, tmp_path / "out", spec=tmp_path / "spec.yaml")
    )
    (record,) = Manifest(tmp_path / "out" / "all.jsonl")
    assert (record.id, record.text, record.lang) == ("7", "红色的猫", "zh")
    assert summary.splits["all"].oddity_counts == {"wrong line": 3}  # two of them hold white space alone
    with pytest.raises(DataError, match="has no column 'image', but file, title, language, number"):
        run_import("table", FORMATS["table"].importer, Source(path, tmp_path / "out"))


def test_texts_that_a_delimiter_divides_are_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "src" / "t.csv"
    image(path.parent / "a.png")
    path.write_text('image,text\na.png,a cat, sitting\na.png,"a dog, running"\na.png,a fox,,\n')
    summary = run("table", path)
    assert [record.text for record in records(path)] == ["a dog, running", "a fox"]
    (oddity,) = summary.splits["all"].oddities
    assert (oddity.kind, oddity.where) == ("wrong line", "t.csv:2")
    assert "quotation marks" in oddity.detail


def test_images_of_a_table_may_be_in_tars(tmp_path: Path) -> None:
    path = tmp_path / "src" / "t.csv"
    write_tar(tmp_path / "src" / "shard.tar", {"a.png": image(tmp_path / "a.png")})
    path.write_text("image,text\nshard.tar/a.png,a cat\nshard.tar/b.png,a dog\n")
    summary = run("table", path)
    assert [oddity.where for oddity in summary.splits["all"].oddities] == ["shard.tar/b.png"]


SPEC = """
records: data.items
id: key
image: file
text: caption
split: part
entities: {list: names, text: word, boxes: place, type: kind}
objects: {list: found, box: place, score: p}
boxes: x y width height
unit: fractions
"""


def test_any_json_by_the_names_of_its_fields(tmp_path: Path) -> None:
    root = tmp_path / "src"
    image(root / "a.png")
    good = {
        "key": 3, "file": "a.png", "caption": "the 猫 sits", "part": "train",
        "names": [{"word": "猫", "place": [0.25, 0.5, 0.5, 0.5], "kind": "animal"}, {"word": "sits"}],
        "found": [{"place": [0, 0, 1, 1], "p": 0.5}],
    }  # fmt: skip
    bad = [good | {"caption": 5}, good | {"names": [{"word": "dog"}]}, good | {"found": [{"place": [1, 2]}]}, "x"]
    write_json(root / "data.json", {"data": {"items": [good, *bad, good | {"part": "../up"}]}})
    (tmp_path / "spec.yaml").write_text(SPEC)
    source = Source(root / "data.json", tmp_path / "out", spec=tmp_path / "spec.yaml")
    summary = run_import("json", FORMATS["json"].importer, source)
    (record,) = Manifest(tmp_path / "out" / "train.jsonl")
    assert spans(record) == {"猫": ((10.0, 15.0, 30.0, 30.0),), "sits": ()}
    assert [(o.box, o.score) for o in record.objects] == [((0.0, 0.0, 40.0, 30.0), 0.5)]
    assert record.id == "3"
    assert sum(split.oddity_counts["unusable record"] for split in summary.splits.values()) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".jsonl") == [
        "train.jsonl",
        "up.jsonl",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "--spec FILE.yaml is needed"),
        ("{image: a}", "text: Field required"),
        ("{image: a, text: b, colour: c}", "colour: Extra inputs are not permitted"),
        ("{image: a, text: b, boxes: diagonal}", "'diagonal' is unknown; known are x0 y0 x1 y1"),
        ("[", "cannot be read as YAML"),
    ],
)
def test_a_wrong_spec_is_explained(tmp_path: Path, spec: str | None, message: str) -> None:
    write_json(tmp_path / "d.json", [])
    path = tmp_path / "spec.yaml"
    path.write_text(spec or "")
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        run_import(
            "json", FORMATS["json"].importer, Source(tmp_path / "d.json", tmp_path / "out", spec=path if spec else None)
        )


def test_a_line_or_a_file_without_an_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_files, "MAX_LINE_BYTES", 1000)
    (tmp_path / "t.csv").write_text("image,text\na.png," + "x" * 2000)
    with pytest.raises(DataError, match="a line of more than 1,000 characters"):
        run("table", tmp_path / "t.csv")
    for content in (b"\0" * 9000, b" " * 9000, b'"text"', b""):
        (tmp_path / "d.json").write_bytes(content)
        with pytest.raises(DataError, match="is not JSON with a list or an object"):
            driver.read_json(tmp_path / "d.json")
    (tmp_path / "d.json").write_bytes(b"\xef\xbb\xbf [1]")
    assert driver.read_typed(tmp_path / "d.json", list[int]) == [1]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_lines_of_what_is_no_file_are_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "pages.jsonl")
    (tmp_path / "spec.yaml").write_text("{image: file, text: title}")
    source = Source(tmp_path / "pages.jsonl", tmp_path / "out", spec=tmp_path / "spec.yaml")
    with pytest.raises(DataError, match=r"pages\.jsonl: is not a file that can be read"):
        run_import("json", FORMATS["json"].importer, source)


@pytest.mark.slow
@pytest.mark.parametrize("value", [json.loads('"\\ud800"'), "x" * 20_000_000])
def test_what_a_manifest_cannot_hold_is_counted(tmp_path: Path, value: str) -> None:
    """Half a surrogate pair, and a line that is too long."""
    spec = tmp_path / "spec.yaml"
    spec.write_text("{image: i, text: t, group: g}")
    write_json(tmp_path / "d.json", [{"i": "a.png", "t": "一", "g": value}, {"i": "a.png", "t": "b"}])
    summary = run("json", tmp_path / "d.json", spec=spec)
    assert summary.splits["all"].oddity_counts == {"missing image": 1, "unusable record": 1}
    assert [record.text for record in Manifest(tmp_path / "out" / "all.jsonl")] == ["b"]


def import_json(tmp_path: Path, entries: list[object], spec: str) -> tuple[list[Record], ImportSummary]:
    """Records of a JSON source whose images `a.png` are 40 x 30, and the summary."""
    root = tmp_path / "src"
    image(root / "a.png")
    write_json(root / "data.json", entries)
    (tmp_path / "spec.yaml").write_text(spec)
    source = Source(root / "data.json", tmp_path / "out", spec=tmp_path / "spec.yaml")
    summary = run_import("json", FORMATS["json"].importer, source)
    return [
        record for split in summary.splits.values() for record in Manifest(tmp_path / "out" / split.manifest)
    ], summary


OFFSETS = "{image: image, text: text, entities: {list: found, start: s, end: e, boxes: boxes}}"


@pytest.mark.parametrize("text", ["  a 猫 sits", ["  a 猫 sits"]], ids=["text", "list of one text"])
def test_offsets_are_those_of_the_text_as_it_is(tmp_path: Path, text: object) -> None:
    entry = {"image": "a.png", "text": text, "found": [{"s": 4, "e": 5}]}
    (record,), _ = import_json(tmp_path, [entry], OFFSETS)
    assert spans(record) == {"猫": ()}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("train.clean", "train.clean"),  # as `datasets` allows
        ("test set ", "test-set"),
        ("训练集", "训练集"),
        (1, "1"),
        ("../../x", "x"),
        ("..", "all"),
        ("", "all"),
        (None, "all"),
        (math.nan, "all"),
    ],
)
def test_splits_keep_names_that_tell_them_apart(given: object, name: str) -> None:
    assert split_name(given) == name


def test_a_group_a_type_or_a_label_may_be_the_number_0(tmp_path: Path) -> None:
    spec = """{image: image, text: text, group: group, lang: lang, objects: {list: found, box: box, label: kind},
      entities: {list: found, start: s, end: e, type: kind}}"""
    found = [{"s": 0, "e": 1, "kind": 0, "box": [0, 0, 9, 9]}]
    entries = [{"image": "a.png", "text": "猫", "group": group, "found": found} for group in (0, None, math.nan)]
    imported, _ = import_json(tmp_path, entries, spec)
    assert [record.group for record in imported] == ["0", "", ""]
    assert (imported[0].entities[0].type, imported[0].objects[0].label, imported[0].lang) == ("0", "0", "")


@pytest.mark.parametrize("boxes", [{"x": 1, "y": 2}, "[1, 2, 3, 4]", [True, 2, 3, 4], ["1", "2", "3", "4"]], ids=repr)
def test_what_is_no_box_is_not_taken_for_an_entity_without_one(tmp_path: Path, boxes: object) -> None:
    good = {"image": "a.png", "text": "猫", "found": [{"s": 0, "e": 1, "boxes": None}]}
    bad = [good | {"found": [{"s": 0, "e": 1, "boxes": boxes}]}, good | {"found": [{"s": False, "e": True}]}]
    imported, summary = import_json(tmp_path, [good, *bad], OFFSETS)
    assert [record.id for record in imported] == ["1"]
    assert summary.splits["all"].oddity_counts == {"unusable record": 2}


def test_an_entity_that_lost_its_boxes_may_be_shown(tmp_path: Path) -> None:
    outside = [[90, 90, 95, 95]]
    found = [{"s": 0, "e": 1, "boxes": boxes} for boxes in ([], outside, [*outside, [0, 0, 9, 9]])]
    entries = [{"image": "a.png", "text": "猫", "found": [entry]} for entry in found]
    imported, summary = import_json(tmp_path, entries, OFFSETS)
    assert [record.entities[0].ambiguous for record in imported] == [False, True, False]
    assert summary.splits["all"].oddity_counts == {"unusable box": 2}


def test_a_box_beyond_all_floats_is_left_out(tmp_path: Path) -> None:
    entry = {"image": "a.png", "text": "猫", "found": [{"s": 0, "e": 1, "boxes": [1.7e308] * 4}]}
    imported, summary = import_json(tmp_path, [entry], OFFSETS[:-1] + ", boxes: x y width height}")
    assert [record.entities[0].ambiguous for record in imported] == [True]
    assert summary.splits["all"].oddity_counts == {"unusable box": 1}
