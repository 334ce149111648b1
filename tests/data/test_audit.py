"""The audit counts a data set, finds all that is wrong with its lines, ids and texts, names the place, and reads on."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from audited import BOX, found, image, manifest
from spanbox.data.audit import EXAMPLES, NOTES, PROBLEMS, audit
from spanbox.data.audit import report as report_module
from spanbox.data.manifest import Entity, ObjectBox, Record
from spanbox.errors import DataError


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


@pytest.mark.parametrize("text", ["", "  ", "\u3000", "\u200b\u200b", "\ufeff", "\u3164 \u2800"])
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


@pytest.mark.parametrize(
    ("identity", "objects", "noted"),
    [("", (), True), ("cat {}", (), False), ("", (ObjectBox((1.0, 1.0, 9.0, 9.0)),), False)],
)
def test_entities_of_one_identity_are_noted(
    tmp_path: Path, identity: str, objects: tuple[ObjectBox, ...], noted: bool
) -> None:
    """The fine level has nothing to contrast, unless there are regions of other objects."""
    image(tmp_path, "a.png")
    entities = [Entity(2, 5, identity=identity.format(i), boxes=((2.0, 2.0, 20.0, 20.0),)) for i in range(4)]
    records = [Record(str(i), "a.png", f"a Cat {i}", entities=(e,), objects=objects) for i, e in enumerate(entities)]
    details = [detail for _, detail in found(audit([manifest(tmp_path, *records)]))["no negatives"]]
    expected = ["all 4 pairs have the same group", "all 4 entities have the identity 'cat'"]
    assert details == expected[: 1 + noted]


def test_the_same_pair_twice_is_a_note(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "b.png", "blue")
    records = [Record("1", "a.png", "A cat"), Record("2", "b.png", "a cat"), Record("3", "./a.png", "a  cat")]
    assert found(audit([manifest(tmp_path, *records)]))["same pair twice"] == [(3, "as in line 1")]


def test_no_kind_is_both_problem_and_note() -> None:
    assert not PROBLEMS.keys() & NOTES.keys()


def test_every_kind_has_a_name_in_chinese() -> None:
    texts = (files("spanbox.report") / "texts" / "zh.yaml").read_text(encoding="utf-8")
    assert not [kind for kind in (*PROBLEMS, *NOTES) if f"\n  {kind}: " not in texts]
