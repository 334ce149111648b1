"""Lines of a manifest: what is accepted, what is refused and in which words, and boxes without an area."""

import json
from pathlib import Path

import pytest

from manifest_files import LINE, written
from spanbox.data import manifest as manifest_module
from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record, manifest_lines, write_manifest
from spanbox.errors import DataError


def with_entity(fields: str) -> str:
    return f'{LINE[:-1]},"entities":[{{{fields}}}]}}'


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
            "entities[0]: [2, 10) is not a span of a text of 9 characters; offsets are half-open and count Unicode "
            "code points from 0",
        ),
        (with_entity('"start":2,"end":2'), "entities[0]: [2, 2) is not a span"),
        (with_entity('"start":-3,"end":2'), "entities[0]: [-3, 2) is not a span"),
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
            "and y0 < y1. Fix it, or set data.inverted_boxes=drop in train, data clean --recipe or data show to leave "
            "such boxes out; if all boxes are x y width height, convert them (spanbox data check tests for that)"
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
