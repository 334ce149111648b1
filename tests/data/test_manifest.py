"""The manifest: records as they are written and read, one by one, in parts and by several readers."""

import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from manifest_files import LINE, written
from spanbox.data.audit import audit
from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record, encode_record, identity_key, write_manifest
from spanbox.errors import DataError


def test_a_line_needs_id_image_and_text_only(tmp_path: Path) -> None:
    record = Manifest(written(tmp_path, LINE))[0]
    assert record == Record(id="1", image="a.jpg", text="a red cat")
    assert record.group_key == "a.jpg"


def test_every_field_survives_writing_and_reading(tmp_path: Path) -> None:
    record = Record(
        id="1",
        image="images/a.jpg",
        text="a red cat",
        group="g",
        lang="en",
        entities=(
            Entity(6, 9, "animal", "felis catus", ((1.5, 2.0, 30.25, 40.0), (0.0, 0.0, 5.0, 5.0)), ambiguous=True),
        ),
        objects=(ObjectBox((0.0, 341.8, 95.6, 787.6), 0.22, "person"),),
    )
    path = tmp_path / "new" / "m.jsonl"
    assert write_manifest(path, [record]) == 1
    manifest = Manifest(path)
    assert list(manifest) == [record]
    assert manifest.image_path(manifest[0]) == tmp_path / "new" / "images" / "a.jpg"


def test_defaults_are_not_written() -> None:
    assert encode_record(Record("1", "a.jpg", "cat")) == b'{"id":"1","image":"a.jpg","text":"cat"}\n'


def test_an_identity_is_the_folded_text_unless_given() -> None:
    text = "The  Garfield\tPARK ."
    assert identity_key(text, Entity(5, 18)) == "garfield park"
    assert identity_key(text, Entity(5, 18, identity=" Garfield Park,  Chicago ")) == "garfield park, chicago"


@pytest.mark.parametrize(
    ("text", "start", "end", "span"),
    [
        ("一只红色的猫坐在垫子上", 2, 6, "红色的猫"),
        ("a 🐈\u200d⬛ and a 🚗 !", 2, 5, "🐈\u200d⬛"),  # beyond the BMP: one code point each, not two
        ("a 🐈\u200d⬛ and a 🚗 !", 12, 13, "🚗"),
        ("cafe\u0301 noir", 0, 5, "cafe\u0301"),  # a combining accent counts
    ],
)
def test_offsets_count_code_points(tmp_path: Path, text: str, start: int, end: int, span: str) -> None:
    record = Record("1", "a.jpg", text, entities=(Entity(start, end),))
    path = tmp_path / "m.jsonl"
    write_manifest(path, [record])
    read = Manifest(path)[0]
    assert read.span_text(read.entities[0]) == span


def test_an_escaped_surrogate_pair_is_one_code_point(tmp_path: Path) -> None:
    line = r'{"id":"1","image":"a.jpg","text":"\ud83d\udc08 !","entities":[{"start":2,"end":3}]}'
    record = Manifest(written(tmp_path, line))[0]
    assert record.text == "🐈 !"
    assert record.span_text(record.entities[0]) == "!"


def test_no_manifest_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such manifest; expected a JSON Lines file"):
        Manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"m\.jsonl: the manifest is empty; expected one JSON object per line"):
        Manifest(written(tmp_path, "", "  "))


def test_a_git_lfs_pointer_in_place_of_a_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    for reader in (Manifest, lambda path: audit([path])):
        with pytest.raises(DataError, match=r"m\.jsonl: is a Git LFS pointer, not the file itself; run git lfs pull"):
            reader(tmp_path / "m.jsonl")


def test_a_manifest_is_a_sequence(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, (Record(str(i), "a.jpg", "t") for i in range(5)))
    manifest = Manifest(path)
    assert len(manifest) == 5
    assert manifest[-1].id == "4"
    assert [record.id for record in manifest[1:4:2]] == ["1", "3"]
    assert [record.id for record in reversed(manifest)] == ["4", "3", "2", "1", "0"]
    with pytest.raises(IndexError):
        manifest[5]


@pytest.mark.parametrize("subset", [1, 2, 3, 7, 10])
def test_a_subset_is_spread_evenly(tmp_path: Path, subset: int) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, (Record(str(i), "a.jpg", "t") for i in range(10)))
    part = Manifest(path, subset=subset)
    lines = [int(record.id) for record in part]
    assert len(part) == len(lines) == subset
    assert lines[0] == 0
    gaps = np.diff([*lines, 10])
    assert gaps.max() - gaps.min() <= 1
    assert [record.id for record in pickle.loads(pickle.dumps(part))] == [record.id for record in part]  # noqa: S301
    assert part[-1] == part[subset - 1]
    with pytest.raises(IndexError):
        part[subset]


def test_a_subset_larger_than_the_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.jsonl: has 2 pairs, not 3; set a smaller subset"):
        Manifest(written(tmp_path, LINE, LINE), subset=3)


def test_no_image_is_touched(tmp_path: Path) -> None:
    assert not (tmp_path / "a.jpg").exists()
    assert Manifest(written(tmp_path, LINE))[0].image == "a.jpg"


@pytest.mark.parametrize("prepare", [Path.mkdir, os.mkfifo])
def test_a_manifest_that_is_no_file_is_named(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    path = tmp_path / "m.jsonl"
    prepare(path)
    with pytest.raises(DataError, match=r"m\.jsonl: is a (folder|pipe or a device).*; expected a JSON Lines file"):
        Manifest(path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_path_that_no_file_has_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        Manifest(tmp_path / name)


@pytest.mark.parametrize(
    "image",
    ["images/a.png", "./images/a.png", "images//a.png", "images/./a.png", "images/../images/a.png", ".//images/a.png"],
)
def test_one_image_in_several_spellings_is_one_group(image: str) -> None:
    assert Record("1", image, "t").group_key == "images/a.png"
    assert Record("1", image, "t", group="./g").group_key == "./g"  # a name, not a path


def test_other_images_are_other_groups() -> None:
    others = ["images/a.png", "images/A.png", "images/b.png", "../images/a.png", "/images/a.png", "images\\a.png"]
    assert len({Record("1", image, "t").group_key for image in others}) == len(others)
    assert Record("1", "//images/a.png", "t").group_key == "/images/a.png"


def test_a_pickled_manifest_is_small_and_reads_on(tmp_path: Path) -> None:
    path = written(tmp_path, *[LINE] * 1000)
    manifest = Manifest(path, inverted_boxes="drop")
    assert manifest[3].text == "a red cat"
    pickled = pickle.dumps(manifest)
    assert len(pickled) < 500
    copy = pickle.loads(pickled)  # noqa: S301 - pickled two lines above
    assert len(copy) == 1000
    assert copy[999] == manifest[999]


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    """As forked workers do, threads share the open file: a read position of that file would mix their lines up."""
    path = tmp_path / "m.jsonl"
    write_manifest(path, (Record(str(i), "a.jpg", "t" * (i % 50)) for i in range(2000)))
    manifest = Manifest(path)
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: [record.id for record in manifest], range(4)))
    assert ids == [[str(i) for i in range(2000)]] * 4


def test_writing_is_complete_or_not_at_all(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)

    def failing() -> Iterator[Record]:
        yield Record("2", "b.jpg", "new")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_manifest(path, failing())
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]
    assert path.read_text() == f"{LINE}\n"
