"""The audit finds everything that is wrong, names the place, and reads on."""

import json
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from spanbox.data.audit import EXAMPLES, NOTES, PROBLEMS, AuditReport, audit
from spanbox.data.audit import report as report_module
from spanbox.data.manifest import Entity, ObjectBox, Record, write_manifest
from spanbox.errors import DataError

BOX = (1.0, 1.0, 10.0, 10.0)


def image(folder: Path, name: str, colour: str = "red", size: tuple[int, int] = (40, 30)) -> str:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)
    return name


def manifest(folder: Path, *records: Record, name: str = "train.jsonl") -> Path:
    path = folder / name
    write_manifest(path, records)
    return path


def found(report: AuditReport) -> dict[str, list[tuple[int, str]]]:
    return {kind: [(e.line, e.detail) for e in finding.examples] for kind, finding in report.findings.items()}


def test_a_good_data_set_is_counted(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "b.png", "blue"), image(tmp_path, "c.png", "green")
    train = manifest(
        tmp_path,
        Record(
            "1",
            "a.png",
            "a red cat",
            lang="en",
            entities=(Entity(2, 5, "colour", boxes=(BOX, (2.0, 2.0, 3.0, 3.0))), Entity(6, 9, "animal")),
            objects=(ObjectBox(BOX), ObjectBox(BOX)),
        ),
        Record("2", "a.png", "红色的猫", lang="zh", entities=(Entity(3, 4, "animal", boxes=(BOX,)),)),
        Record("3", "b.png", "a red cat", lang="en"),
    )
    test = manifest(tmp_path, Record("4", "c.png", "green"), name="test.jsonl")
    report = audit([train, test])
    assert report.ok
    counts = report.manifests[str(train)]
    assert vars(counts) == {
        "pairs": 3,
        "images": 2,
        "groups": 2,
        "texts": 2,
        "entities": 3,
        "entities_with_box": 2,
        "entities_without_box": 1,
        "boxes": 3,
        "proposals": 2,
        "paraphrases": 0,
        "languages": {"en": 2, "zh": 1},
        "types": {"animal": 2, "colour": 1},
        "sources": {"": 3},
    }
    assert (report.total.pairs, report.total.images, report.total.texts) == (4, 3, 3)
    assert report.total.languages == {"en": 2, "zh": 1, "": 1}
    assert not report.findings


def test_every_wrong_line_is_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    path = tmp_path / "m.jsonl"
    good = '{"id":"%d","image":"a.png","text":"cat"}'
    path.write_text(
        f"{good % 1}\n\nnonsense\n{good % 4}\n" + '{"id":"5","image":"a.png"}\n{"id":"","image":"","text":""}\n'
    )
    report = audit([path])
    assert report.manifests[str(path)].pairs == 3
    details = found(report)["wrong line"]
    assert [line for line, _ in details] == [3, 5, 6, 6]
    assert details[0][1].startswith("the line: is not JSON")
    assert details[1][1] == "the line: Object missing required field `text`; see docs/data.md"
    assert [detail for _, detail in details[2:]] == [
        "id: is empty; give it a value",
        "image: is empty; give it a value",
    ]
    assert {finding.kind for finding in report.problems} == {"wrong line", "empty text"}


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_manifest_is_a_problem(tmp_path: Path, content: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    report = audit([path])
    assert found(report) == {"wrong line": [(1, "the manifest is empty; expected one JSON object per line")]}
    assert report.total.images == report.total.pairs == 0


def test_a_missing_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such manifest"):
        audit([tmp_path / "none.jsonl"])


def test_spans(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    entities = (Entity(0, 1), Entity(2, 99), Entity(1, 2), Entity(0, 1, boxes=(BOX,)), Entity(0, 5))
    report = audit([manifest(tmp_path, Record("1", "a.png", "a cat", entities=entities))])
    assert found(report) == {
        "unusable span": [
            (
                1,
                "entities[1]: [2, 99) is no span of a text of 5 characters; offsets are half-open and count Unicode "
                "code points from 0",
            ),
            (1, "entities[2]: holds nothing but white space; remove it or move its edges"),
        ],
        "span given twice": [(1, "2 entities at [0, 1): 'a'")],  # a span inside of another is none of that
    }


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


def test_missing_and_broken_images(tmp_path: Path) -> None:
    name = image(tmp_path, "cut.png", size=(400, 300))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    names = ["none.png", name, "empty.png", "", "x" * 300]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "image": n, "text": "t"}) + "\n" for i, n in enumerate(names)))

    decoded = found(audit([path]))
    assert decoded["missing image"] == [(1, "none.png: no such file"), (5, f"{'x' * 300}: File name too long")]
    assert [line for line, _ in decoded["broken image"]] == [2, 3]
    assert decoded["broken image"][1] == (3, "empty.png: empty file")

    fast = found(audit([path], decode=False))
    assert fast["missing image"] == decoded["missing image"]
    assert [line for line, _ in fast["broken image"]] == [3]  # the header of the other one is whole


