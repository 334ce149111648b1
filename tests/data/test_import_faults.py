"""Sources that would be imported wrongly in silence: each is refused, or counted, and nothing is left of a refusal."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spanbox.data.importers import ImportSummary
from spanbox.data.importers.driver import Source, run_import
from spanbox.data.importers.formats import FORMATS
from spanbox.data.manifest import Manifest, Record
from spanbox.errors import DataError, OutputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images and two specs."""
    (tmp_path / "in" / "images").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 30)).save(tmp_path / "in" / "images" / f"{number}.png")
    (tmp_path / "in" / "plain.yaml").write_text("image: image\ntext: text\nsplit: split\n")
    (tmp_path / "in" / "named.yaml").write_text("image: image\ntext: text\nentities: {list: names, text: name}\n")
    (tmp_path / "in" / "placed.yaml").write_text(
        "image: image\ntext: text\nentities: {list: names, start: start, end: end}\n"
    )
    return tmp_path / "in"


def run(name: str, root: Path, out: Path | None = None, **options: Any) -> ImportSummary:
    return run_import(name, FORMATS[name].importer, Source(root, out or root.parent / "out", **options))


def read(root: Path, split: str = "all") -> list[Record]:
    return list(Manifest(root.parent / "out" / f"{split}.jsonl"))


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_the_source_is_not_replaced_by_a_manifest(folder: Path) -> None:
    source = folder / "train.jsonl"
    source.write_text('{"image": "0.png", "text": "a cat", "split": "train"}\n')
    before = source.read_bytes()
    with pytest.raises(OutputError, match="is read by this command"):
        run("json", source, folder / ".", spec=folder / "plain.yaml")
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "ending"), [("table", "csv"), ("json", "json"), ("json", "jsonl"), ("parquet", "parquet")]
)
def test_a_git_lfs_pointer_is_named(folder: Path, name: str, ending: str) -> None:
    source = folder / f"train.{ending}"
    source.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(DataError, match=r"train\.\w+: is a Git LFS pointer, not the file itself; run git lfs pull"):
        run(name, source, spec=folder / "plain.yaml")


@pytest.mark.parametrize("encoding", ["latin-1", "gb18030", "utf-16"])
@pytest.mark.parametrize("name", ["table", "json", "flickr8k"])
def test_texts_in_another_encoding_are_refused(folder: Path, name: str, encoding: str) -> None:
    text = "un café" if encoding == "latin-1" else "一只红色的猫"
    content, ending = {
        "table": (f"image,text\n0.png,{text}\n", "csv"),
        "json": (f'{{"image": "0.png", "text": "{text}"}}\n', "jsonl"),
        "flickr8k": (f"0.png#0\t{text}\n", "txt"),
    }[name]
    source = folder / f"source.{ending}"
    source.write_text(content, encoding=encoding)
    spec = folder / "plain.yaml" if name == "json" else None
    with pytest.raises(DataError, match=r"is not UTF-8, at .* save it as UTF-8") as refused:
        run(name, source, spec=spec)
    advice = str(refused.value).partition("iconv")[2]
    assert ("-f utf-16" in advice) == (encoding == "utf-16")
    assert ("gb18030" in advice) == (encoding != "utf-16")
    assert not (folder / "out").exists()


def test_the_list_of_what_was_left_out_does_not_replace_the_source(folder: Path) -> None:
    source = write_json(folder / "import.json", [{"image": "0.png", "text": "猫"}])
    with pytest.raises(OutputError, match=r"import\.json: is read by this command"):
        run_import("json", FORMATS["json"].importer, Source(source, folder, spec=folder / "plain.yaml"))
    assert json.loads(source.read_text()) == [{"image": "0.png", "text": "猫"}]


def test_a_field_with_a_value_for_each_record_is_no_split(folder: Path) -> None:
    entries = [{"image": "0.png", "text": "猫", "split": f"s{number}"} for number in range(101)]
    with pytest.raises(DataError, match=r"more than 100 splits \(s0, s1, s2, \.\.\.\); name another field as `split`"):
        run("json", write_json(folder / "s.json", entries), spec=folder / "plain.yaml")
    assert not (folder / "out").exists()


def test_of_two_columns_of_one_name_none_is_chosen(folder: Path) -> None:
    (folder / "t.csv").write_text("image,text,text\n0.png,a cat,一只猫\n")
    with pytest.raises(DataError, match="has two columns 'text'; rename one"):
        run("table", folder / "t.csv")


def test_lines_of_json_under_another_ending_are_told_to_be_renamed(folder: Path) -> None:
    lines = '{"image": "0.png", "text": "猫"}\n' * 2
    (folder / "s.json").write_text(lines)
    with pytest.raises(DataError, match=r"if each line is an object, rename it to \.jsonl"):
        run("json", folder / "s.json", spec=folder / "plain.yaml")
    (folder / "s.jsonl").write_text(lines)
    assert run("json", folder / "s.jsonl", spec=folder / "plain.yaml").splits["all"].counts["pairs"] == 2


def test_a_table_has_splits_and_refuses_lists(folder: Path) -> None:
    (folder / "t.csv").write_text("image,text,split\n0.png,a cat,train\n1.png,a dog,val\n1.png,a fox,../up\n")
    run("table", folder / "t.csv", spec=folder / "plain.yaml")
    assert {s: [r.text for r in read(folder / "t.csv", s)] for s in ("train", "val", "up")} == {
        "train": ["a cat"],
        "val": ["a dog"],
        "up": ["a fox"],
    }
    with pytest.raises(DataError, match="a table has no lists"):
        run("table", folder / "t.csv", spec=folder / "named.yaml")


