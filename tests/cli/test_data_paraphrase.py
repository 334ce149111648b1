"""`spanbox data paraphrase`: options, output, and the whole way into training."""

import re
from functools import partial
from pathlib import Path

import pytest

import miniature
from command import Command
from spanbox.data.manifest import Manifest, Record, write_manifest

PLUGIN = """
def translate(texts):
    return [" ".join(reversed(text.split())) for text in texts]

def fails(texts):
    raise RuntimeError("no credit left")

def empty(texts):
    return [None] * len(texts)

number = 3
"""


@pytest.fixture
def spanbox(spanbox: Command, tmp_path: Path) -> Command:
    """Runs `spanbox data paraphrase` where there is a module of translators."""
    (tmp_path / f"plugin_{tmp_path.name}.py").write_text(PLUGIN)
    return partial(spanbox, "data", "paraphrase")


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    return f"plugin_{tmp_path.name}"


def test_a_function(spanbox: Command, plugin: str, scenes: Path, tmp_path: Path) -> None:
    result = spanbox(scenes / "train.jsonl", "out.jsonl", "--translator", f"{plugin}:translate")
    assert result.code == 0
    found = re.search(r"32 pairs, (\d+) texts translated", result.out)
    assert found is not None
    count = int(found[1])
    assert count <= 32  # texts that differ in their entities alone are translated once
    assert "for both levels: 32" in result.out
    assert "texts/s" in result.err
    out = Manifest(tmp_path / "out.jsonl")
    for record in out:
        (paraphrase,) = record.paraphrases
        assert paraphrase.source == f"{plugin}:translate"
        other = record.paraphrased(paraphrase)
        assert [other.span_text(a) for a in other.entities] == [record.span_text(a) for a in record.entities]
    again = spanbox(scenes / "train.jsonl", "out.jsonl", "--translator", f"{plugin}:translate")
    assert f"{count} translations from out.jsonl.translations" in again.out
    assert "0 texts translated" in again.out


def test_the_result_passes_the_check_and_is_trained_on(
    spanbox: Command, plugin: str, scenes: Path, tmp_path: Path
) -> None:
    out = scenes / "more.jsonl"
    assert spanbox(scenes / "train.jsonl", out, "--translator", f"{plugin}:translate").code == 0
    command = spanbox.func  # type: ignore[attr-defined]
    checked = command("data", "check", out)
    assert (checked.code, "paraphrases" in checked.out) == (0, True)
    overrides = miniature.demo_overrides(scenes, tmp_path / "run", "data.augment.text.preset=strong", "train.steps=2")
    trained = command("train", "demo", *overrides, f"data.train={out}")
    assert trained.code == 0, trained.err


def test_a_translator_that_fails(spanbox: Command, plugin: str, scenes: Path, tmp_path: Path) -> None:
    result = spanbox(scenes / "train.jsonl", "out.jsonl", "--translator", f"{plugin}:fails")
    assert result.code == 2
    assert "failed with RuntimeError: no credit left at a batch of" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_translator_that_returns_nothing(spanbox: Command, plugin: str, scenes: Path, tmp_path: Path) -> None:
    result = spanbox(scenes / "train.jsonl", "out.jsonl", "--translator", f"{plugin}:empty")
    assert (result.code, "gave no translation of any text; out.jsonl is not written" in result.err) == (2, True)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a translator: --via DIR[,DIR], or --translator module:function"),
        (["--translator", "json"], "'json' is not an import path; expected module:function"),
        (["--translator", "no_such_module:f"], "the module 'no_such_module' cannot be imported (ModuleNotFoundError"),
        (["--translator", "json:none"], "'json' has no function 'none'"),
        (["--via", "none,none"], "none is not a folder with a config.json; give the folder of a Marian model"),
        (["--translator", "json:loads", "--lost", "keep"], "--lost: 'keep' is not a choice; expected coarse or drop"),
        (["--via", "none", "--device", "tpu"], "'tpu' is not a device"),
    ],
)
def test_wrong_options(spanbox: Command, scenes: Path, options: list[str], message: str) -> None:
    result = spanbox(scenes / "train.jsonl", "out.jsonl", *options)
    assert (result.code, message in result.err) == (2, True), result.err


def test_what_is_no_function(spanbox: Command, plugin: str, scenes: Path) -> None:
    result = spanbox(scenes / "train.jsonl", "out.jsonl", "--translator", f"{plugin}:number")
    assert f"'{plugin}' has no function 'number'" in result.err


def test_marian_models(spanbox: Command, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    import torch

    from marian import TEXTS, write_marian
    from spanbox.models.translation import MarianTranslator

    there = MarianTranslator(str(write_marian(tmp_path / "there")), torch.device("cpu"))
    back = MarianTranslator(str(write_marian(tmp_path / "back", seed=1)), torch.device("cpu"))
    once = there.translate(TEXTS)
    twice = [back.translate([text])[0] if text else "" for text in once]
    write_manifest(tmp_path / "in.jsonl", [Record(str(i), "a.png", text) for i, text in enumerate(TEXTS)])
    result = spanbox("in.jsonl", "out.jsonl", "--via", "there,back", "--via", "there", "--device", "cpu")
    assert result.code == 0, result.err
    expected = [
        {(text, source) for text, source in (("there, back", second), ("there", first)) if source}
        for first, second in zip(once, twice, strict=True)
    ]
    assert any(expected)
    found = Manifest(tmp_path / "out.jsonl")
    assert [{(p.source, p.text) for p in record.paraphrases} for record in found] == expected
