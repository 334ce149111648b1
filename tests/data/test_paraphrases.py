"""Paraphrases in manifests: what is accepted, what is refused, and what the audit says."""

import json
from pathlib import Path
from typing import Any

import pytest

from pairs import entity, save_manifest
from spanbox.data.audit import audit
from spanbox.data.manifest import Manifest, Record, identity_key
from spanbox.data.paraphrases import Paraphrase, ParaphraseSpan
from spanbox.errors import DataError

TEXT = "the cat 🐈 and the dog"
PAIR = {
    "id": "1",
    "image": "1.png",
    "text": TEXT,
    "entities": [{"start": 4, "end": 7, "boxes": [[0, 0, 8, 8]], "type": "animal"}, {"start": 18, "end": 21}],
}


def manifest(folder: Path, *paraphrases: dict[str, Any]) -> Path:
    path = folder / "m.jsonl"
    path.write_text(json.dumps(PAIR | {"paraphrases": paraphrases}), encoding="utf-8")
    return path


def test_they_survive_writing_and_reading(tmp_path: Path) -> None:
    paraphrases = (
        Paraphrase("一只狗和一只猫", (ParaphraseSpan(0, 6, 7), ParaphraseSpan(1, 2, 3)), "zh", "en-zh"),
        Paraphrase("two animals"),
    )
    record = Record("1", "1.png", TEXT, entities=(entity(TEXT, "cat"), entity(TEXT, "dog")), paraphrases=paraphrases)
    assert list(save_manifest(tmp_path, [record])) == [record]


def test_a_pair_reads_its_paraphrase(tmp_path: Path) -> None:
    spans = [{"entity": 1, "start": 0, "end": 1}, {"entity": 0, "start": 2, "end": 3}]
    record = Manifest(manifest(tmp_path, {"text": "狗和猫", "entities": spans, "lang": "zh"}))[0]
    other = record.paraphrased(record.paraphrases[0])
    assert (other.text, other.lang, other.paraphrases) == ("狗和猫", "zh", ())
    assert [other.span_text(found) for found in other.entities] == ["猫", "狗"]
    assert [identity_key(other.text, found) for found in other.entities] == ["cat", "dog"]
    assert [found.boxes for found in other.entities] == [((0, 0, 8, 8),), ()]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"text": " "}, r"paraphrases\[1\]\.text: is empty; remove the paraphrase", "wrong line"),
    ({"text": "x" * 20}, r"paraphrases\[1\]\.text: has 20 characters; shorten it to 15", "wrong line"),
    (
        {"text": "a cat", "entities": [{"entity": 0, "start": 2, "end": 5}]},
        r"paraphrases\[1\]\.entities: name the entities \[0\] of a pair with 2; give each of them once, or none",
        "wrong line",
    ),
    (
        {"text": "a", "entities": [{"entity": 0, "start": 0, "end": 1}, {"entity": 9, "start": 0, "end": 1}]},
        r"paraphrases\[1\]\.entities: name the entities \[0, 9\] of a pair with 2",
        "wrong line",
    ),
    (
        {"text": "a dog", "entities": [{"entity": 0, "start": 0, "end": 1}, {"entity": 1, "start": 2, "end": 6}]},
        r"paraphrases\[1\]\.entities\[1\]: \[2, 6\) is not a span of a text of 5 characters",
        "unusable span",
    ),
    (
        {"text": "a dog", "entities": [{"entity": 0, "start": 1, "end": 2}, {"entity": 1, "start": 2, "end": 5}]},
        r"paraphrases\[1\]\.entities\[0\]: holds nothing but white space",
        "unusable span",
    ),
]


@pytest.mark.parametrize(("wrong", "message", "kind"), WRONG, ids=["empty", "long", "one", "other", "outside", "space"])
def test_wrong_ones_are_refused_and_reported(
    tmp_path: Path, wrong: dict[str, Any], message: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanbox.data.manifest.MAX_TEXT_CHARACTERS", 15)
    monkeypatch.setitem(PAIR, "text", "cat dog")
    monkeypatch.setitem(PAIR, "entities", [{"start": 0, "end": 3}, {"start": 4, "end": 7}])
    path = manifest(tmp_path, {"text": "animals"}, wrong)
    with pytest.raises(DataError, match=rf"m\.jsonl, line 1: {message}"):
        Manifest(path)
    finding = audit([path], decode=False).findings[kind]
    assert [example.detail for example in finding.examples]
    assert finding.examples[0].detail.startswith("paraphrases[1]")


@pytest.mark.parametrize(
    "wrong", [{}, {"text": 1}, {"text": "a", "extra": 1}, {"text": "a", "entities": [{"start": 1}]}]
)
def test_wrong_types(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"line 1: paraphrases\[0\].*; see docs/data\.md"):
        Manifest(manifest(tmp_path, wrong))


def test_they_are_counted_and_odd_ones_noted(tmp_path: Path) -> None:
    cut = [{"entity": 0, "start": 2, "end": 4}, {"entity": 1, "start": 6, "end": 9}]
    path = manifest(tmp_path, {"text": "a cat dog", "entities": cut}, {"text": TEXT}, {"text": "new"}, {"text": "new"})
    report = audit([path], decode=False)
    assert report.total.paraphrases == 4
    notes = {note.kind: [example.detail for example in note.examples] for note in report.notes}
    assert notes["paraphrase given twice"] == [f"paraphrases[1]: {TEXT!r}", "paraphrases[3]: 'new'"]
    assert notes["span cuts a word"] == ["paraphrases[0].entities[0]: [2, 4) is 'ca' in 'a cat dog'"]
