"""The manifest: what it accepts, what it refuses and in which words, and its index."""

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spanbox.data import manifest as manifest_module
from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record, encode_record, write_manifest
from spanbox.errors import DataError

LINE = '{"id":"1","image":"a.jpg","text":"a red cat"}'


def written(tmp_path: Path, *lines: str, name: str = "m.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def with_entity(fields: str) -> str:
    return f'{LINE[:-1]},"entities":[{{{fields}}}]}}'


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.npy")


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
    record = Record("1", "a.jpg", "The  Garfield\tPARK .")
    assert record.identity_key(Entity(5, 18)) == "garfield park"
    assert record.identity_key(Entity(5, 18, identity=" Garfield Park,  Chicago ")) == "garfield park, chicago"


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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "the line: is no JSON"),
        (LINE[:-1], "the line: is no JSON (Input data was truncated)"),
        (f"{LINE} {LINE}", "the line: is no JSON (JSON is malformed: trailing characters"),
        ("[]", "the line: Expected `object`, got `array`; see docs/data.md"),
        ('{"id":"1","image":"a.jpg"}', "the line: Object missing required field `text`; see docs/data.md"),
        ('{"id":7,"image":"a.jpg","text":""}', "id: Expected `str`, got `int`; see docs/data.md"),
        ('{"id":"","image":"a.jpg","text":""}', "id: is empty; give it a value"),
        ('{"id":"1","image":"","text":""}', "image: is empty; give it a value"),
        (f'{LINE[:-1]},"caption":"x"}}', "the line: Object contains unknown field `caption`; see docs/data.md"),
        (f'{LINE[:-1]},"lang":null}}', "lang: Expected `str`, got `null`; see docs/data.md"),
        (with_entity('"start":0'), "entities[0]: Object missing required field `end`; see docs/data.md"),
        (with_entity('"start":0,"end":1,"bbox":[]'), "entities[0]: Object contains unknown field `bbox`"),
        (with_entity('"start":0,"end":1.0'), "entities[0].end: Expected `int`, got `float`; see docs/data.md"),
        (
            with_entity('"start":2,"end":10'),
            "entities[0]: [2, 10) is no span of a text of 9 characters; offsets are half-open and count Unicode code "
            "points from 0",
        ),
        (with_entity('"start":2,"end":2'), "entities[0]: [2, 2) is no span"),
        (with_entity('"start":-3,"end":2'), "entities[0]: [-3, 2) is no span"),
        (with_entity('"start":1,"end":2'), "entities[0]: holds nothing but white space; remove it or move its edges"),
        (with_entity('"start":0,"end":1,"boxes":[1,2,3,4]'), "entities[0].boxes[0]: Expected `array`, got `int`"),
        (with_entity('"start":0,"end":1,"boxes":[[1,2,3]]'), "entities[0].boxes[0]: Expected `array` of length 4"),
        (
            with_entity('"start":0,"end":1,"boxes":[[1,2,3,"4"]]'),
            "entities[0].boxes[0][3]: Expected `float`, got `str`",
        ),
        (with_entity('"start":0,"end":1,"boxes":[[1,2,3,1e999]]'), "entities[0].boxes[0][3]: Number out of range"),
        (with_entity('"start":0,"end":1,"boxes":[[1,2,3,NaN]]'), "the line: is no JSON"),
        (
            f'{LINE[:-1]},"objects":[{{"score":1}}]}}',
            "objects[0]: Object missing required field `box`; see docs/data.md",
        ),
    ],
)
def test_a_wrong_line_is_named_with_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, LINE, "", line)
    with pytest.raises(DataError) as raised:
        Manifest(path)
    assert str(raised.value).startswith(f"{path}, line 3: {message}")


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(LINE.replace("red", "rot für").encode("latin-1"))
    with pytest.raises(DataError, match=r"line 1: the line: is no JSON \('utf-8' codec can't decode"):
        Manifest(path)


def test_no_manifest_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such manifest; expected a JSON Lines file"):
        Manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"m\.jsonl: the manifest is empty; expected one JSON object a line"):
        Manifest(written(tmp_path, "", "  "))


@pytest.mark.parametrize(
    "content",
    [
        f"{LINE}\n{LINE}\n",
        f"{LINE}\n{LINE}",  # no newline at the end
        f"{LINE}\r\n{LINE}\r\n",
        f"\n{LINE}\n\n  \n{LINE}\n\n",
        f"\ufeff{LINE}\n{LINE}\n",  # a byte order mark, as editors on Windows write it
        f"\ufeff\n{LINE}\n{LINE}\n",
    ],
)
def test_line_ends_blank_lines_and_byte_order_marks_do_not_matter(tmp_path: Path, content: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content.encode())
    for _ in ("index made", "index read"):
        manifest = Manifest(path)
        assert [record.text for record in manifest] == ["a red cat"] * 2


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
    with pytest.raises(DataError, match=r"m\.jsonl: has 2 pairs, not 3; ask for fewer"):
        Manifest(written(tmp_path, LINE, LINE), subset=3)


