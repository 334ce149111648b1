"""The audit finds everything that is wrong, names the place, and reads on."""

import json
from pathlib import Path

import pytest
from PIL import Image

from spanbox.data.audit import EXAMPLES, NOTES, PROBLEMS, AuditReport, audit
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
        "languages": {"en": 2, "zh": 1},
        "types": {"animal": 2, "colour": 1},
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
    assert list(report.findings) == ["wrong line"]


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
    assert list(report.findings) == ([] if kind is None else [kind])
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
    assert list(audit([manifest(tmp_path, lying)]).findings) == ["box partly outside the image"]


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

    load_image = module.load_image
    monkeypatch.setattr(module, "load_image", lambda path: (read.append(path), load_image(path))[1])
    monkeypatch.setattr(module, "_LINES_AT_ONCE", 1)
    audit([manifest(tmp_path, *(Record(str(i), "a.png", "t") for i in range(20)))])
    assert len(read) == 1


def test_ids_used_twice(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "b.png", "blue")
    train = manifest(tmp_path, *(Record(i, "a.png", "t") for i in ("x", "y", "x", "x")))
    test = manifest(tmp_path, Record("y", "b.png", "u"), name="test.jsonl")
    report = audit([train, test])
    assert found(report) == {
        "id used twice": [(3, "as in line 1"), (4, "as in line 1")],
        "id also in another manifest": [(1, f"as in {train}:2")],
    }
    assert [finding.kind for finding in report.problems] == ["id used twice"]


def shared(tmp_path: Path, first: Record, second: Record, decode: bool = True) -> AuditReport:
    """The audit of two splits; the second one lies in a folder of its own."""
    (tmp_path / "test").mkdir(exist_ok=True)
    return audit(
        [manifest(tmp_path, first), manifest(tmp_path / "test", second, name="test.jsonl")],
        decode=decode,
    )


def test_one_file_in_two_splits_is_told_once(tmp_path: Path) -> None:
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


def test_three_splits_are_compared_with_the_first(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    paths = [manifest(tmp_path, Record(n, "a.png", n), Record(n + "2", "a.png", n), name=f"{n}.jsonl") for n in "abc"]
    (finding,) = audit(paths).problems
    assert finding.kind == "image in two manifests"
    assert [(Path(e.manifest).name, e.line, e.detail) for e in finding.examples] == [
        ("b.jsonl", 1, f"as in {paths[0]}:1"),
        ("c.jsonl", 1, f"as in {paths[0]}:1"),
    ]


@pytest.mark.parametrize("decode", [True, False])
def test_an_image_in_two_groups_of_a_split_is_a_note(tmp_path: Path, decode: bool) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "copy.png"), image(tmp_path, "b.png", "blue")
    groups = [("a.png", "g"), ("b.png", "g2"), ("a.png", "g"), ("copy.png", "g"), ("a.png", "h")]
    records = [Record(str(i), name, "t", group=group) for i, (name, group) in enumerate(groups)]
    report = audit([manifest(tmp_path, *records)], decode=decode)
    assert report.ok
    assert found(report) == {"same image in different groups": [(5, "as in line 1")]}


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


def test_the_report_is_json(tmp_path: Path) -> None:
    path = manifest(tmp_path, Record("1", "none.png", "t", entities=(Entity(0, 1, "x"),)))
    content = json.loads(json.dumps(audit([path]).to_json()))
    assert content["ok"] is False
    assert content["decoded"] is True
    assert content["manifests"][str(path)]["types"] == {"x": 1}
    assert content["problems"] == [
        {
            "kind": "missing image",
            "advice": PROBLEMS["missing image"],
            "count": 1,
            "examples": [{"manifest": str(path), "line": 1, "detail": "none.png: no such file"}],
        }
    ]


def test_no_kind_is_both_problem_and_note() -> None:
    assert not PROBLEMS.keys() & NOTES.keys()
