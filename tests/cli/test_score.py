"""`spanbox score`."""

import json
from pathlib import Path

import pytest

from command import Command
from spanbox.cli.score import print_scores
from spanbox.data.manifest import Entity, Record, write_manifest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    records = [
        Record(
            id=str(i),
            image=f"{i}.jpg",
            text="姚明在北京",
            entities=(Entity(0, 2, type="人物"), Entity(3, 5, type="[LOC]")),
        )
        for i in range(4)
    ]
    write_manifest(tmp_path / "gold.jsonl", records)
    return tmp_path / "gold.jsonl"


def write_predictions(path: Path, *ids: str) -> Path:
    entities = [{"start": 0, "end": 2, "type": "人物", "box": None}]
    path.write_text("".join(json.dumps({"id": name, "entities": entities}) + "\n" for name in ids))
    return path


def test_the_table_and_the_file(spanbox: Command, data: Path, tmp_path: Path) -> None:
    outcome = spanbox("score", write_predictions(tmp_path / "found.jsonl", "0", "1", "2"), "--data", data)
    assert outcome.code == 0, outcome.err
    rows = [line.split() for line in outcome.out.rpartition("──")[2].splitlines()[1:8]]
    assert [row[0] for row in rows] == ["GMNER", "[LOC]", "人物", "MNER", "[LOC]", "人物", "EEG"]
    assert rows[0][1:4] == ["100.00", "37.50", "54.55"]
    assert rows[0][-3:] == ["3", "3", "8"]
    assert rows[4][1:4] == ["0.00", "0.00", "0.00"]
    assert "note: 1 of 4 pairs have no line of predictions: all their entities are missed" in outcome.out
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert written["predictions"] == str(tmp_path / "found.jsonl")
    assert written["gmner.recall"] == 0.375
    assert written["gmner.recall.low"] <= 0.375 <= written["gmner.recall.high"]
    assert written["mner.type.人物.correct"] == 3


def test_another_file(spanbox: Command, data: Path, tmp_path: Path) -> None:
    found = write_predictions(tmp_path / "found.jsonl", "0")
    assert spanbox("score", found, "--data", data, "--out", tmp_path / "new" / "all.json").code == 0
    assert (tmp_path / "new" / "all.json").is_file()
    outcome = spanbox("score", found, "--data", data, "--out", found / "all.json")
    assert (outcome.code, outcome.err.count("cannot be written")) == (2, 1)


def test_a_wrong_line_is_named(spanbox: Command, data: Path, tmp_path: Path) -> None:
    outcome = spanbox("score", write_predictions(tmp_path / "found.jsonl", "0", "9"), "--data", data)
    assert outcome.code == 2
    assert outcome.err.startswith(
        f"spanbox: {tmp_path}/found.jsonl, line 2: id: '9' is not the id of a pair in the data"
    )


def test_predictions_with_gold_spans_are_called_so(spanbox: Command, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "0", "entities": [], "gold_spans": true}\n')
    outcome = spanbox("score", path, "--data", data)
    assert outcome.code == 0
    assert "EEG, gold spans" in outcome.out
    assert "MNER " not in outcome.out.partition("note:")[0]
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert written["gold_spans"] is True
    assert not any(name.startswith(("gmner", "mner", "eeg.")) for name in written)


def test_types_are_no_markup_and_control_nothing(spanbox: Command, tmp_path: Path) -> None:
    entity = Entity(0, 2, type="[/b]\x1b[31m\r")
    write_manifest(tmp_path / "[b].jsonl", [Record(id="0", image="0.jpg", text="姚明", entities=(entity,))])
    (tmp_path / "p.jsonl").write_text(
        '{"id": "0", "entities": [{"start": 0, "end": 1, "type": "[/i]", "box": null}]}\n'
    )
    outcome = spanbox("score", tmp_path / "p.jsonl", "--data", tmp_path / "[b].jsonl")
    assert outcome.code == 0, outcome.err
    assert r"[/b]\x1b[31m\r" in outcome.out
    assert "types that the data does not have: [/i]" in outcome.out
    assert "\x1b[31m" not in outcome.out


def test_an_output_that_is_a_folder(spanbox: Command, data: Path, tmp_path: Path) -> None:
    outcome = spanbox("score", write_predictions(tmp_path / "p.jsonl", "0"), "--data", data, "--out", tmp_path)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "cannot be written" in outcome.err


def test_an_output_that_is_an_input(spanbox: Command, data: Path, tmp_path: Path) -> None:
    found, gold = write_predictions(tmp_path / "found.json", "0"), data.rename(tmp_path / "gold.json")
    for path in (found, gold):
        before = path.read_bytes()
        outcome = spanbox("score", found, "--data", gold, "--out", path)
        assert (outcome.code, outcome.err.count("is read by this command")) == (2, 1)
        assert path.read_bytes() == before


def test_a_narrow_terminal_cuts_off_no_digit(
    spanbox: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = write_predictions(tmp_path / "found.jsonl", "0", "1", "2")
    wide = spanbox("score", found, "--data", data).out
    monkeypatch.setenv("COLUMNS", "30")
    narrow = spanbox("score", found, "--data", data).out
    assert "…" not in narrow
    assert [line.split() for line in wide.splitlines() if "100.00" in line] == [
        line.split() for line in narrow.splitlines() if "100.00" in line
    ]


def test_a_long_name_of_a_type_is_wrapped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    row = f"gmner.type.{'种类' * 200}"
    figures = ("precision", "recall", "f1", "correct", "predicted", "gold")
    print_scores({f"{name}.{figure}": 1.0 for name in ("gmner", row) for figure in figures}, ["gmner", row], [], "run")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 120
    assert "".join(lines).count("种类") > 150
