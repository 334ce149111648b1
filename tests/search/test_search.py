"""Embedding to files and search in them: the same features as in memory, interrupted or not, exact against a loop."""

import errno
import json
import os
import shutil
import tarfile
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import miniature
import spanbox
from embedded import write
from spanbox.api import Model
from spanbox.data.manifest import Box, Manifest, ObjectBox, Record, write_manifest
from spanbox.engine.distributed import Ranks
from spanbox.errors import ConfigError, DataError, OutputError
from spanbox.search import embedding
from spanbox.search.embedding import Embedded, embed_source, items_file
from spanbox.search.index import open_index
from spanbox.search.query import encode_query, query_image
from spanbox.search.sources import Kind, Source, open_source
from spanbox.wiring import train

KINDS: tuple[Kind, ...] = ("images", "texts", "spans", "regions")
SUFFIXES = [".npy", pytest.param(".parquet", marks=pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow"))]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PART", 5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_features_of_a_manifest(model: Model, scenes: Path, tmp_path: Path, kind: Kind, suffix: str) -> None:
    manifest = Manifest(scenes / "test.jsonl")
    write(model, manifest.path, tmp_path / f"out{suffix}", kind)
    index = open_index(tmp_path / f"out{suffix}")
    expected: list[Any] = []
    for record in manifest:
        image = manifest.image_path(record)
        if kind == "images":
            expected.append(model.encode_images(image)[None])
        elif kind == "texts":
            expected.append(model.encode_texts(record.text)[None])
        elif kind == "spans":
            expected.append(model.encode_spans(record.text, [(each.start, each.end) for each in record.entities]))
        else:
            boxes = dict.fromkeys([box for each in record.entities for box in each.boxes])
            boxes |= dict.fromkeys(each.box for each in record.objects)
            expected.append(model.encode_regions(image, list(boxes)))
    np.testing.assert_allclose(index.features, np.concatenate(expected), rtol=0, atol=2e-6)
    assert (index.kind, len(index)) == (kind, len(index.columns))
    first = index.columns[0]
    assert first["id"] == manifest[0].id
    if kind == "spans":
        assert first["sentence"][first["start"] : first["end"]] == first["text"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_run_gives_the_same_file(
    model: Model, scenes: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scenes / "test.jsonl"
    whole, resumed = tmp_path / f"whole{suffix}", tmp_path / f"resumed{suffix}"
    assert write(model, source, whole, "images").resumed == 0
    encode = embedding._encode
    calls = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Interrupted
        return encode(*arguments)

    monkeypatch.setattr(embedding, "_encode", interrupted)
    with pytest.raises(Interrupted):
        write(model, source, resumed, "images")
    assert not resumed.exists()
    assert write(model, source, resumed, "images").resumed == 1
    assert calls == 4  # of three parts the first was not encoded again
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_large_manifest_is_not_held_in_memory(tmp_path: Path) -> None:
    records = [Record(id=str(number), image="a.jpg", text="a" * 40_000) for number in range(500)]
    write_manifest(tmp_path / "large.jsonl", records)
    Manifest(tmp_path / "large.jsonl")  # its index is made once
    tracemalloc.start()
    open_source(tmp_path / "large.jsonl", "texts")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (tmp_path / "large.jsonl").stat().st_size / 10


def test_parts_of_another_source_are_not_used(model: Model, scenes: Path, tmp_path: Path) -> None:
    parts = tmp_path / ".out.npy.parts"
    parts.mkdir()
    (parts / "0123456789abcdef-000000.json").write_text("[]")
    assert write(model, scenes / "test.jsonl", tmp_path / "out.npy", "texts").resumed == 0
    assert len(open_index(tmp_path / "out.npy")) == 12


def test_a_second_command_that_writes_the_same_file(
    model: Model, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other settings: neither takes parts of the other."""
    source = open_source(scenes / "test.jsonl", "images")
    encode, calls = embedding._encode, list[int]()

    def encode_with_a_second_command(model: Model, source: Source, items: Any, batch_size: int) -> Any:
        calls.append(batch_size)
        if calls == [2, 2]:  # the first is in its second part
            with pytest.raises(Interrupted):
                embed_source(model, source, tmp_path / "out.npy", batch_size=1, ranks=Ranks())
        elif calls == [2, 2, 1, 1]:  # the second has written its first part
            raise Interrupted
        return encode(model, source, items, batch_size)

    monkeypatch.setattr(embedding, "_encode", encode_with_a_second_command)
    with pytest.raises(OutputError, match="another command writes the same file"):
        embed_source(model, source, tmp_path / "out.npy", batch_size=2, ranks=Ranks())
    assert not (tmp_path / "out.npy").exists()
    done = embed_source(model, source, tmp_path / "out.npy", batch_size=1, ranks=Ranks())
    assert done == Embedded(12, 1, [])


@pytest.mark.parametrize("form", ["manifest", "csv", "folder"])
def test_an_image_that_was_replaced_is_encoded_again(
    model: Model, scenes: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all parts were finished: the command was interrupted while it wrote the file."""
    good, image = scenes / "images" / "test" / "test-000000.jpg", tmp_path / "images" / "a.jpg"
    image.parent.mkdir()
    shutil.copy(good, image.with_name("b.jpg"))
    image.write_bytes(b"x")
    (tmp_path / "list.csv").write_text("image\nimages/a.jpg\nimages/b.jpg\n")
    records = [Record(id=name, image=f"images/{name}.jpg", text=name) for name in "ab"]
    write_manifest(tmp_path / "pairs.jsonl", records)
    source = {"manifest": tmp_path / "pairs.jsonl", "csv": tmp_path / "list.csv", "folder": image.parent}[form]
    assemble = embedding._assemble
    monkeypatch.setattr(embedding, "_assemble", lambda *_: pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception):
        write(model, source, tmp_path / "out.npy", "images")
    monkeypatch.setattr(embedding, "_assemble", assemble)
    shutil.copy(good, image)
    assert write(model, source, tmp_path / "out.npy", "images") == Embedded(2, 0, [])


def test_processes_share_the_parts(model: Model, scenes: Path, tmp_path: Path) -> None:
    """Two ranks, one after the other: the main one assembles what both encoded."""

    class Rank(Ranks):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank, self.world_size = rank, 2

        @property
        def is_main(self) -> bool:
            return self.rank == 0

        def wait_for_all(self) -> None:
            if self.rank == 0 and not done:
                done.append(embed_source(model, source, out, batch_size=2, ranks=Rank(1)))

    source, out = open_source(scenes / "test.jsonl", "texts"), tmp_path / "out.npy"
    done: list[Embedded | None] = []
    both = embed_source(model, source, out, batch_size=2, ranks=Rank(0))
    assert done == [None]
    assert both is not None
    assert both.rows == 12
    write(model, scenes / "test.jsonl", tmp_path / "one.npy", "texts")
    assert out.read_bytes() == (tmp_path / "one.npy").read_bytes()


def test_broken_images_are_left_out_and_listed(model: Model, scenes: Path, tmp_path: Path) -> None:
    records = [Record(id=record.id, image=record.image, text="a") for record in Manifest(scenes / "test.jsonl")]
    records[3] = Record(id="gone", image="images/gone.jpg", text="a")
    path = scenes / "with-gone.jsonl"
    write_manifest(path, records)
    done = write(model, path, tmp_path / "out.npy", "images")
    assert done.rows == 11
    ((kind, sample, detail),) = done.incidents
    assert (kind, sample) == ("images left out", "gone")
    assert "no such file" in detail


def test_a_disk_that_fills_up_leaves_features_with_their_own_rows(
    model: Model, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.npy"
    write(model, scenes / "test.jsonl", out, "texts")
    before = out.read_bytes(), items_file(out).read_bytes()
    write_manifest(tmp_path / "turned.jsonl", list(Manifest(scenes / "test.jsonl"))[::-1])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OutputError, match="No space left"):
        write(model, tmp_path / "turned.jsonl", out, "texts")
    assert (out.read_bytes(), items_file(out).read_bytes()) == before


@pytest.mark.parametrize(
    "box",
    [(900.0, 900.0, 950.0, 950.0), (30.0, 30.0, 10.0, 10.0), (20.0, 8.0, 20.0, 30.0)],
    ids=["outside", "inverted", "no area"],
)
def test_a_box_that_cannot_be_used_costs_no_other_box(model: Model, scenes: Path, tmp_path: Path, box: Box) -> None:
    manifest = Manifest(scenes / "test.jsonl")
    own = [each.box for each in manifest[0].objects]
    objects = tuple(ObjectBox(each) for each in (own[0], box, *own[1:]))
    records = [Record(id="odd", image=manifest[0].image, text="a", objects=objects), *list(manifest)[1:3]]
    write_manifest(scenes / "odd.jsonl", records)
    done = write(model, scenes / "odd.jsonl", tmp_path / "out.npy", "regions")
    index = open_index(tmp_path / "out.npy")
    found = [(row["x0"], row["y0"], row["x1"], row["y1"]) for row in index.columns if row["id"] == "odd"]
    assert found == own
    np.testing.assert_allclose(
        index.features[: len(own)], model.encode_regions(manifest.image_path(manifest[0]), own), atol=2e-6
    )
    ((kind, sample, detail),) = done.incidents
    assert (kind, sample, "1 of 1 boxes have no area" in detail) == ("regions left out", "odd", True)


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    """It would be written with question marks, and its image not be found again."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    with pytest.raises(DataError, match=r"'\\udcff\.jpg' is not a name in UTF-8"):
        open_source(tmp_path, "images")


def test_an_item_whose_features_are_not_finite_is_left_out(
    model: Model, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model gives that has diverged: in the file they would end every search."""
    bad = Manifest(scenes / "test.jsonl")[3]
    encode = Model.encode_texts

    def diverged(self: Model, texts: Any, **options: Any) -> Any:
        features = encode(self, texts, **options)
        features[[text == bad.text for text in texts]] = np.nan
        return features

    monkeypatch.setattr(Model, "encode_texts", diverged)
    done = write(model, scenes / "test.jsonl", tmp_path / "out.npy", "texts")
    assert bad.id in {incident.sample for incident in done.incidents}
    assert done.rows == 12 - len(done.incidents) > 0
    assert "not finite" in done.incidents[0].detail
    assert np.isfinite(open_index(tmp_path / "out.npy").features).all()


class TestRefusals:
    def test_sources(self, scenes: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="a folder has images, no spans"):
            open_source(scenes, "spans")
        with pytest.raises(DataError, match="no images"):
            open_source(tmp_path, "images")
        with pytest.raises(DataError, match="--column names a column of a CSV file"):
            open_source(scenes / "test.jsonl", "texts", "title")

    def test_outputs(self, model: Model, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(OutputError, match=r"ends in \.parquet or \.npy"):
            write(model, scenes / "test.jsonl", tmp_path / "out.txt", "texts")
        monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
        with pytest.raises(ConfigError, match=r"pip install 'spanbox\[parquet\]'"):
            write(model, scenes / "test.jsonl", tmp_path / "out.parquet", "texts")

    def test_nothing_to_embed(self, model: Model, scenes: Path, tmp_path: Path) -> None:
        path = scenes / "plain.jsonl"
        write_manifest(path, [Record(id="a", image="images/gone.jpg", text="a")])
        for kind in ("spans", "images"):
            with pytest.raises(DataError, match="nothing to embed"):
                write(model, path, tmp_path / "out.npy", kind)  # type: ignore[arg-type]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_nothing_to_embed_keeps_an_earlier_file(
        self, model: Model, scenes: Path, tmp_path: Path, suffix: str
    ) -> None:
        out = tmp_path / f"out{suffix}"
        write(model, scenes / "test.jsonl", out, "images")
        write_manifest(tmp_path / "gone.jsonl", [Record(id="a", image="gone.jpg", text="a")])
        with pytest.raises(DataError, match="nothing to embed"):
            write(model, tmp_path / "gone.jsonl", out, "images")
        assert len(open_index(out)) == 12

    @pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PAR1"])
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_files_that_are_no_index(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        (tmp_path / f"x{suffix}").write_bytes(content)
        (tmp_path / "x.items.jsonl").write_bytes(b"")
        with pytest.raises(DataError, match="no index that `spanbox embed` wrote"):
            open_index(tmp_path / f"x{suffix}")

    @pytest.mark.parametrize(
        "row",
        [b"[]", b'{"id": "a"}', b'{"id": "a", "text": 3}', b'{"id": "a", "text": "b", "c": 1}', b"[" * 9999, b"\xff"],
    )
    def test_damaged_rows(self, model: Model, scenes: Path, tmp_path: Path, row: bytes) -> None:
        write(model, scenes / "test.jsonl", tmp_path / "out.npy", "texts")
        head, _, *rows = (tmp_path / "out.items.jsonl").read_bytes().splitlines()
        (tmp_path / "out.items.jsonl").write_bytes(b"\n".join([head, row, *rows]))
        with pytest.raises(DataError, match="no index that `spanbox embed` wrote"):
            open_index(tmp_path / "out.npy")

    @pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow")
    def test_parquet_with_other_columns(self, model: Model, scenes: Path, tmp_path: Path) -> None:
        import pyarrow

        path = tmp_path / "out.parquet"
        write(model, scenes / "test.jsonl", path, "texts")
        table = pyarrow.parquet.read_table(path)
        empty = pyarrow.array([None] * len(table), pyarrow.string())
        for changed in (table.drop_columns(["text"]), table.set_column(1, "text", empty)):
            pyarrow.parquet.write_table(changed, path)
            with pytest.raises(DataError, match="its columns are not those of texts"):
                open_index(path)

    def test_an_index_of_another_model(self, model: Model, scenes: Path, tmp_path: Path) -> None:
        """Of the same size: its features look alike, and mean nothing to each other."""
        train(miniature.demo_config(scenes, tmp_path / "run", "train.steps=1", "seed=5"))
        write(model, scenes / "test.jsonl", tmp_path / "out.npy", "texts")
        index = open_index(tmp_path / "out.npy")
        with pytest.raises(DataError, match="has other weights than the model that made it"):
            encode_query(spanbox.load(tmp_path / "run"), index, "a boat")

    def test_an_image_that_is_not_there_is_no_text(self, model: Model, scenes: Path, tmp_path: Path) -> None:
        write(model, scenes / "test.jsonl", tmp_path / "out.npy", "images")
        with pytest.raises(DataError, match=r"nowhere\.JPG: no such image"):
            encode_query(model, open_index(tmp_path / "out.npy"), "nowhere.JPG")


def test_an_image_in_a_tar_as_the_query(model: Model, scenes: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(scenes / "images" / "test", arcname="")
    records = list(Manifest(scenes / "test.jsonl"))
    members = [f"images.tar/{Path(record.image).name}" for record in records]
    in_tar = [Record(record.id, member, record.text) for record, member in zip(records, members, strict=True)]
    write_manifest(tmp_path / "in_tar.jsonl", in_tar)
    write(model, tmp_path / "in_tar.jsonl", tmp_path / "out.npy", "images")
    index = open_index(tmp_path / "out.npy")
    (hit,) = index.nearest(encode_query(model, index, f"{tmp_path}/{members[3]}"), 1)
    assert hit.values["image"] == members[3]
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such image"):
        encode_query(model, index, f"{tmp_path}/images.tar/nowhere.jpg")


def test_a_query_that_is_also_the_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kite").mkdir()
    assert query_image("kite") is None


@pytest.mark.parametrize("kind", KINDS)
def test_queries(model: Model, scenes: Path, tmp_path: Path, kind: Kind) -> None:
    """A query that is an item of the index finds it first; in a fine index a text is a span, an image a region."""
    write(model, scenes / "test.jsonl", tmp_path / "out.npy", kind)
    index = open_index(tmp_path / "out.npy")
    record = Manifest(scenes / "test.jsonl")[2]
    query = str(scenes / record.image) if kind == "images" else record.text
    feature = encode_query(model, index, query)
    assert feature.shape == (model.dim,)
    if kind in ("images", "texts"):
        best = index.nearest(feature, 1)[0]
        assert best.score == pytest.approx(1, abs=1e-5)
        assert index.columns[best.row][kind[:-1]] == (record.image if kind == "images" else record.text)
    for bad in ("", "  \n"):
        with pytest.raises(DataError, match="the query is empty"):
            encode_query(model, index, bad)
    assert json.dumps(index.nearest(feature, 2)[0].values)