INVERTED = [
    (5.0, 0.0, 5.0, 9.0),  # no width
    (0.0, 9.0, 5.0, 3.0),  # upside down
    (7.0, 0.0, 5.0, 9.0),
]


@pytest.mark.parametrize("box", INVERTED)
def test_an_inverted_box_refuses_the_manifest(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    path = tmp_path / "m.jsonl"
    good = Entity(0, 1, boxes=((0.0, 0.0, 1.0, 1.0),))
    write_manifest(path, [Record("1", "a.jpg", "cat", entities=(good, Entity(1, 2, boxes=(*good.boxes, box))))])
    for _ in ("index made", "index read"):
        with pytest.raises(DataError) as raised:
            Manifest(path)
        assert str(raised.value) == (
            f"{path}, line 1: entities[1].boxes[1]: {list(box)} has no area; a box is [x0, y0, x1, y1] with x0 < x1 "
            "and y0 < y1. Mend it, or set data.inverted_boxes=drop to leave such boxes out"
        )


def test_an_inverted_proposal_refuses_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, [Record("1", "a.jpg", "cat", objects=(ObjectBox(INVERTED[0]),))])
    with pytest.raises(DataError, match=r"objects\[0\]\.box: \[5\.0, 0\.0, 5\.0, 9\.0\] has no area"):
        Manifest(path)


def test_inverted_boxes_can_be_dropped_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = (0.0, 0.0, 1.0, 1.0)
    entity = Entity(0, 1, boxes=(INVERTED[0], good, INVERTED[1]))
    record = Record("1", "a.jpg", "cat", entities=(entity,), objects=(ObjectBox(INVERTED[2]), ObjectBox(good)))
    write_manifest(path, [record])
    for _ in ("index made", "index read"):
        manifest = Manifest(path, inverted_boxes="drop")
        assert manifest.inverted_count == 3
        assert manifest[0].entities[0].boxes == (good,)
        assert manifest[0].objects == (ObjectBox(good),)


def test_boxes_that_are_not_finite_count_as_inverted() -> None:
    nan, inf = float("nan"), float("inf")
    for box in ((0.0, 0.0, nan, 1.0), (0.0, 0.0, inf, 1.0), (0.0, -inf, 1.0, 1.0)):
        assert manifest_module.is_inverted(box)


def test_the_second_opening_reads_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, LINE, LINE)
    Manifest(path)
    monkeypatch.setattr(manifest_module, "manifest_lines", lambda _: pytest.fail("the lines were read again"))
    assert len(Manifest(path)) == 2


def test_no_image_is_touched(tmp_path: Path) -> None:
    assert not (tmp_path / "a.jpg").exists()
    assert Manifest(written(tmp_path, LINE))[0].image == "a.jpg"


def test_a_changed_manifest_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    assert len(Manifest(path)) == 1
    written(tmp_path, LINE, LINE)
    assert len(Manifest(path)) == 2
    # The same size: only the time tells.
    path.write_text(f"{LINE}\n{LINE}\n".replace("cat", "dog"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert Manifest(path)[1].text == "a red dog"


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"nonsense" * 100, b"\x80\x04K\x01."])
def test_a_damaged_index_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, LINE)
    Manifest(path)
    index_of(path).write_bytes(content)
    assert Manifest(path)[0].text == "a red cat"
    assert np.load(index_of(path)).tolist()[-2:] == [0, 0]


@pytest.mark.parametrize("array", [np.zeros(0, dtype=np.int64), np.zeros((3, 3), dtype=np.int64), np.zeros(9)])
def test_an_index_of_another_kind_is_made_anew(tmp_path: Path, array: np.ndarray) -> None:
    path = written(tmp_path, LINE)
    np.save(index_of(path), array)
    assert Manifest(path)[0].text == "a red cat"


def test_an_index_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    path = written(tmp_path, *[LINE] * 50)
    Manifest(path)
    index_of(path).write_bytes(index_of(path).read_bytes()[:-80])
    assert len(Manifest(path)) == 50


def test_a_folder_that_cannot_be_written_needs_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, LINE)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert Manifest(path)[0].text == "a red cat"
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


def test_others_may_read_the_index(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    Manifest(path)
    assert index_of(path).stat().st_mode & 0o777 == 0o644


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