def test_an_image_is_decoded_once_for_all_its_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path, "a.png")
    read: list[Path] = []
    from spanbox.data import audit as module

    plain = module.decoded_facts
    monkeypatch.setattr(module, "decoded_facts", lambda path: (read.append(path), plain(path))[1])
    monkeypatch.setattr(module, "_LINES_AT_ONCE", 1)
    audit([manifest(tmp_path, *(Record(str(i), "a.png", "t") for i in range(20)))])
    assert len(read) == 1


def test_ids_used_twice(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "b.png", "blue")
    train = manifest(tmp_path, *(Record(i, "a.png", f"t{n}") for n, i in enumerate(("x", "y", "x", "x"))))
    test = manifest(tmp_path, Record("y", "b.png", "u"), name="test.jsonl")
    report = audit([train, test])
    assert found(report) == {
        "id used twice": [(3, "as in line 1"), (4, "as in line 1")],
        "id also in another manifest": [(1, f"as in {train}:2")],
        "no negatives": [(1, "all 4 pairs have the same group")],
    }
    assert [finding.kind for finding in report.problems] == ["id used twice"]


def shared(tmp_path: Path, first: Record, second: Record, decode: bool = True) -> AuditReport:
    """The audit of two splits; the second one lies in a folder of its own."""
    (tmp_path / "test").mkdir(exist_ok=True)
    return audit(
        [manifest(tmp_path, first), manifest(tmp_path / "test", second, name="test.jsonl")],
        decode=decode,
    )


