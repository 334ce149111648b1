"""Marian models from local folders."""

import shutil
from pathlib import Path

import pytest
import torch

from marian import TEXTS, write_marian
from spanbox.errors import ConfigError
from spanbox.models.translation import MarianTranslator

pytest.importorskip("sentencepiece")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_marian(tmp_path_factory.mktemp("models") / "tiny-en-zh")


@pytest.mark.slow
def test_translates_in_the_order_of_the_texts(folder: Path) -> None:
    translator = MarianTranslator(str(folder), CPU)
    alone = [translator.translate([text])[0] for text in TEXTS]
    assert translator.translate(TEXTS) == alone == MarianTranslator(str(folder), CPU).translate(TEXTS)
    assert any(alone)
    assert translator.name == "tiny-en-zh"


def test_equals_transformers_own_generation(folder: Path) -> None:
    translator = MarianTranslator(str(folder), CPU)
    inputs = translator.tokenizer(TEXTS[:1], return_tensors="pt")
    tokens = translator.model.generate(**inputs, max_new_tokens=40)
    assert translator.translate(TEXTS[:1]) == translator.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def test_a_translation_without_an_end_is_none(folder: Path) -> None:
    translator = MarianTranslator(str(folder), CPU)
    translator.model.final_logits_bias[0, 0] = -100
    assert translator.translate(TEXTS) == [""] * 4


def test_a_text_beyond_the_length_of_the_model(folder: Path) -> None:
    assert len(MarianTranslator(str(folder), CPU).translate(["the cat " * 500, "a"])) == 2


@pytest.mark.slow
def test_a_target_language(folder: Path) -> None:
    plain, french = MarianTranslator(str(folder), CPU), MarianTranslator(f"{folder}@fra", CPU)
    assert plain.key != french.key
    assert french.translate(TEXTS) != plain.translate(TEXTS)
    with pytest.raises(ConfigError, match=r"has no target language 'deu'; it has .*fra"):
        MarianTranslator(f"{folder}@deu", CPU)


@pytest.mark.slow
def test_the_key_changes_with_the_model(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert MarianTranslator(str(copy), CPU).key == MarianTranslator(str(folder), CPU).key
    other = write_marian(tmp_path / "other", seed=1)
    assert MarianTranslator(str(other), CPU).key != MarianTranslator(str(folder), CPU).key


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a folder with a config\.json; give .* `hf download Helsinki-NLP/"):
        MarianTranslator(str(tmp_path / "none"), CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert"}', r"holds a model of type 'bert'; expected a Marian model.*--translator"),
        ("[]", "is not a transformers config"),
        ("{", "is not a transformers config"),
    ],
)
def test_no_marian_model(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        MarianTranslator(str(tmp_path), CPU)


def test_without_sentencepiece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanbox.models.translation.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need the package sentencepiece: pip install 'spanbox\[translate\]'"):
        MarianTranslator(str(folder), CPU)


@pytest.mark.parametrize("file", ["model.safetensors", "source.spm", "vocab.json"])
def test_damaged_files(folder: Path, tmp_path: Path, file: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / file).write_bytes(b"\0" * 40)
    with pytest.raises(ConfigError, match="cannot be loaded as a Marian model: "):
        MarianTranslator(str(copy), CPU)


def test_missing_weights(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ConfigError, match=r"lacks weights of its model, such as model\.encoder\.layers\.0\.fc1\.weight"
    ):
        MarianTranslator(str(copy), CPU)


def test_a_git_lfs_pointer(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(ConfigError, match=r"--via: .* is a Git LFS pointer"):
        MarianTranslator(str(copy), CPU)
