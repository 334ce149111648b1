"""Importers of published formats: on small fixtures, on damaged copies, and on hostile files."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spanbox.data.importers import ImportSummary, driver
from spanbox.data.importers import captions as caption_files
from spanbox.data.importers.coco import link_words, plural
from spanbox.data.importers.driver import Source, run_import
from spanbox.data.importers.flickr30k import parse_sentence
from spanbox.data.importers.formats import FORMATS
from spanbox.data.importers.pickles import read_plain_pickle
from spanbox.data.manifest import Manifest, Record, encode_record
from spanbox.data.source import stored
from spanbox.errors import DataError

BOX = (10.0, 5.0, 30.0, 25.0)


def image(path: Path, size: tuple[int, int] = (40, 30)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path.read_bytes()


def run(name: str, root: Path, **options: Any) -> ImportSummary:
    return run_import(name, FORMATS[name].importer, Source(root, root.parent / "out", **options))


def records(root: Path, split: str = "all") -> list[Record]:
    return list(Manifest(root.parent / "out" / f"{split}.jsonl"))


def spans(record: Record) -> dict[str, tuple[tuple[float, ...], ...]]:
    return {record.span_text(entity): entity.boxes for entity in record.entities}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# Flickr30k Entities


def flickr30k(root: Path) -> Path:
    image(root / "flickr30k-images" / "17.jpg")
    (root / "Sentences").mkdir()
    (root / "Annotations").mkdir()
    (root / "Sentences" / "17.txt").write_text(
        "[/EN#1/people A woman] holds [/EN#2/bodyparts/people a man 's arm] in [/EN#3/scene a park] "
        "with [/EN#0/notvisual it] .\n"
        "Nothing of the kind .\n"
    )
    (root / "Annotations" / "17.xml").write_text(
        "<annotation><size><width>40</width><height>30</height></size>"
        "<object><name>1</name><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox></object>"
        "<object><name>1</name><name>2</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>90</xmax><ymax>9</ymax></bndbox></object>"
        "<object><name>2</name><bndbox><xmin>x</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"
    )
    (root / "train.txt").write_text("17\n18\n")
    (root / "UNRELATED_CAPTIONS").write_text("# format: <imageID> <sentence number>\n17 2\n")
    return root


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


def test_a_phrase_ends_at_the_first_token_that_ends_in_a_bracket() -> None:
    assert parse_sentence("[/EN#5/other x] y] [/EN#6/people/other 一 猫] z") == (
        "x y] 一 猫 z",
        [(0, 1, "5", "other"), (5, 8, "6", "people")],
    )
    assert parse_sentence("[/EN#5/other never closed") == ("never closed", [])


# COCO and RefCOCO


def instances() -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 77, "name": "cell phone"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 18,
                "bbox": [10, 5, 20, 20],
                "iscrowd": 0,
                "segmentation": [[1, 2]],
            },
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [20, 0, 90, 10], "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [50, 50, 5, 5]},
        ],
    }


def captions() -> dict[str, Any]:
    texts = ["Two men and a dog . ", "The puppy's bone", "nothing"]
    return {"annotations": [{"image_id": 7, "id": i, "caption": text} for i, text in enumerate(texts)]}


def coco(root: Path) -> Path:
    image(root / "val2017" / "7.jpg")
    write_json(root / "annotations" / "instances_val2017.json", instances())
    write_json(root / "annotations" / "captions_val2017.json", captions())
    return root


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
    assert first.group == second.group
    assert first.text == "Two men and a dog ."
    assert summary.splits["val"].oddity_counts == {"box of a crowd": 1, "unusable box": 1}


def test_words_that_name_a_category() -> None:
    boxes = [("cell phone", BOX), ("person", BOX), ("mouse", BOX)]
    text = "A woman's Cell Phones, mice and a telephone; manhole"
    assert [text[e.start : e.end] for e in link_words(text, boxes)] == ["Cell Phones", "woman", "mice"]
    assert [plural(word) for word in ("bus", "knife", "city", "boy", "wine glass", "sandwich")] == [
        "buses", "knives", "cities", "boys", "wine glasses", "sandwiches",
    ]  # fmt: skip


def refcoco(root: Path, references: object) -> Path:
    root.mkdir(exist_ok=True)
    (root / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    write_json(root / "instances.json", instances())
    image(root / "train2014" / "7.jpg")
    return root


def reference(**fields: Any) -> dict[str, Any]:
    sentences = [{"sent_id": 4, "sent": "the dog", "raw": "The dog!"}, {"sent_id": 5, "sent": "left one"}]
    return {"ref_id": 3, "ann_id": 1, "image_id": 7, "split": "testA", "sentences": sentences} | fields


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


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = [{"a": [1, -300, 2**40, 1.5, None, True, "猫", ""], "b": {}}, [], "x" * 300, list(range(2000))]
    (tmp_path / "x.p").write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(tmp_path / "x.p") == value


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'caf\xe9'\np3\nsS'id'\np4\nI5\nsa.")
    assert read_plain_pickle(tmp_path / "x.p") == [{"raw": "café", "id": 5}]


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps((1, 2)),
        pickle.dumps({1}),
        pickle.dumps(frozenset({1})),
        pickle.dumps(bytearray(b"a")),
        pickle.dumps(Path("a")),
        b"\x80\x02]2.",  # an operation that copies a reference
        b"\x80\x02\x8a\xff.",
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"(ios\nsystem\n.",
        b"\x82\x01.",
        b"Pid\n.",
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.p").write_bytes(content)
    with pytest.raises(DataError, match="refused"):
        read_plain_pickle(tmp_path / "x.p")


def test_a_small_pickle_takes_little_memory(tmp_path: Path) -> None:
    """Python's own unpickler reserves 64 GB for these twelve bytes."""
    (tmp_path / "x.p").write_bytes(b"\x80\x02]r\xff\xff\xff\xff.")
    assert read_plain_pickle(tmp_path / "x.p") == []