def test_one_file_in_two_splits_is_reported_once(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    report = shared(
        tmp_path,
        Record("1", "a.png", "t", group="g"),
        Record("2", "../test/../a.png", "u", group="g"),
    )
    assert list(report.findings) == ["image in two manifests"]
    assert report.problems[0].examples[0].detail == f"as in {tmp_path / 'train.jsonl'}:1"


def test_a_copied_image_in_two_splits_is_found_by_its_content(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "b.png")
    first, second = Record("1", "a.png", "t"), Record("2", "b.png", "u")
    assert list(shared(tmp_path, first, second).findings) == ["same image content in two manifests"]
    assert shared(tmp_path, first, second, decode=False).ok


def test_a_group_in_two_splits(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "b.png", "blue")
    report = shared(tmp_path, Record("1", "a.png", "t", group="g"), Record("2", "b.png", "u", group="g"))
    assert list(report.findings) == ["group in two manifests"]


def test_equal_relative_paths_in_two_folders_are_two_images(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "a.png", "blue")
    assert shared(tmp_path, Record("1", "a.png", "t"), Record("2", "a.png", "u")).findings == {}


def test_the_same_text_in_two_splits_is_a_note(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "b.png", "blue")
    report = shared(tmp_path, Record("1", "a.png", "t"), Record("2", "b.png", "t"))
    assert report.ok
    assert [finding.kind for finding in report.notes] == ["same text in two manifests"]


def test_every_pair_of_a_later_split_is_counted(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "copy.jpg", "blue")
    train = manifest(tmp_path, Record("1", "a.png", "t"))
    many = (Record(str(i), "a.png", str(i)) for i in range(2000))
    report = audit([train, manifest(tmp_path, *many, name="test.jsonl")], decode=False)
    assert {finding.kind: finding.count for finding in report.problems} == {"image in two manifests": 2000}


def test_three_splits_are_compared_with_the_first(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    paths = [manifest(tmp_path, Record(n, "a.png", n), Record(n + "2", "a.png", n), name=f"{n}.jsonl") for n in "abc"]
    (finding,) = audit(paths).problems
    assert finding.kind == "image in two manifests"
    assert [(Path(e.manifest).name, e.line, e.detail) for e in finding.examples] == [
        (f"{name}.jsonl", line, f"as in {paths[0]}:1") for name in "bc" for line in (1, 2)
    ]


@pytest.mark.parametrize("decode", [True, False])
def test_an_image_in_two_groups_of_a_split_is_a_note(tmp_path: Path, decode: bool) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "copy.png"), image(tmp_path, "b.png", "blue")
    groups = [("a.png", "g"), ("b.png", "g2"), ("a.png", "g"), ("copy.png", "g"), ("a.png", "h")]
    records = [Record(str(i), name, str(i), group=group) for i, (name, group) in enumerate(groups)]
    report = audit([manifest(tmp_path, *records)], decode=decode)
    assert report.ok
    assert found(report)["same image in different groups"] == [(5, "as in line 1")]
    assert ("different images in one group" in report.findings) != decode  # without decoding a copy is not known as one


def test_images_that_could_not_be_read_are_not_equal(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    report = shared(tmp_path, Record("1", "a.png", "t"), Record("2", "../b.png", "u"))
    assert list(report.findings) == ["broken image"]


def test_all_are_counted_and_the_first_few_shown(tmp_path: Path) -> None:
    path = manifest(tmp_path, *(Record(str(i), f"{i}.png", str(i)) for i in range(600)))
    (finding,) = audit([path]).problems
    assert finding.count == 600
    assert [example.line for example in finding.examples] == list(range(1, EXAMPLES + 1))


def test_progress_counts_lines(tmp_path: Path) -> None:
    path = manifest(tmp_path, *(Record(str(i), "a.png", "t") for i in range(300)))
    with path.open("a") as file:
        file.write("\n\nnonsense\n")
    seen: list[tuple[int, int]] = []
    audit([path, path], on_progress=lambda *progress: seen.append(progress))
    assert seen == [(256, 602), (301, 602), (557, 602), (602, 602)]


def test_the_report_is_json_with_every_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "_MEMORY", 200)  # the findings go to a temporary file soon
    records = [Record(str(i), f"{i}.png", f't "{i}"', entities=(Entity(0, 1, "x"),)) for i in range(20)]
    path = manifest(tmp_path, *records, Record("20", "20.png", " "))
    audit([path]).write(tmp_path / "out" / "report.json")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["ok"] is False
    assert content["decoded"] is True
    assert content["manifests"][str(path)]["types"] == {"x": 20}
    assert content["total"]["pairs"] == 21
    assert [(problem["kind"], problem["count"]) for problem in content["problems"]] == [
        ("empty text", 1),
        ("missing image", 21),
    ]
    assert content["problems"][1]["advice"] == PROBLEMS["missing image"]
    assert content["problems"][1]["examples"] == [
        {"manifest": str(path), "line": i + 1, "detail": f"{i}.png: no such file"} for i in range(21)
    ]
    assert content["notes"] == []


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


@pytest.mark.parametrize("character", ["\u200b", "\ue123", "\xad", "\ufffd"])
def test_spans_without_a_visible_character_are_a_note(tmp_path: Path, character: str) -> None:
    report = spans_of(tmp_path, (f"look {character} here", 5, 6))
    assert [finding.kind for finding in report.notes] == ["span without a visible character"]
    assert spans_of(tmp_path, ("a 🐈 here", 2, 3)).findings == {}


@pytest.mark.parametrize("text", ["", "  ", "\u3000"])
def test_an_empty_text_is_a_problem(tmp_path: Path, text: str) -> None:
    image(tmp_path, "a.png")
    report = audit([manifest(tmp_path, Record("1", "a.png", text))])
    assert [finding.kind for finding in report.problems] == ["empty text"]


@pytest.mark.parametrize(
    ("text", "group", "same"), [("{}", "album", "group"), ("A  photo", "", "text"), ("{}", "", None)]
)
def test_a_manifest_without_negatives_is_noted(tmp_path: Path, text: str, group: str, same: str | None) -> None:
    records = [
        Record(str(i), image(tmp_path, f"{i}.png", size=(40 + i, 30)), text.format(i), group=group) for i in range(8)
    ]
    report = audit([manifest(tmp_path, *records)])
    assert report.ok
    noted = found(report).get("no negatives", [])
    assert noted == ([(1, f"all 8 pairs have the same {same}")] if same else [])
    assert ("different images in one group" in report.findings) == bool(group)


def test_the_same_pair_twice_is_a_note(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "b.png", "blue")
    records = [Record("1", "a.png", "A cat"), Record("2", "b.png", "a cat"), Record("3", "./a.png", "a  cat")]
    assert found(audit([manifest(tmp_path, *records)]))["same pair twice"] == [(3, "as in line 1")]


def test_one_image_in_several_spellings_is_one_image_and_group(tmp_path: Path) -> None:
    image(tmp_path / "images", "a.png"), image(tmp_path / "images", "b.png", "blue")
    names = ("images/a.png", "./images/a.png", "images//a.png", "images/../images/a.png", "images/b.png")
    report = audit([manifest(tmp_path, *(Record(n, n, n) for n in names))])
    assert not report.findings
    assert report.total.images == report.total.groups == 2


def test_a_picture_that_was_encoded_again_is_found(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "a.webp", lossless=True)
    Image.open(tmp_path / "a.png").save(tmp_path / "a.bmp")
    test = [Record("2", "a.webp", "u"), Record("3", "a.bmp", "v")]
    report = audit([manifest(tmp_path, Record("1", "a.png", "t")), manifest(tmp_path, *test, name="test.jsonl")])
    assert found(report)["same image content in two manifests"] == [
        (1, f"as in {tmp_path / 'train.jsonl'}:1"),
        (2, f"as in {tmp_path / 'train.jsonl'}:1"),
    ]


@pytest.mark.parametrize(
    ("name", "actual", "difference"),
    [
        ("images/Cafe\u0301.png", "images/Caf\u00e9.png", "form of accents"),
        ("images/Caf\u00e9.png", "images/Cafe\u0301.png", "form of accents"),
        ("images\\c.png", "images/c.png", "slashes"),
        ("images/d.png", "Images/D.PNG", "case"),
        ("images/a%20b.png", "images/a b.png", "percent escapes"),
        ("./images/x/../a.png ", "images/a.png", None),
        ("images/none.png", "images/a.png", None),
    ],
)
def test_a_name_in_another_spelling_is_named(tmp_path: Path, name: str, actual: str, difference: str | None) -> None:
    image((tmp_path / actual).parent, Path(actual).name)
    report = audit([manifest(tmp_path, Record("1", name, "t"))])
    ((_, detail),) = found(report)["missing image"]
    assert detail.startswith(f"{name}: no such file")
    if difference is None:
        assert detail == f"{name}: no such file"
    else:
        assert f"but the folder has {actual!r}, in another spelling (" in detail
        assert difference in detail


def test_a_git_lfs_pointer_and_a_pipe_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    os.mkfifo(tmp_path / "b.jpg")
    report = audit([manifest(tmp_path, Record("1", "a.jpg", "t"), Record("2", "b.jpg", "u"))])
    assert found(report)["broken image"] == [
        (1, "a.jpg: a Git LFS pointer, not the file itself; run git lfs pull"),
        (2, "b.jpg: is not a regular file"),
    ]


def test_no_kind_is_both_problem_and_note() -> None:
    assert not PROBLEMS.keys() & NOTES.keys()


def test_every_kind_has_a_name_in_chinese() -> None:
    texts = (files("spanbox.report") / "texts" / "zh.yaml").read_text(encoding="utf-8")
    assert not [kind for kind in (*PROBLEMS, *NOTES) if f"\n  {kind}: " not in texts]