def test_a_quotation_mark_that_takes_lines_with_it_is_noted(folder: Path) -> None:
    (folder / "t.tsv").write_text('image\ttext\n0.png\t"A cat\n1.png\ta dog\n1.png\tthe "end\n1.png\ta fox\n')
    summary = run("table", folder / "t.tsv")
    assert [r.text for r in read(folder / "t.tsv")] == ["A cat\n1.png\ta dog\n1.png\tthe end", "a fox"]
    (noted,) = (o for o in summary.splits["all"].oddities if o.kind == "text over several lines")
    assert (noted.where, noted.detail.partition(":")[0]) == ("t.tsv, row 1", "to line 4")


def test_coco_of_two_years_is_refused(folder: Path) -> None:
    for year in (2014, 2017):
        content = {"annotations": [{"image_id": 1, "caption": "a cat"}], "images": [{"id": 1, "file_name": "0.png"}]}
        write_json(folder / f"captions_train{year}.json", content)
    with pytest.raises(DataError, match=r"captions_train2014\.json and captions_train2017\.json are both train"):
        run("coco", folder)


def test_entities_of_several_captions(folder: Path) -> None:
    """Each caption has the entities that it names; offsets would be those of an unknown caption."""
    names = [{"name": "cat", "start": 2, "end": 5}, {"name": "dog", "start": 2, "end": 5}]
    captions = ["a concatenated cat", "a dog", "一只猫和狗"]
    source = write_json(folder / "s.json", [{"image": "0.png", "text": captions, "names": names}])
    run("json", source, spec=folder / "named.yaml")
    assert [[(e.start, e.end) for e in r.entities] for r in read(source)] == [[(15, 18)], [(2, 5)], []]
    with pytest.raises(DataError, match="one of 3 texts: unknown of which"):
        run("json", source, spec=folder / "placed.yaml")


def test_entities_of_one_name_have_places_of_their_own(folder: Path) -> None:
    names = [{"name": "cat"}, {"name": "cat"}]
    source = write_json(folder / "s.json", [{"image": "0.png", "text": "a cat beside a cat", "names": names}])
    run("json", source, spec=folder / "named.yaml")
    assert [(e.start, e.end) for e in read(source)[0].entities] == [(2, 5), (15, 18)]


def test_an_entity_listed_for_each_of_its_boxes_is_one_entity(folder: Path) -> None:
    """Two dogs, of which one has a box outside the image; and a cat, whose only box is."""
    boxes = [[1, 1, 5, 5], [6, 6, 9, 9], [90, 1, 99, 5]]
    names = [{"name": "dogs", "box": box} for box in boxes] + [{"name": "cat", "box": boxes[2]}] * 2
    source = write_json(folder / "s.json", [{"image": "0.png", "text": "two dogs, a cat", "names": names}])
    (folder / "boxed.yaml").write_text("image: image\ntext: text\nentities: {list: names, text: name, boxes: box}\n")
    run("json", source, spec=folder / "boxed.yaml")
    (record,) = read(source)
    assert [(record.span_text(e), len(e.boxes), e.ambiguous) for e in record.entities] == [
        ("dogs", 2, False),
        ("cat", 0, True),
    ]


def test_captions_of_flickr30k_keep_their_numbers_and_their_bytes_are_looked_at(folder: Path) -> None:
    (folder / "Sentences").mkdir()
    (folder / "train.txt").write_text("17\n")
    (folder / "Sentences" / "17.txt").write_bytes("a\u2028cat\nun café\n".encode() + b"caf\xe9\n")
    (folder / "UNRELATED_CAPTIONS").write_text("IMAGE SENTENCE\n17 2\n17 ²\n")
    summary = run("flickr30k-entities", folder)
    assert [(r.id, r.text) for r in read(folder, "train")] == [("17-0", "a cat"), ("17-2", "caf\ufffd")]
    assert summary.splits["train"].oddity_counts["caption that is not UTF-8"] == 1


def test_a_large_file_of_sentences_is_not_read(folder: Path) -> None:
    (folder / "Sentences").mkdir()
    (folder / "train.txt").write_text("17\n")
    with (folder / "Sentences" / "17.txt").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(DataError, match=r"17\.txt: is larger than 1 MiB"):
        run("flickr30k-entities", folder)


@pytest.mark.parametrize("content", ["[", "[]", '[{"image": 1}]'])
def test_nothing_is_left_of_a_failed_import(folder: Path, content: str) -> None:
    (folder / "s.json").write_text(content)
    out = folder / "deep" / "er" / "out"
    with pytest.raises(DataError):
        run("json", folder / "s.json", out, spec=folder / "plain.yaml")
    assert not (folder / "deep").exists()
    out.parent.mkdir(parents=True)
    with pytest.raises(DataError):
        run("json", folder / "s.json", out, spec=folder / "plain.yaml")
    assert out.parent.is_dir()
    assert not out.exists()


def test_a_record_of_a_tar_keeps_its_entities_beside_fields_of_others(folder: Path) -> None:
    content = {"text": "a cat", "url": "u", "entities": [{"start": 2, "end": 5}], "meta": {"kept": 1}}
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in (
            ("1.png", (folder / "images" / "0.png").read_bytes()),
            ("1.json", json.dumps(content).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    run("webdataset", folder / "a.tar")
    (record,) = read(folder / "a.tar")
    assert [record.span_text(entity) for entity in record.entities] == ["cat"]
    assert record.meta == {"url": "u", "kept": 1}