class Executes:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("content", [pickle.dumps(Executes()), pickle.dumps([Executes()], 2), b"\x80\x02c", b"", b"("])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    root = refcoco(tmp_path / "src", [])
    (root / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match="refused"):
        run("refcoco", root)
    assert not (tmp_path / "executed").exists()


# Visual Genome


@pytest.mark.parametrize("version", ["1.0", "1.4"])
def test_visual_genome(tmp_path: Path, version: str) -> None:
    old = version == "1.0"
    region = {"phrase": " a red dog ", "x": 10, "y": 5, "width": 20, "height": 20}
    regions = [region | ({"id": 4, "image": 1} if old else {"region_id": 4, "image_id": 1})]
    regions += [region | {"x": -5, "width": 15, "region_id": 5, "image_id": 1}, region | {"width": 0, "region_id": 6}]
    root = tmp_path / "src"
    write_json(root / "region_descriptions.json", [{"id": 1, "regions": regions}, {"id": 2, "regions": [region]}])
    write_json(
        root / "objects.json",
        [{"id" if old else "image_id": 1, "objects": [{"x": 1, "y": 2, "w": 3, "h": 4, "names": ["dog"]}]}],
    )
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
    assert [(o.box, o.label) for o in one.objects] == [((1.0, 2.0, 4.0, 6.0), "dog")]
    assert Manifest(tmp_path / "out" / "all.jsonl").image_path(one).is_file()
    assert summary.splits["all"].oddity_counts == {
        "clipped box": 1, "unusable box": 1, "region of an unknown image": 1,
    }  # fmt: skip


# Captions and tables


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
    assert [r.text for r in records(root)] == ["A dog, red"]


def test_tables_with_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "src" / "t.tsv"
    image(path.parent / "a.png")
    path.write_text("file\ttitle\tlanguage\tnumber\na.png\t红色的猫\tzh\t7\n\ta dog\ten\t8\n", encoding="utf-8")
    (tmp_path / "spec.yaml").write_text("{image: file, text: title, lang: language, id: number}")
    summary = run_import(
        "table", FORMATS["table"].importer, Source(path, tmp_path / "out", spec=tmp_path / "spec.yaml")
    )
    (record,) = Manifest(tmp_path / "out" / "all.jsonl")
    assert (record.id, record.text, record.lang) == ("7", "红色的猫", "zh")
    assert summary.splits["all"].oddity_counts == {"wrong line": 1}
    with pytest.raises(DataError, match="has no column 'image', but file, title, language, number"):
        run_import("table", FORMATS["table"].importer, Source(path, tmp_path / "out"))


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
        "all.jsonl",
        "train.jsonl",
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


@pytest.mark.parametrize("value", [json.loads('"\\ud800"'), "x" * 20_000_000])
def test_what_a_manifest_cannot_hold_is_counted(tmp_path: Path, value: str) -> None:
    """Half a surrogate pair, and a line that is too long."""
    spec = tmp_path / "spec.yaml"
    spec.write_text("{image: i, text: t, group: g}")
    write_json(tmp_path / "d.json", [{"i": "a.png", "t": "一", "g": value}, {"i": "a.png", "t": "b"}])
    summary = run("json", tmp_path / "d.json", spec=spec)
    assert summary.splits["all"].oddity_counts == {"missing image": 1, "unusable record": 1}
    assert [record.text for record in Manifest(tmp_path / "out" / "all.jsonl")] == ["b"]


