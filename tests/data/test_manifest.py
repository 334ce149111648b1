"""The manifest: what it accepts, what it refuses and in which words, and its index."""

import errno
import json
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spanbox.data import manifest as manifest_module
from spanbox.data.line_index import HEADER
from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record, encode_record, manifest_lines, write_manifest
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
        ("not json", "the line: is not JSON"),
        (LINE[:-1], "the line: is not JSON (Input data was truncated)"),
        (f"{LINE} {LINE}", "the line: is not JSON (JSON is malformed: trailing characters"),
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
        (with_entity('"start":0,"end":1,"boxes":[[1,2,3,NaN]]'), "the line: is not JSON"),
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
    with pytest.raises(DataError, match=r"line 1: the line: is not JSON \('utf-8' codec can't decode"):
        Manifest(path)


def test_no_manifest_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such manifest; expected a JSON Lines file"):
        Manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"m\.jsonl: the manifest is empty; expected one JSON object per line"):
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
    with pytest.raises(DataError, match=r"m\.jsonl: has 2 pairs, not 3; set a smaller subset"):
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
            "and y0 < y1. Fix it, or set data.inverted_boxes=drop to leave such boxes out; if all boxes are x y width "
            "height, convert them (spanbox data check tests for that)"
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
        assert manifest[0].entities[0] == Entity(0, 1, boxes=(good,))
        assert manifest[0].objects == (ObjectBox(good),)


def test_an_entity_that_loses_all_its_boxes_may_still_be_shown(tmp_path: Path) -> None:
    """Dropped boxes do not make it an entity that the text only names."""
    write_manifest(tmp_path / "m.jsonl", [Record("1", "a.jpg", "cat", entities=(Entity(0, 1, boxes=INVERTED[:1]),))])
    (entity,) = Manifest(tmp_path / "m.jsonl", inverted_boxes="drop")[0].entities
    assert (entity.boxes, entity.ambiguous) == ((), True)


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


LINES = [f'{{"id":"{i}","image":"a.jpg","text":"{"t" * i}"}}' for i in range(50)]


