import re
from string import Formatter

import pytest

from spanbox.report.text import Texts, number, percent, points, signed, texts

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
        ("matching.within_image", "entity → object, own image"),
        ("matching.within_image.type.LOC.city", "entity → object, own image, type LOC.city"),
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
    assert [number(None), signed(-0.5), signed(0.25)] == ["–", "−0.5", "+0.25"]
