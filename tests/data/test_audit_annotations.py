"""The audit on boxes and spans: unusable ones, and sets of which all follow another convention."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from audited import BOX, found, image, manifest
from spanbox.data.audit import PROBLEMS, AuditReport, audit
from spanbox.data.audit.spans import find_odd_spans
from spanbox.data.manifest import Entity, ObjectBox, Record


def test_spans(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    entities = (Entity(0, 1), Entity(2, 99), Entity(1, 2), Entity(0, 1, boxes=(BOX,)), Entity(0, 5))
    report = audit([manifest(tmp_path, Record("1", "a.png", "a cat", entities=entities))])
    assert found(report) == {
        "unusable span": [
            (
                1,
                "entities[1]: [2, 99) is not a span of a text of 5 characters; offsets are half-open and count Unicode "
                "code points from 0",
            ),
            (1, "entities[2]: holds nothing but white space; remove it or move its edges"),
        ],
        "span given twice": [(1, "2 entities at [0, 1): 'a'")],  # a span inside of another is none of that
    }


def test_a_wrong_relevance_is_not_told_to_mend_its_offsets(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    entities = (Entity(0, 1, boxes=(BOX,), relevance=(0.5, 0.5)),)
    report = audit([manifest(tmp_path, Record("1", "a.png", "a cat", entities=entities))])
    fault = "entities[0].relevance: 2 numbers for 1 boxes; give one per box, or none"
    assert found(report) == {"wrong line": [(1, fault)]}


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((0.0, 0.0, 40.0, 30.0), None),
        ((-0.9, 0.0, 41.0, 30.5), None),  # rounded
        ((5.0, 5.0, 5.0, 9.0), "inverted box"),
        ((-20.0, 0.0, 0.0, 10.0), "box outside the image"),
        ((40.0, 0.0, 60.0, 10.0), "box outside the image"),
        ((0.0, 30.0, 9.0, 90.0), "box outside the image"),
        ((0.0, 0.0, 41.5, 10.0), "box partly outside the image"),
        ((-5.0, 0.0, 10.0, 10.0), "box partly outside the image"),
    ],
)
def test_boxes(tmp_path: Path, box: tuple[float, float, float, float], kind: str | None) -> None:
    image(tmp_path, "a.png")
    record = Record("1", "a.png", "cat", entities=(Entity(0, 3, boxes=(BOX, box)),), objects=(ObjectBox(box),))
    report = audit([manifest(tmp_path, record)])
    assert [finding.kind for finding in report.problems] == ([] if kind is None else [kind])
    if kind is not None:
        (_, first), (_, second) = found(report)[kind]
        assert first.startswith(f"entities[0].boxes[1]: {list(box)} ")
        assert second.startswith(f"objects[0].box: {list(box)} ")


def test_boxes_are_measured_against_the_image_as_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: shown as 30 x 40
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    upright = Record("1", "a.jpg", "cat", entities=(Entity(0, 3, boxes=((0.0, 0.0, 30.0, 40.0),)),))
    assert audit([manifest(tmp_path, upright)]).ok
    assert audit([manifest(tmp_path, upright)], decode=False).ok
    lying = Record("1", "a.jpg", "cat", entities=(Entity(0, 3, boxes=((0.0, 0.0, 40.0, 30.0),)),))
    kinds = ["boxes of the image before turning", "box partly outside the image"]
    assert [finding.kind for finding in audit([manifest(tmp_path, lying)]).problems] == kinds
    half = Record("1", "a.jpg", "cat", entities=(Entity(0, 3, boxes=((0.0, 0.0, 40.0, 40.0),)),))
    assert [finding.kind for finding in audit([manifest(tmp_path, half)]).problems] == kinds[1:]


def boxes_of(
    tmp_path: Path, *boxes: tuple[float, float, float, float], size: tuple[int, int] = (160, 120)
) -> AuditReport:
    """The audit of a set with one box per pair and image."""
    image(tmp_path, "a.png", size=size)
    records = [Record(str(i), "a.png", f"cat {i}", entities=(Entity(0, 3, boxes=(b,)),)) for i, b in enumerate(boxes)]
    return audit([manifest(tmp_path, *records)])


PIXELS = [
    (21.0, 20.0, 69.0, 90.0),
    (90.0, 30.0, 150.0, 100.0),
    (10.0, 20.0, 67.0, 90.0),
    (90.0, 23.0, 150.0, 100.0),
    (27.0, 20.0, 68.0, 90.0),
    (100.0, 30.0, 155.0, 118.0),
    (5.0, 8.0, 155.0, 100.0),
    (100.0, 60.0, 140.0, 110.0),
]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x0, y0, x1, y1: (x0, y0, x1, y1), None),
        (lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0), "boxes look like x y width height"),
        (lambda x0, y0, x1, y1: (x0 / 160, y0 / 120, x1 / 160, y1 / 120), "boxes look like fractions"),
        (lambda x0, y0, x1, y1: (x0 / 1.6, y0 / 1.2, x1 / 1.6, y1 / 1.2), "boxes look like percent"),
        (lambda x0, y0, x1, y1: (x0 / 0.16, y0 / 0.12, x1 / 0.16, y1 / 0.12), "boxes look like thousandths"),
        (lambda x0, y0, x1, y1: (y0, x0, y1, x1), "boxes look like y0 x0 y1 x1"),
    ],
)
def test_boxes_of_another_format_are_found_by_looking_at_all(
    tmp_path: Path, change: Callable[..., tuple[float, float, float, float]], kind: str | None
) -> None:
    report = boxes_of(tmp_path, *(change(*box) for box in PIXELS))
    assert [name for name in report.findings if name.startswith("boxes ")] == ([kind] if kind else [])
    if kind == "boxes look like x y width height":
        assert "do not drop them" in report.findings["inverted box"].advice


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x0, y0, x1, y1: (x1, y1, x0, y0), "boxes look like x1 y1 x0 y0"),
        (
            lambda x0, y0, x1, y1: ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
            "boxes look like centre x, centre y, width, height",
        ),
        (lambda x0, y0, x1, y1: (x0, x1, y0, y1), "boxes look like x0 x1 y0 y1"),
        (lambda x0, y0, x1, y1: (9 * x1, y1, 5 * x0, y0), "boxes of unknown convention"),
    ],
)
def test_inverted_boxes_of_another_format_are_not_to_be_dropped(
    tmp_path: Path, change: Callable[..., tuple[float, float, float, float]], kind: str
) -> None:
    report = boxes_of(tmp_path, *(change(*box) for box in PIXELS))
    assert [name for name in report.findings if name.startswith("boxes ")] == [kind]
    assert report.findings["inverted box"].advice == f"do not drop them: {kind}"


def test_boxes_in_fractions_among_boxes_in_pixels_are_found(tmp_path: Path) -> None:
    fractions = [(x0 / 160, y0 / 120, x1 / 160, y1 / 120) for x0, y0, x1, y1 in PIXELS]
    sizes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in PIXELS]
    report = boxes_of(tmp_path, *fractions, *sizes)
    (example,) = report.findings["boxes look like fractions"].examples
    assert "0 and 1 in 8 of them, convert only these; 8 fit as" in example.detail
    assert report.findings["inverted box"].advice == "do not drop them: boxes look like fractions"


def test_four_zeros_are_no_box_and_do_not_hide_the_convention_of_the_others(tmp_path: Path) -> None:
    sizes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in PIXELS]
    report = boxes_of(tmp_path, *sizes, (0.0, 0.0, 0.0, 0.0))
    assert "boxes look like x y width height" in report.findings


def test_inverted_boxes_are_not_to_be_dropped_where_a_part_of_the_set_is_of_another_format(tmp_path: Path) -> None:
    """Of boxes as x y width height most are not inverted: they would stay, and be wrong."""
    sizes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in PIXELS]
    for others in (3, 5):
        report = boxes_of(tmp_path, *sizes, *others * PIXELS)
        assert report.findings["inverted box"].advice == "do not drop them: boxes of unknown convention"
        (note,) = (finding for finding in report.notes if finding.kind.startswith("boxes "))
        assert "x1 below x0 or y1 below y0; some of the others may be of another format" in note.examples[0].detail
    flat = [(x0, y0, x0, y0) for x0, y0, _, _ in PIXELS]  # boxes without a size: placeholders, mostly
    report = boxes_of(tmp_path, *flat, *4 * PIXELS)
    assert report.findings["inverted box"].advice == PROBLEMS["inverted box"]


def test_a_few_inverted_boxes_are_only_that(tmp_path: Path) -> None:
    report = boxes_of(tmp_path, *PIXELS, (90.0, 30.0, 60.0, 100.0), (50.0, 90.0, 60.0, 10.0))
    assert [finding.kind for finding in report.problems] == ["inverted box"]
    assert report.findings["inverted box"].advice == PROBLEMS["inverted box"]


def test_boxes_below_a_pixel_and_of_the_whole_image_are_notes(tmp_path: Path) -> None:
    report = boxes_of(tmp_path, *PIXELS, (5.0, 5.0, 5.5, 50.0), (0.0, 0.0, 160.0, 120.0))
    assert report.ok
    assert {kind: [line for line, _ in places] for kind, places in found(report).items() if "box" in kind} == {
        "box below a pixel": [9],
        "box of the whole image": [10],
    }


def spans_of(tmp_path: Path, *spans: tuple[str, int, int]) -> AuditReport:
    for i in range(len(spans)):
        Image.new("RGB", (40 + i, 30)).save(tmp_path / f"{i}.png")
    records = [Record(str(i), f"{i}.png", text, entities=(Entity(a, b),)) for i, (text, a, b) in enumerate(spans)]
    return audit([manifest(tmp_path, *records)])


WORDS = [
    ("a green anchor", 2, 7),
    ("the 🐈 sleeps here", 6, 12),
    ("über das grüne Haus", 9, 14),
    ("🐈 🐈 and 🚗 a dog", 12, 15),
]


def offsets(encoding: str, unit: int) -> list[tuple[str, int, int]]:
    return [(t, len(t[:a].encode(encoding)) // unit, len(t[:b].encode(encoding)) // unit) for t, a, b in WORDS]


@pytest.mark.parametrize(
    ("spans", "kind"),
    [
        (WORDS, None),
        ([(text, start, end - 1) for text, start, end in WORDS], "spans look like inclusive ends"),
        ([(text, start + 1, end + 1) for text, start, end in WORDS], "spans look counted from 1"),
        (offsets("utf-16-le", 2), "spans look like UTF-16 offsets"),
        (offsets("utf-8", 1), "spans look like byte offsets"),
    ],
)
def test_offsets_that_count_otherwise_are_found_by_looking_at_all(
    tmp_path: Path, spans: list[tuple[str, int, int]], kind: str | None
) -> None:
    report = spans_of(tmp_path, *spans)
    assert [name for name in report.findings if name.startswith("spans ")] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("text", "start", "end", "cut"),
    [
        ("a red cat", 2, 5, False),
        ("a red cat", 2, 4, True),
        ("a red cat", 3, 5, True),
        ("red, cat", 0, 3, False),
        ("#cat", 1, 4, False),
        ("красный кот", 0, 6, True),
        ("cafe\u0301 noir", 0, 4, True),  # the accent is lost
        ("一只红色的猫", 2, 4, False),  # Chinese has no spaces
        ("これは猫です", 3, 4, False),
        ("고양이가 잔다", 0, 3, False),
        ("猫cat", 0, 1, False),
    ],
)
def test_spans_that_cut_a_word_are_a_note(tmp_path: Path, text: str, start: int, end: int, cut: bool) -> None:
    report = spans_of(tmp_path, (text, start, end))
    assert report.ok
    assert ("span cuts a word" in report.findings) == cut


@pytest.mark.parametrize(
    ("text", "start", "end", "identity", "cut"),
    [
        ("追着红球，旁边", 2, 4, "红球", False),
        ("追着红球，旁边", 3, 5, "红球", True),  # counted from 1
        ("追着红球，旁边", 1, 3, "红球", True),
        ("追着红球，旁边", 3, 4, "红球", False),  # a part of the name
        ("追着红球，旁边", 1, 5, "红球", False),  # the name with what stands beside it
        ("追着红球，旁边", 5, 7, "红球", False),
        ("追着红球，旁边", 3, 5, "1F534", False),  # an identity that is no name
        ("哈哈哈", 1, 3, "哈哈", False),
        ("😀ロンドン塔を見る", 2, 7, "ロンドン塔", True),  # UTF-16
        ("고양이가 잔다", 1, 4, "고양이", True),
        ("猫", 0, 1, "猫", False),
    ],
)
def test_spans_that_begin_or_end_inside_their_name_are_a_note_in_any_script(
    tmp_path: Path, text: str, start: int, end: int, identity: str, cut: bool
) -> None:
    image(tmp_path, "a.png")
    report = audit([manifest(tmp_path, Record("1", "a.png", text, entities=(Entity(start, end, identity=identity),)))])
    assert report.ok
    assert ("span cuts a word" in report.findings) == cut


def test_long_names_in_a_long_text_take_linear_time() -> None:
    """Seconds if the places of a name are looked for one by one."""
    for end in ("", "。"):
        entities = tuple(Entity(start, start + 3, identity="哈" * 5000 + end) for start in range(0, 9000, 3))
        assert not list(find_odd_spans(Record("1", "a.png", "哈" * 10_000, entities=entities)))


@pytest.mark.parametrize("character", ["\u200b", "\ue123", "\xad", "\ufffd"])
def test_spans_without_a_visible_character_are_a_note(tmp_path: Path, character: str) -> None:
    report = spans_of(tmp_path, (f"look {character} here", 5, 6))
    assert [finding.kind for finding in report.notes] == ["span without a visible character"]
    for visible in ("🐈", "\U0001fa77"):  # a pink heart, which Unicode has since version 15 and Python since 3.12
        assert spans_of(tmp_path, (f"a {visible} here", 2, 3)).findings == {}