def array_of(path: Path) -> np.ndarray:
    return np.load(index_of(path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"\x93NUMPY",
        lambda content: b"PK\x03\x04",
        lambda content: b"nonsense" * 100,
        lambda content: b"\x80\x04K\x01.",
        lambda content: content[:-80],
        lambda content: content[:-3],
        lambda content: content + bytes(8),
        lambda content: content.replace(b",", b"(", 1),  # the tokenizer of Python fails on it
        lambda content: content.replace(b"'shape': (", b"'shape': (9999999999999999999,", 1),
        lambda content: content.replace(b"<i8", b"|O ", 1),
        lambda content: content.replace(b"<i8", b"<f8", 1),
        lambda content: content.replace(b"False", b"True ", 1),
        *(lambda content, at=at: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in range(130, 240)),
    ],
)
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path, *LINES)
    Manifest(path)
    whole = index_of(path).read_bytes()
    index_of(path).write_bytes(damage(whole))
    assert [record.id for record in Manifest(path)] == [str(i) for i in range(50)]
    assert index_of(path).read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda offsets: offsets[::-1],
        lambda offsets: offsets + 1,  # not where lines begin
        lambda offsets: offsets * 1000,  # beyond the file
        lambda offsets: -offsets,
        lambda offsets: np.sort(np.append(offsets[:-1], offsets[1] + 2)),
        lambda offsets: offsets[[0, 1, 1, *range(3, len(offsets))]],
        lambda offsets: np.delete(offsets, 3),
        lambda offsets: offsets[:0],
    ],
)
def test_an_index_of_other_lines_is_made_again(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = written(tmp_path, *LINES)
    Manifest(path)
    array = array_of(path)
    np.save(index_of(path), np.concatenate([array[:HEADER], change(array[HEADER:])]))
    assert [record.id for record in Manifest(path)] == [str(i) for i in range(50)]


@pytest.mark.parametrize("array", [np.zeros(0, dtype=np.int64), np.zeros((3, 3), dtype=np.int64), np.zeros(9)])
def test_an_index_of_another_kind_is_made_again(tmp_path: Path, array: np.ndarray) -> None:
    path = written(tmp_path, LINE)
    np.save(index_of(path), array)
    assert Manifest(path)[0].text == "a red cat"


def test_the_index_of_another_version_is_made_again(tmp_path: Path) -> None:
    path = written(tmp_path, LINE, LINE)
    stat = path.stat()
    np.save(index_of(path), np.array([1, stat.st_size, stat.st_mtime_ns, 0, 7, 9]))
    assert [record.text for record in Manifest(path)] == ["a red cat"] * 2
    assert array_of(path)[0] == 3


def test_a_folder_in_place_of_the_index(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    index_of(path).mkdir()
    assert len(Manifest(path)) == 1


def test_an_index_that_cannot_be_written_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, *LINES)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert [record.id for record in Manifest(path)] == [str(i) for i in range(50)]
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_manifest_that_shrinks_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = written(tmp_path, *[LINE] * 2000)
    manifest = Manifest(path)
    reopened = Manifest(path)  # its index is read from the file
    os.truncate(path, len(LINE) + 1)
    for each in (manifest, reopened):
        assert each[0].text == "a red cat"
        with pytest.raises(DataError, match=r"m\.jsonl: was cut off while it was in use; start again"):
            each[1999]
    os.truncate(index_of(path), 0)
    with pytest.raises(DataError, match=r"m\.jsonl: its index was changed while it was in use; start again"):
        reopened[0]


def test_a_manifest_that_vanishes_is_read_on(tmp_path: Path) -> None:
    path = written(tmp_path, *LINES)
    manifest = Manifest(path)
    path.unlink()
    index_of(path).unlink()
    assert manifest[49].id == "49"
    with pytest.raises(DataError, match="no such manifest"):
        pickle.loads(pickle.dumps(manifest))  # noqa: S301 - as a worker does


def test_a_manifest_that_grows_while_it_is_checked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, *LINES)

    def appending(path: Path) -> Iterator[tuple[int, int, bytes]]:
        yield from manifest_lines(path)
        with path.open("a") as file:
            file.write(f"{LINE}\n")

    monkeypatch.setattr(manifest_module, "manifest_lines", appending)
    with pytest.raises(DataError, match="was changed while it was read; start again when it is complete"):
        Manifest(path)
    assert not index_of(path).exists()


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


@pytest.mark.parametrize("word", ["x", "红"])
def test_a_text_beyond_the_limit_is_refused(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_TEXT_CHARACTERS", 100)
    lines = [json.dumps({"id": f"p{count}", "image": "a.png", "text": word * count}) for count in (100, 101)]
    with pytest.raises(DataError, match="line 2: text: has 101 characters; shorten it to 100"):
        Manifest(written(tmp_path, *lines))


def test_a_line_that_is_too_long_is_refused_and_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "MAX_LINE_BYTES", 100)
    path = written(tmp_path, LINE, LINE.replace("red", "red" * 500), LINE)
    lines = list(manifest_lines(path))
    assert [(number, len(line)) for number, _, line in lines] == [(1, len(LINE)), (2, 101), (3, len(LINE))]
    assert path.read_bytes()[lines[2][1] :] == f"{LINE}\n".encode()
    with pytest.raises(DataError, match="line 2: the line: is longer than"):
        Manifest(path)


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00 \ud800", r"\ud83d\ud83d", "\\ud83d\\udc08"])
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, text: str) -> None:
    """It could be neither printed nor hashed."""
    path = written(tmp_path, LINE, LINE.replace("red", text))
    if text == "\\ud83d\\udc08":
        assert Manifest(path)[1].text == "a 🐈 cat"
    else:
        with pytest.raises(DataError, match="line 2: the line: is not JSON"):
            Manifest(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    for field in ("entities", "x", "text"):
        path = written(tmp_path, f'{LINE[:-1]},"{field}":{"[" * 200_000}{"]" * 200_000}}}')
        with pytest.raises(DataError, match="line 1: "):
            Manifest(path)


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
