"""Importers of Parquet files and of data sets saved by Hugging Face's `datasets`."""

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spanbox.data.importers import ImportSummary, arrow
from spanbox.data.importers.arrow import with_class_names
from spanbox.data.importers.driver import Source, run_import
from spanbox.data.importers.formats import FORMATS
from spanbox.data.manifest import Manifest, Record
from spanbox.errors import DataError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SPEC = """
image: image
text: caption
entities: {list: phrases, text: words, boxes: box, type: kind}
objects: {list: objects, box: bbox, label: category, score: score}
boxes: x y width height
"""
FEATURES = {
    "phrases": [{"words": {"_type": "Value"}, "kind": {"_type": "ClassLabel", "names": ["animal", "thing"]}}],
    "objects": {"_type": "Sequence", "feature": {"category": {"_type": "ClassLabel", "names": ["cat", "mat"]}}},
}


def picture(colour: str = "red") -> bytes:
    from io import BytesIO

    file = BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


def table(rows: list[dict[str, Any]], features: object = None) -> Any:
    found = pa.Table.from_pylist(rows)
    position = found.schema.get_field_index("image")
    if position >= 0 and isinstance(rows[0]["image"], dict):
        found = found.set_column(position, "image", pa.array([row["image"] for row in rows], IMAGE))
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features or {}}})})