# WebDataset


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def test_webdataset(tmp_path: Path) -> None:
    picture = image(tmp_path / "a.png")
    described = encode_record(Record("r", "x.png", "a cat", lang="en"))
    members: dict[str, bytes | str] = {
        "s/1.png": picture, "s/1.txt": "一只猫".encode(),
        "s/2.png": picture, "s/2.json": described,
        "s/3.png": picture, "s/3.json": b'{"caption": "a dog", "url": "u"}',
        "s/4.png": picture, "s/5.txt": b"no image", "s/6.png": picture, "s/6.json": b"{",
    }  # fmt: skip
    root = tmp_path / "src"
    write_tar(root / "0.tar", members)
    summary = run("webdataset", root)
    assert [(r.id, r.text, r.meta) for r in records(root)] == [
        ("s-1", "一只猫", {}), ("r", "a cat", {}), ("s-3", "a dog", {"url": "u"}),
    ]  # fmt: skip
    manifest = Manifest(tmp_path / "out" / "all.jsonl")
    assert [stored(manifest.image_path(record)).read() for record in manifest] == [picture] * 3
    assert summary.splits["all"].oddity_counts == {"unusable record": 2, "sample without an image": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "all.jsonl", "all.jsonl.index.npy", "import.json",
    ]  # fmt: skip


def test_a_hostile_tar_names_nothing_outside_of_it(tmp_path: Path) -> None:
    picture = image(tmp_path / "a.png")
    members: dict[str, bytes | str] = {
        "../../evil.png": picture, "../../evil.txt": b"a", "/tmp/evil2.png": picture, "/tmp/evil2.txt": b"b",
        "link.png": "/etc/passwd", "link.txt": b"c", "x/../../..png": picture, "x/../../..txt": b"d",
        "good.png": picture, "good.txt": b"e",
    }  # fmt: skip
    write_tar(tmp_path / "in" / "src" / "0.tar", members)
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    summary = run("webdataset", tmp_path / "in" / "src")
    after = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert after - before == {tmp_path / "in" / "src" / "0.tar.index.npy"}
    assert not Path("/tmp/evil2.png").exists()
    assert [record.image for record in Manifest(tmp_path / "in" / "out" / "all.jsonl")] == ["../src/0.tar/good.png"]
    assert summary.splits["all"].oddity_counts == {"member that is not read": 7, "sample without an image": 1}


# All of them


SOURCES: dict[str, Callable[[Path], Path]] = {
    "flickr30k-entities": flickr30k,
    "coco": coco,
    "refcoco": lambda root: refcoco(root, [reference()]),
    "webdataset": lambda root: write_tar(root / "0.tar", {"1.png": image(root / "i.png"), "1.txt": b"a"}).parent,
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_second_import_gives_the_same_files(tmp_path: Path, name: str) -> None:
    root = SOURCES[name](tmp_path / "src")
    seen: list[dict[str, bytes]] = []
    for _ in range(2):
        run(name, root)
        seen.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()})
    assert seen[0] == {name: content for name, content in seen[1].items() if ".index." not in name}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("damage", ["cut", "types", "bytes", "empty"])
def test_a_damaged_source_is_an_error_or_counted(tmp_path: Path, name: str, damage: str) -> None:
    root = SOURCES[name](tmp_path / "src")
    for path in [path for path in root.rglob("*") if path.is_file() and path.suffix not in (".jpg", ".png")]:
        content = path.read_bytes()
        changed = {
            "cut": content[: len(content) // 2],
            "types": content.replace(b"40", b'"x"').replace(b"7", b"-1e99"),
            "bytes": bytes(byte ^ 0x55 if i % 7 == 0 else byte for i, byte in enumerate(content)),
            "empty": b"",
        }[damage]
        path.write_bytes(changed)
        with suppress(DataError):
            run(name, root)
        path.write_bytes(content)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_missing_source_names_what_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match=r"src|--spec"):
        run(name, tmp_path / "src")
    assert not list(tmp_path.glob("out/*.jsonl"))


def test_names_of_images_cannot_leave_their_folder(tmp_path: Path) -> None:
    for bad in ("../../etc/passwd", "/etc/passwd"):
        root = coco(tmp_path / "src")
        content = instances()
        content["images"][0]["file_name"] = bad
        write_json(root / "annotations" / "instances_val2017.json", content)
        with pytest.raises(DataError, match="lies outside of its folder"):
            run("coco", root)
