"""`spanbox gmner`: from scenes to scores, and mistakes on the command line."""

import json
from pathlib import Path

import pytest

import miniature
from command import Command
from spanbox.wiring import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("zh",))


def test_from_pretraining_to_scores(scenes: Path, spanbox: Command) -> None:
    train(miniature.demo_config(scenes, Path("run"), "data.val=null", "train.steps=1"))
    test = scenes / "test.jsonl"
    code, out, err = spanbox(
        *("gmner", "train", scenes / "train.jsonl", "--val", scenes / "val.jsonl", "--from", "run", "--out", "ner"),
        *("train.batch_size=8", "train.steps=2", "train.device=cpu"),
    )
    assert code == 0, err
    assert "GMNER, best checkpoint" in out
    code, out, err = spanbox("gmner", "predict", "ner", test, "--out", "found.jsonl", "--device", "cpu")
    assert code == 0, err
    code, _, err = spanbox("score", "found.jsonl", "--data", test, "--out", "theirs.json")
    assert code == 0, err
    code, out, err = spanbox("gmner", "score", "ner", test, "--out", "own.json", "--device", "cpu")
    assert code == 0, err
    own, theirs = (json.loads(Path(f"{name}.json").read_text(encoding="utf-8")) for name in ("own", "theirs"))
    figures = [name for name in theirs if "." in name]
    assert figures
    assert all(own[name] == theirs[name] for name in figures)
    code, out, err = spanbox("gmner", "score", "ner", test, "--text-only", "--out", "texts.json", "--device", "cpu")
    assert code == 0, err
    assert "MNER" in out
    assert "EEG" not in out
    code, _, err = spanbox("gmner", "train", "--out", "ner", "--resume", "train.steps=3", "gmner.temperature=0.5")
    assert code == 2
    assert "gmner.temperature=0.5 (the run began with 0.07)" in err
    code, _, err = spanbox("gmner", "train", "--out", "ner", "--resume", "train.steps=3")
    assert code == 0, err


MISTAKES = {
    "no manifest": (["--from", "run"], "give the manifest to train on"),
    "no start": (["train.jsonl"], "either --from RUN"),
    "two starts": (["train.jsonl", "--from", "run", "--recipe", "demo"], "either --from RUN"),
    "resuming with data": (["train.jsonl", "--resume"], "--resume continues a run as it began"),
    "resuming with changes": (["--out", "nowhere", "--resume", "train.steps=9"], "nowhere/config.yaml"),
    "no such run": (["train.jsonl", "--from", "nowhere"], "nowhere: no checkpoint here"),
    "nothing to resume": (["--out", "nowhere", "--resume"], "nowhere/config.yaml"),
    "an unknown key": (["train.jsonl", "--recipe", "demo", "gmner.region_wait=1"], "gmner.region_weight"),
    "no such data": (["train.jsonl", "--recipe", "demo"], "train.jsonl: no such manifest"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, spanbox: Command) -> None:
    arguments, message = MISTAKES[mistake]
    code, _, err = spanbox("gmner", "train", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_run_that_is_not_there(spanbox: Command, scenes: Path) -> None:
    code, _, err = spanbox("gmner", "score", "nowhere", scenes / "test.jsonl")
    assert code == 2
    assert "nowhere: no checkpoint here" in err
