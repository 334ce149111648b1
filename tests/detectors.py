"""Tiny zero-shot detectors on disk, and a stand-in for spaCy."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    SwinConfig,
)

LAYER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_owlvit(folder: Path) -> Path:
    """OWL-ViT of one layer with random weights, as transformers saves it. Each of 4 x 4 patches has a box."""
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    images = OwlViTImageProcessor(size={"height": 32, "width": 32})
    OwlViTProcessor(image_processor=images, tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(
        folder
    )
    text = LAYER | {"vocab_size": len(names), "bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1}
    vision = LAYER | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = OwlViTConfig(text_config=text | {"pad_token_id": 0}, vision_config=vision, projection_dim=16)
    model = OwlViTForObjectDetection(config)
    for value in (model.box_head.dense2.weight, model.box_head.dense2.bias):
        torch.nn.init.zeros_(value)  # each patch gives a box of a quarter of the image
    model.save_pretrained(folder)
    return folder


def write_grounding_dino(folder: Path) -> Path:
    """Grounding DINO of a few layers with random weights and 12 queries."""
    letters = [chr(code) for code in range(97, 123)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters, *(f"##{letter}" for letter in letters)]
    images = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    tokenizer = BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    GroundingDinoProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    width = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 12, "max_text_len": 32}
    stages = {"out_features": ["stage2", "stage3", "stage4"], "window_size": 2, "image_size": 32}
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], **stages),
        text_config=BertConfig(vocab_size=len(names), **(LAYER | {"hidden_size": 32})),
        **width,
        **heads,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return folder


class FakeSpan(SimpleNamespace):
    """A span of spaCy with the attributes that are used."""


class FakeDocument:
    """Capitalised words are entities; an article with a word, and pronouns, are noun phrases."""

    def __init__(self, text: str, language: str) -> None:
        self._text = text
        self._language = language
        self.ents = self._found(r"[A-Z]\w+|猫", "NAME", "PROPN")

    @property
    def noun_chunks(self) -> Iterator[FakeSpan]:
        if self._language == "zh":
            raise NotImplementedError("[E894] The 'noun_chunks' syntax iterator is not implemented for language 'zh'.")
        yield from self._found(r"\b(?:a|the) \w+(?: \w+)?", "", "NOUN")
        yield from self._found(r"\bit\b", "", "PRON")

    def _found(self, pattern: str, label: str, kind: str) -> list[FakeSpan]:
        root = SimpleNamespace(pos_=kind)
        return [
            FakeSpan(start_char=match.start(), end_char=match.end(), label_=label, root=root)
            for match in re.finditer(pattern, self._text)
        ]


def install_fake_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `spacy` with the pipelines `xx_fake` and `zh_fake`."""

    def load(name: str) -> Any:
        if name not in ("xx_fake", "zh_fake"):
            raise OSError(f"[E050] Can't find model '{name}'.")

        def pipe(texts: Sequence[str]) -> Iterator[FakeDocument]:
            return (FakeDocument(text, name[:2]) for text in texts)

        return SimpleNamespace(pipe=pipe, meta={"version": "1"})

    module = ModuleType("spacy")
    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