def save(folder: Path, found: Any, split: str | None = "train") -> Path:
    """As `Dataset.save_to_disk` does, in two files."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    half = found.num_rows // 2
    for name, part in zip(names, (found.slice(0, half), found.slice(half)), strict=True):
        with pa.ipc.new_stream(str(folder / name), found.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_fingerprint": "a"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def run(name: str, root: Path, out: Path, spec: str | None = None, images: Path | None = None) -> ImportSummary:
    path = None
    if spec is not None:
        path = out.parent / "spec.yaml"
        path.write_text(spec)
    return run_import(name, FORMATS[name].importer, Source(root, out, images, path))


def records(out: Path, split: str = "all") -> list[Record]:
    return list(Manifest(out / f"{split}.jsonl"))


def rows(count: int = 5) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": picture(("red", "blue")[i % 2]), "path": f"{i}.png"}, "text": f"第{i}张图片 {i}"}
        for i in range(count)
    ]


def annotated() -> dict[str, Any]:
    return {
        "image": {"bytes": picture(), "path": "a.png"},
        "caption": "the 猫 on a mat",
        "phrases": [
            {"words": "猫", "box": [10.0, 5.0, 20.0, 20.0], "kind": 0},
            {"words": "mat", "box": None, "kind": 1},
        ],
        "objects": {"bbox": [[0.0, 0.0, 10.0, 10.0]], "category": [1], "score": [0.5]},
    }


class TestParquet:
    def test_bytes_of_images(self, tmp_path: Path) -> None:
        parquet.write_table(table(rows()), tmp_path / "train-00000-of-00001.parquet", row_group_size=2)
        run("parquet", tmp_path / "train-00000-of-00001.parquet", tmp_path / "out")
        found = records(tmp_path / "out", "train")
        assert [(record.id, record.text) for record in found] == [(str(i + 1), f"第{i}张图片 {i}") for i in range(5)]
        manifest = Manifest(tmp_path / "out" / "train.jsonl")
        assert [manifest.image_path(record).read_bytes() for record in found] == [
            row["image"]["bytes"] for row in rows()
        ]
        assert len({record.group_key for record in found}) == 2  # equal images are one file

    def test_a_folder_has_splits_by_name_or_folder(self, tmp_path: Path) -> None:
        root = tmp_path / "src"
        (root / "dev").mkdir(parents=True)
        for name in ("train-00000-of-00002", "train-00001-of-00002", "test", "dev/0000"):
            parquet.write_table(table(rows(2)), root / f"{name}.parquet")
        summary = run("parquet", root, tmp_path / "out")
        assert {name: split.counts["pairs"] for name, split in summary.splits.items()} == {
            "dev": 2, "test": 2, "train": 4,
        }  # fmt: skip

    @pytest.mark.parametrize(
        "names",
        [
            ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),  # the layout of the Hub
            ("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "test-00000-of-00001-566cc9b19d7203f8.parquet"),
            ("data/train.parquet", "data/test.parquet"),
            ("train-00001.parquet", "test-00001.parquet"),
            ("train/some-00000-of-00001.parquet", "test/some-00000-of-00001.parquet"),
        ],
        ids=lambda names: names[0],
    )
    def test_splits_of_the_usual_layouts_stay_apart(self, tmp_path: Path, names: tuple[str, str]) -> None:
        for path in (tmp_path / "src" / name for name in names):
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(table(rows(2)), path)
        assert sorted(run("parquet", tmp_path / "src", tmp_path / "out").splits) == ["test", "train"]

    def test_splits_of_one_kind_or_of_other_names_stay_apart(self, tmp_path: Path) -> None:
        root = tmp_path / "src"
        root.mkdir()
        names = ("test-clean", "dev-clean", "testA-00000-of-00002", "训练", "测试")
        for name in names:
            parquet.write_table(table(rows(1)), root / f"{name}.parquet")
        assert sorted(run("parquet", root, tmp_path / "out").splits) == sorted(
            ("test-clean", "dev-clean", "testA", "训练", "测试")
        )

    def test_paths_of_images_and_other_columns(self, tmp_path: Path) -> None:
        root = tmp_path / "src"
        root.mkdir()
        (root / "a.png").write_bytes(picture())
        given = [{"file": "a.png", "title": "一只猫", "lang": "zh"}, {"file": "gone.png", "title": "a", "lang": "en"}]
        given += [
            {"file": "../../secret.png", "title": "b", "lang": "en"},
            {"file": "a.png", "title": None, "lang": ""},
        ]
        parquet.write_table(table(given), root / "data.parquet")
        summary = run("parquet", root / "data.parquet", tmp_path / "out", "{image: file, text: title, lang: lang}")
        found = records(tmp_path / "out", "data")
        assert [(record.text, record.lang) for record in found] == [("一只猫", "zh"), ("a", "en")]
        assert Manifest(tmp_path / "out" / "data.jsonl").image_path(found[0]).read_bytes() == picture()
        assert summary.splits["data"].oddity_counts == {"missing image": 1, "unusable record": 2}

    def test_entities_objects_and_names_of_classes(self, tmp_path: Path) -> None:
        bad = annotated() | {"objects": {"bbox": [[0.0, 0.0, 10.0, 10.0]], "category": [1], "score": [float("nan")]}}
        huge = annotated()
        huge["objects"] = {"bbox": [[-1e300, 0.0, 2e300, 10.0], [50.0, 50.0, 5.0, 5.0]], "category": [0, 7]}
        huge["objects"]["score"] = [0.1, 0.2]
        parquet.write_table(table([annotated(), bad, huge], FEATURES), tmp_path / "test.parquet")
        summary = run("parquet", tmp_path / "test.parquet", tmp_path / "out", SPEC)
        record, other = records(tmp_path / "out", "test")
        assert [(record.span_text(e), e.type, e.boxes) for e in record.entities] == [
            ("猫", "animal", ((10.0, 5.0, 30.0, 25.0),)), ("mat", "thing", ()),
        ]  # fmt: skip
        assert [(o.box, o.label, o.score) for o in record.objects] == [((0.0, 0.0, 10.0, 10.0), "mat", 0.5)]
        assert [(o.box, o.label) for o in other.objects] == [((0.0, 0.0, 40.0, 10.0), "cat")]
        assert summary.splits["test"].oddity_counts == {"unusable record": 1, "unusable box": 1, "clipped box": 1}

    def test_several_captions_of_an_image_are_pairs_of_one_group(self, tmp_path: Path) -> None:
        given = [{"image": {"bytes": picture(), "path": None}, "caption": ["a cat", " 一只猫 "]}]
        parquet.write_table(table([*given, given[0] | {"caption": []}]), tmp_path / "a.parquet")
        summary = run("parquet", tmp_path / "a.parquet", tmp_path / "out")
        found = records(tmp_path / "out", "a")
        assert [(record.id, record.text) for record in found] == [("1-0", "a cat"), ("1-1", "一只猫")]
        assert found[0].group_key == found[1].group_key
        assert summary.splits["a"].oddity_counts == {"unusable record": 1}

    def test_wrong_columns_are_named(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"jpg": [b"x"], "title": ["a"]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match="has the columns jpg, title; expected image and text"):
            run("parquet", tmp_path / "a.parquet", tmp_path / "out")
        with pytest.raises(DataError, match="has no column 'place', but jpg"):
            run("parquet", tmp_path / "a.parquet", tmp_path / "out", "{image: jpg, text: place}")

    @pytest.mark.parametrize("image", [b"no image", b"", None, pickle.dumps("x")])
    def test_bytes_that_are_no_image_are_counted(self, tmp_path: Path, image: bytes | None) -> None:
        given = [{"image": {"bytes": image, "path": None}, "text": "a"}, rows(1)[0]]
        parquet.write_table(table(given), tmp_path / "a.parquet")
        summary = run("parquet", tmp_path / "a.parquet", tmp_path / "out")
        assert summary.splits["a"].oddity_counts == {"unusable record": 1}
        assert len(records(tmp_path / "out", "a")) == 1


def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    os.mkfifo(tmp_path / "src" / "a.parquet")
    with pytest.raises(DataError, match="is not a file that can be read"):
        run("parquet", tmp_path / "src", tmp_path / "out")


class TestSavedDatasets:
    def test_a_dataset(self, tmp_path: Path) -> None:
        root = save(tmp_path / "saved", table(rows()))
        run("huggingface", root, tmp_path / "out")
        found = records(tmp_path / "out", "train")
        assert [record.text for record in found] == [row["text"] for row in rows()]
        assert Manifest(tmp_path / "out" / "train.jsonl").image_path(found[1]).read_bytes() == picture("blue")

    def test_a_dict_of_datasets(self, tmp_path: Path) -> None:
        save(tmp_path / "saved" / "train", table(rows()), split=None)
        save(tmp_path / "saved" / "validation", table(rows(2)), split=None)
        (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
        summary = run("huggingface", tmp_path / "saved", tmp_path / "out")
        assert {name: split.counts["pairs"] for name, split in summary.splits.items()} == {"train": 5, "validation": 2}

    def test_one_file_in_either_form(self, tmp_path: Path) -> None:
        for name, new in (("flickr-train", pa.ipc.new_stream), ("test", pa.ipc.new_file)):
            found = table(rows())
            with new(str(tmp_path / f"{name}.arrow"), found.schema) as writer:
                writer.write_table(found, max_chunksize=2)
            run("huggingface", tmp_path / f"{name}.arrow", tmp_path / "out")
            assert len(records(tmp_path / "out", name.removeprefix("flickr-"))) == 5

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "not the plain name"),
            ("state.json", '{"_data_files": [{"filename": ".."}]}', "not the plain name"),
            ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', "no such file, but state.json lists it"),
            ("state.json", '{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}', "save it again"),
            ("state.json", '{"_data_files": 5}', "not in the format that is expected"),
            ("state.json", "{", "is not JSON"),
            ("dataset_dict.json", '{"splits": ["../saved"]}', "not the plain name"),
            ("dataset_dict.json", '{"splits": ["gone"]}', "is not a file that can be read"),
        ],
    )
    def test_a_wrong_description_is_an_error(self, tmp_path: Path, file: str, content: str, message: str) -> None:
        root = save(tmp_path / "saved", table(rows()))
        (root / file).write_text(content)
        with pytest.raises(DataError, match=message):
            run("huggingface", root, tmp_path / "out")


def test_names_of_classes_in_every_form_of_a_list() -> None:
    label = {"_type": "ClassLabel", "names": ["a", "b"]}
    assert with_class_names(1, label) == "b"
    assert with_class_names(-1, label) == -1
    assert with_class_names(None, label) is None
    for feature in ([label], {"_type": "Sequence", "feature": label}, {"_type": "List", "feature": label}):
        assert with_class_names([0, 1, 5], feature) == ["a", "b", 5]
    objects = {"kind": [1, 0], "other": [1, 0]}
    assert with_class_names(objects, {"_type": "Sequence", "feature": {"kind": label}}) == objects | {
        "kind": ["b", "a"]
    }
    assert with_class_names([{"kind": 1}], {"_type": "List", "feature": {"kind": label}}) == [{"kind": "b"}]
    assert with_class_names({"x": 1}, "nonsense") == {"x": 1}


def test_a_pickle_in_a_schema_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Executes:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("executed"),)

    monkeypatch.chdir(tmp_path)
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Executes())}
    schema = pa.schema([pa.field("image", IMAGE), pa.field("text", pa.string(), metadata=metadata)])
    found = pa.Table.from_pylist(rows(), schema=schema)
    save(tmp_path / "saved", found)
    parquet.write_table(found, tmp_path / "a.parquet")
    for name, root in (("huggingface", tmp_path / "saved"), ("parquet", tmp_path / "a.parquet")):
        with suppress(DataError):
            run(name, root, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["parquet", "huggingface"])
@pytest.mark.parametrize("damage", ["cut", "tail", "bytes", "empty", "pickle", "types"])
def test_a_damaged_file_is_an_error_or_counted(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / f"a.{'arrow' if name == 'huggingface' else name}"
    found = table(rows())
    if damage == "types":
        found = pa.table({"image": [1, 2], "text": [[1.5], None]})
    if name == "parquet":
        parquet.write_table(found, path)
    else:
        with pa.ipc.new_stream(str(path), found.schema) as writer:
            writer.write_table(found)
    content = path.read_bytes()
    path.write_bytes({
        "cut": content[: len(content) // 2],
        "tail": content[:-9],
        "bytes": bytes(byte ^ 0x55 if i % 97 == 5 else byte for i, byte in enumerate(content)),
        "empty": b"",
        "pickle": pickle.dumps(["x"]),
        "types": content,
    }[damage])  # fmt: skip
    with pytest.raises(DataError, match=r"a\.(parquet|arrow)"):
        run(name, path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.parametrize("name", ["parquet", "huggingface"])
def test_a_second_import_gives_the_same_files(tmp_path: Path, name: str) -> None:
    root = tmp_path / "train.parquet"
    if name == "parquet":
        parquet.write_table(table(rows()), root)
    else:
        root = save(tmp_path / "saved", table(rows()))
    seen = []
    for _ in range(2):
        run(name, root, tmp_path / "out")
        seen.append({path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()})
    assert seen[0] == seen[1]


def test_a_batch_with_wrong_offsets_is_refused(tmp_path: Path) -> None:
    """pyarrow reads offsets of a stream as they are: outside of the buffer of values, this would end the process."""
    batch = pa.record_batch([[picture()], ["a" * 77]], names=["image", "text"])
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    content = (tmp_path / "a.arrow").read_bytes()
    offsets = b"\0\0\0\0" + (77).to_bytes(4, "little")
    before, found, after = content.rpartition(offsets)
    assert found
    (tmp_path / "a.arrow").write_bytes(before + b"\0\0\0\0\xff\xff\xff\x7f" + after)
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read, it is damaged"):
        run("huggingface", tmp_path / "a.arrow", tmp_path / "out")


def test_a_stream_cut_between_two_batches_is_refused(tmp_path: Path) -> None:
    found = table(rows())
    sizes = []
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, found.schema) as writer:
        for batch in found.to_batches(max_chunksize=2):
            writer.write_batch(batch)
            sizes.append(file.tell())
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[: sizes[0]])
    with pytest.raises(DataError, match=r"a\.arrow: was cut off"):
        run("huggingface", tmp_path / "a.arrow", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parquet", "huggingface"])
def test_a_small_file_that_unpacks_to_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(arrow, "LARGEST_BATCH", 32 << 20)
    zeros = table([{"image": {"bytes": bytes(96 << 20), "path": "a.png"}, "text": "a cat"}])
    path = tmp_path / f"few-kilobytes.{'parquet' if name == 'parquet' else 'arrow'}"
    if name == "parquet":
        parquet.write_table(zeros, path, compression="zstd", use_dictionary=False)
    else:
        with pa.ipc.new_stream(path, zeros.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(zeros)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="a batch of its rows takes more than 32 MiB; save it with fewer rows"):
        run(name, path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_large_rows_of_parquet_are_read_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "USUAL_BATCH", 300)
    path = tmp_path / "many.parquet"
    parquet.write_table(
        table([{"image": {"bytes": picture(), "path": None}, "text": f"cat {n}"} for n in range(9)]), path
    )
    assert next(arrow._parquet_batches(path, None)).num_rows < 9
    assert run("parquet", path, tmp_path / "out").splits["many"].counts["pairs"] == 9
