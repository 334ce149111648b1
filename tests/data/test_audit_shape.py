"""The audit's distributions, outliers, languages and tokens, and its page with pictures."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spanbox.data.audit import AuditReport, audit, token_check
from spanbox.data.audit.page import audit_page
from spanbox.data.audit.shape import script_of
from spanbox.data.manifest import Entity, Record, write_manifest
from spanbox.data.tokenizer import train_tokenizer


def check(folder: Path, *records: Record, **options: object) -> AuditReport:
    write_manifest(folder / "m.jsonl", records)
    return audit([folder / "m.jsonl"], **options)  # type: ignore[arg-type]


def noise(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> str:
    pixels = np.random.default_rng((seed, *size)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


def lines(report: AuditReport, kind: str) -> list[int]:
    return [example.line for example in report.findings[kind].examples] if kind in report.findings else []


def test_pairs_far_outside_of_the_distributions_are_named(tmp_path: Path) -> None:
    names = [noise(tmp_path / f"{i}.png", seed=i) for i in range(30)]
    box = (1.0, 1.0, 20.0, 20.0)
    records = [Record(n, n, f"a red cat number {n}", entities=(Entity(0, 5, boxes=(box,)),)) for n in names]
    noise(tmp_path / "large.png", (400, 300)), noise(tmp_path / "thin.png", (60, 4))
    records[3] = Record("3", "large.png", "a red cat", entities=records[3].entities)
    records[5] = Record("5", "thin.png", "a red cat", entities=records[5].entities)
    records[7] = Record("7", names[7], "cat " * 100, entities=records[7].entities)
    many = tuple((float(i % 30), 1.0, i % 30 + 5.0, 9.0) for i in range(25))
    records[9] = Record("9", names[9], "a red cat", entities=(Entity(0, 5, boxes=many),))
    report = check(tmp_path, *records)
    kinds = ("unusual image size", "unusual shape of an image", "unusual text length", "unusual number of boxes")
    assert [lines(report, kind) for kind in kinds] == [[4], [6], [8], [10]]
    assert "400; the median is 40" in report.findings["unusual image size"].examples[0].detail.replace(" pixels", "")


def test_of_a_few_pairs_none_is_an_outlier(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    assert (
        "unusual text length" not in check(tmp_path, *(Record(str(i), "a.png", "x" * 10**i) for i in range(4))).findings
    )


def test_the_distributions_are_in_the_report(tmp_path: Path) -> None:
    entities = (Entity(0, 1, boxes=((0.0, 0.0, 40.0, 15.0), (0.0, 0.0, 1.0, 1.0))),)
    records = [
        Record("1", noise(tmp_path / "a.png"), "a red cat", entities=entities),
        Record("2", "none.png", "红色的猫"),
    ]
    check(tmp_path, *records).write(tmp_path / "r.json")
    shape = json.loads((tmp_path / "r.json").read_text())["manifests"][str(tmp_path / "m.jsonl")]["shape"]
    assert shape["width"] == {"least": 40.0, "median": 40.0, "largest": 40.0}
    assert shape["characters"] == {"least": 4.0, "median": 6.5, "largest": 9.0}
    assert shape["scripts"] == {"Latin": 1, "Han": 1}
    assert shape["box sizes"] == {"small": 1, "medium": 0, "large": 1}


@pytest.mark.parametrize(
    ("text", "script"),
    [("a cat 猫", "Latin"), ("红色 cat", "Latin"), ("红色的猫 a", "Han"), ("ねこ 猫", "Kana"), ("12 🐈 !", "none"),
     ("", "none"),
     ("кошка", "Cyrillic"), ("고양이", "Hangul"), ("قطة", "Arabic")],
)  # fmt: skip
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def test_a_text_in_another_script_than_its_language_is_a_note(tmp_path: Path) -> None:
    texts = [
        ("zh", "a red cat"),
        ("en", "红色的猫"),
        ("zh-TW", "紅色的貓"),
        ("en", "a cat"),
        ("ja", "猫"),
        ("", "猫"),
        ("xx", "猫"),
        ("zh_CN", "a red cat"),
        ("zh_CN", "Nike Air Max 90 运动鞋"),
        ("ru", "чехол Apple iPhone 15 Pro Max"),
        ("en", "红色的猫 cat"),
        ("ru", "红色的猫 кот"),
    ]
    report = check(tmp_path, *(Record(str(i), "a.png", text, lang=lang) for i, (lang, text) in enumerate(texts)))
    assert lines(report, "language and script differ") == [1, 2, 8, 11, 12]


def test_rare_types_are_a_note(tmp_path: Path) -> None:
    types = ["PER"] * 150 + ["LOC"] * 120 + ["ORG"] * 3
    report = check(
        tmp_path, *(Record(str(i), "a.png", "cat", entities=(Entity(0, 3, t),)) for i, t in enumerate(types))
    )
    assert [e.detail for e in report.findings["rare type"].examples] == [
        "ORG: 3 entities; the median of the types is 120"
    ]


def test_texts_and_spans_over_the_limit_of_tokens(tmp_path: Path) -> None:
    text = "the red dog sat near the old park"
    tokenizer = train_tokenizer([text] * 3, 200)
    spans = ("red dog", "old park")
    entities = tuple(Entity(text.index(span), text.index(span) + len(span)) for span in spans)
    records = [
        Record("1", "a.png", text, entities=entities),
        Record("2", "a.png", "the dog"),
        Record("3", "a.png", "龘龘龘"),
    ]
    report = check(tmp_path, *records, tokens=token_check(tokenizer, 6))
    assert [(e.line, e.detail) for e in report.findings["text over the limit of tokens"].examples] == [
        (1, "10 tokens; the first 6 are read")
    ]
    assert [(e.line, e.detail) for e in report.findings["span over the limit of tokens"].examples] == [
        (1, "entities[1]: 'old park' is not read")
    ]
    assert lines(report, "text of unknown tokens") == [3]


def test_a_text_that_no_training_reads_is_not_tokenised(tmp_path: Path) -> None:
    tokenised: list[str] = []

    def tokens(record: Record) -> Iterator[tuple[str, str]]:
        tokenised.append(record.id)
        yield from ()

    report = check(tmp_path, Record("1", "a.png", "cat"), Record("2", "a.png", "猫" * 50_001), tokens=tokens)
    assert tokenised == ["1"]
    assert lines(report, "wrong line") == [2]


def test_the_end_of_a_text_is_no_unknown_token(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a cat"] * 3, 200)
    tokenizer.unk_token = tokenizer.sep_token  # as in CLIP, whose end of text is its unknown token
    report = check(tmp_path, Record("1", "a.png", "cat"), tokens=token_check(tokenizer, 6))
    assert "text of unknown tokens" not in report.findings


def test_the_page_shows_each_kind_with_pictures_and_escapes_texts(tmp_path: Path) -> None:
    noise(tmp_path / "a.png"), noise(tmp_path / "b.png", seed=1)
    outside = (100.0, 1.0, 120.0, 9.0)
    entities = (Entity(0, 5, boxes=(outside, (1.0, 1.0, 9.0, 9.0))),)
    records = [
        Record("<i>1</i>", "a.png", "<b>ca & dog", entities=entities),
        Record("2", "b.png", "b"),
        Record("2", "a.png", "c", group="g"),
        Record("4", "none.png", "d", entities=(Entity(0, 9),)),
    ]
    (tmp_path / "m.jsonl").write_text("")
    write_manifest(tmp_path / "m.jsonl", records)
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write("nonsense\n")
    page = audit_page(audit([tmp_path / "m.jsonl"]))
    for kind in ("box outside the image", "id used twice", "missing image", "unusable span", "wrong line"):
        assert f"Problem: {kind} (1)" in page
    assert "Note: same image in different groups (1)" in page
    assert "&lt;i&gt;1&lt;/i&gt;" in page
    assert "<mark>&lt;b&gt;ca</mark> &amp; dog" in page
    assert "<i>" not in page
    assert page.count("data:image/jpeg;base64,") == 5  # both of the pair that is in two groups, and of the id
    assert 'x="100.0" y="1.0" width="20.0"' in page
    assert "none.png: no such file" in page
