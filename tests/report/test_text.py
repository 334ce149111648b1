import re
from io import StringIO
from pathlib import Path
from string import Formatter

import pytest
from rich.console import Console

import spanbox
from spanbox.data.audit import NOTES, PROBLEMS
from spanbox.evaluation.evaluate import metrics_table
from spanbox.report.text import Texts, number, percent, points, signed, similarity, texts

EN, ZH = texts("en"), texts("zh")


def gaps(sentence: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(sentence) if field}


def test_both_languages_say_the_same_things() -> None:
    assert EN.sentences.keys() == ZH.sentences.keys()
    for key, sentence in EN.sentences.items():
        assert gaps(sentence) == gaps(ZH.sentences[key]), key
    assert EN.families.keys() == ZH.families.keys()
    assert EN.measures.keys() == ZH.measures.keys()
    assert EN.groups.keys() == ZH.groups.keys()
    assert EN.counts.keys() <= ZH.counts.keys()  # the English names of findings are those of the audit


def test_nothing_is_left_in_english() -> None:
    same = {key for key, sentence in ZH.sentences.items() if not re.search(r"[\u4e00-\u9fff]", sentence)}
    assert same == {"metric_joint", "list_joint", "curve_of"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("retrieval.i2t.r1", "image → sentence, R@1"),
        ("matching.within_image", "entity → object, within the image"),
        ("matching.within_image.type.LOC.city", "entity → object, within the image, type LOC.city"),
        ("embedding.fine.uniformity.spans", "embedding, entity and object, uniformity of spans"),
        ("retrieval.i2t.new", "image → sentence, new"),
        ("quite.another", "quite.another"),
    ],
)
def test_metrics_have_names_for_readers(name: str, label: str) -> None:
    assert EN.metric(name) == label


def test_metrics_in_chinese() -> None:
    assert ZH.metric("retrieval.t2i.median_rank") == "句子 → 图像，中位名次"
    assert ZH.group("size", "small").startswith("小")
    assert ZH.group("type", "LOC") == "LOC"
    assert isinstance(ZH, Texts)


def test_numbers() -> None:
    assert [percent(0.8768), percent(None), percent(0)] == ["87.7 %", "–", "0.0 %"]
    assert [points(0.0321), points(-0.0321)] == ["+3.2", "−3.2"]
    assert [number(2092), number(1.0), number(0.02606), number(-2.31), number(1234.56)] == [
        "2,092",
        "1",
        "0.02606",
        "−2.31",
        "1,234.6",
    ]
    assert [number(value) for value in (float("nan"), float("inf"), float("-inf"))] == ["–"] * 3
    assert [number(None), signed(-0.5), signed(0.25)] == ["–", "−0.5", "+0.25"]


@pytest.mark.parametrize("value", [-0.0, -1e-9, -0.00004])
def test_zero_has_no_minus(value: float) -> None:
    texts_of_zero = [percent(value), points(value), similarity(value), similarity(value, 3), number(-0.0), signed(-0.0)]
    assert not any("−" in text or "-" in text for text in texts_of_zero)
    assert (percent(value), similarity(value, 3), number(-0.0)) == ("0.0 %", "0.000", "0")


def test_the_terminal_has_no_minus_before_zero() -> None:
    table = metrics_table({"occlusion.fine.object": -0.0001, "retrieval.i2t.r1": -0.0, "x.mean_rank": -0.01})
    console = Console(width=120, record=True, file=StringIO())
    console.print(table)
    shown = console.export_text()
    assert "0.000" in shown
    assert not re.search(r"-0\.0+\b", shown)


def test_all_incidents_and_findings_have_a_chinese_name() -> None:
    """Kinds are the first argument of `Incident` in the sources, and the keys of the audit's tables."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (Path(spanbox.__file__).parent).rglob("*.py"))
    kinds = set(re.findall(r'Incident\(\s*"([^"]+)"', sources))
    assert "clipped box" in kinds
    missing = {kind for kind in kinds | PROBLEMS.keys() | NOTES.keys() if ZH.count(kind) == kind}
    assert missing == set()
