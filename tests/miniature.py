"""The demo in miniature: a few small scenes and towers of one layer, so that a whole run takes half a second."""

from pathlib import Path

from transformers import BertConfig, BertModel, ViTConfig, ViTModel

import tiny
from spanbox.config import RunConfig, load_config
from spanbox.data.demo import DemoSettings, write_demo
from spanbox.data.demo_sentences import Language
from spanbox.data.manifest import Manifest
from spanbox.data.tokenizer import train_tokenizer

TOWERS = [
    "model.dim=16",
    "model.text.architecture.vocab_size=256",
    *(
        f"model.{tower}.architecture.{key}={value}"
        for tower in ("text", "vision")
        for key, value in {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}.items()
    ),
    "model.vision.architecture.image_size=48",
    "model.vision.architecture.patch_size=16",
]
DROPOUT = [f"model.{tower}.architecture.hidden_dropout_prob=0.2" for tower in ("text", "vision")]
SCHEDULE = [
    "train.batch_size=8",
    "train.steps=6",
    "train.log_every=1",
    "train.validate_every=3",
    "train.save_every=3",
    "train.device=cpu",
    "data.workers=0",
]


def write_scenes(folder: Path, *, languages: tuple[Language, ...] = ("en",)) -> Path:
    """32 scenes to train on, 12 to validate on, 12 to test on. Returns the folder."""
    settings = DemoSettings(concepts=20, size=64, languages=languages)
    write_demo(folder, {"train": 32, "val": 12, "test": 12}, settings)
    return folder


def paths(data: Path, run: Path) -> list[str]:
    """Overrides that name the data and the run folder."""
    return [f"data.train={data}/train.jsonl", f"data.val={data}/val.jsonl", f"run.dir={run}"]


def demo_overrides(data: Path, run: Path, *more: str) -> list[str]:
    """What makes the demo recipe small."""
    return [*paths(data, run), *TOWERS, *SCHEDULE, *more]


def demo_config(data: Path, run: Path, *more: str) -> RunConfig:
    return load_config("demo", demo_overrides(data, run, *more))


def save_pretrained_towers(folder: Path, manifest: Path) -> list[str]:
    """A tiny BERT with a tokenizer of the manifest's texts and a tiny ViT, as transformers saves them. Returns the
    overrides that make them the towers."""
    tokenizer = train_tokenizer((record.text for record in Manifest(manifest)), 128)
    tokenizer.save_pretrained(folder / "bert")
    bert = tiny.bert(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id)
    BertModel(BertConfig(**bert)).save_pretrained(folder / "bert")
    ViTModel(ViTConfig(**tiny.vit())).save_pretrained(folder / "vit")
    return [f"model.text.path={folder}/bert", f"model.vision.path={folder}/vit"]
