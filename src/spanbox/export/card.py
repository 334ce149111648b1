"""The model card of an export: README.md with metadata, use, training, metrics and licence."""

from pathlib import Path
from typing import Any

import torch

from spanbox import __version__
from spanbox.api import Model
from spanbox.documents import dump_yaml, read_object
from spanbox.engine.checkpoint import VALIDATION
from spanbox.models.families import VISION_FAMILIES

METRICS = {
    "retrieval.i2t.r1": "image to sentence, R@1",
    "retrieval.t2i.r1": "sentence to image, R@1",
    "matching.within_image": "entity to object within the image, R@1",
    "matching.across_set.r1": "entity to object across the set, R@1",
    "matching.presence.auc": "shown or only named, AUC",
}
TRANSFORMERS_USE = """\
import json

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

heads, settings = load_file("heads.safetensors"), json.load(open("heads.json"))
tokenizer, text = AutoTokenizer.from_pretrained("text"), AutoModel.from_pretrained("text").eval()
processor = AutoImageProcessor.from_pretrained("vision", use_fast=False)
vision = AutoModel.from_pretrained("vision").eval()


def opened(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def feature(part, pooled):
    return torch.nn.functional.normalize(pooled @ heads[f"{part}.weight"].T + heads[f"{part}.bias"], dim=-1)


with torch.no_grad():
    length = settings["text"]["max_tokens"]
    tokens = tokenizer(TEXTS, truncation=True, max_length=length, padding=True, return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    states = text(**tokens)
    texts = feature("text", TEXT_POOL)
    pixels = processor([opened(path) for path in IMAGES], return_tensors="pt")["pixel_values"]
    states = vision(pixels)
    images = feature("image", IMAGE_POOL)
scores = texts @ images.T  # cosines
"""
TEXT_POOLS = {
    "cls": "states.last_hidden_state[:, 0]",
    "pooler": "states.pooler_output",
    "mean": '(states.last_hidden_state * (mask := tokens["attention_mask"][..., None])).sum(1) / mask.sum(1)',
}
DUAL_ENCODER_USE = """\
from transformers import VisionTextDualEncoderModel, VisionTextDualEncoderProcessor

model = VisionTextDualEncoderModel.from_pretrained("dual_encoder")
processor = VisionTextDualEncoderProcessor.from_pretrained("dual_encoder", use_fast=False)
"""
SENTENCE_TRANSFORMERS_USE = """\
from sentence_transformers import SentenceTransformer

texts = SentenceTransformer(".").encode(TEXTS)
"""
ONNX_USE = """\
import onnxruntime

text = onnxruntime.InferenceSession("text.onnx")
image = onnxruntime.InferenceSession("image.onnx")
print([(each.name, each.shape) for each in text.get_inputs() + image.get_inputs()])
"""


def model_card(model: Model, target: str, folder: Path, notes: list[str], licence: str | None) -> str:
    """The model card, as Markdown with YAML metadata, of an export in `folder`."""
    metadata: dict[str, Any] = {"library_name": target, "tags": ["image-text", "contrastive", "spanbox"]}
    if licence:
        metadata["license"] = licence
    rows = [
        f"Trained by spanbox {__version__}: sentences with images and spans of sentences with boxes, "
        f"{model.dim} shared features.",
        "",
        *_section("Notes", [f"- {note}" for note in notes]),
        *_section("Use", _use(model, target, folder)),
        *_section("Training", _training(model)),
        *_section("Metrics", _metrics(model)),
        *_section("Licence", [_licence(model, licence)]),
    ]
    front = dump_yaml(metadata)
    return f"---\n{front}---\n\n# {_name(model)}\n\n" + "\n".join(rows)


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _name(model: Model) -> str:
    """The name of the run, or of a checkpoint that belongs to none."""
    folder = model.checkpoint.absolute()
    return folder.parents[1].name if folder.parent.name == "checkpoints" else folder.name


def _use(model: Model, target: str, folder: Path) -> list[str]:
    if target == "onnx":
        return _block(ONNX_USE)
    if target == "sentence-transformers":
        return ["`TEXTS` is a list of sentences:", "", *_block(SENTENCE_TRANSFORMERS_USE)]
    text, image = _text_pooling(model), _image_pooling(model)
    if text is None or image is None:
        return ["Pool the states of the encoders as heads.json says, then apply the layers of heads.safetensors."]
    code = TRANSFORMERS_USE.replace("TEXT_POOL", text).replace("IMAGE_POOL", image)
    example = ["`TEXTS` is a list of sentences, `IMAGES` a list of paths of images:", "", *_block(code)]
    if not (folder / "dual_encoder").is_dir():
        return example
    return [
        *example,
        "",
        "Or with the pair as one model, whose `logits_per_text` are cosines by temperature:",
        "",
        *_block(DUAL_ENCODER_USE),
    ]


def _block(code: str) -> list[str]:
    return ["```python", code.rstrip(), "```"]


def _text_pooling(model: Model) -> str | None:
    """How a plain encoder's output gives the pooled state, as code; None where it takes more than an expression."""
    tower = model.model.text
    if tower.model.config.model_type == "siglip_text_model":
        return None
    return TEXT_POOLS[tower.settings.pool]


@torch.no_grad()
def _image_pooling(model: Model) -> str | None:
    tower: Any = model.model.vision
    family, pool = VISION_FAMILIES[tower.model.config.model_type], tower.settings.pool
    if family.convolutional:
        return None
    if family.final_norm is not None:
        return None if pool == "mean" else "states.pooler_output"
    if pool != "mean":
        return "states.pooler_output" if pool == "pooler" else "states.last_hidden_state[:, 0]"
    arguments = {"interpolate_pos_encoding": True} if family.has_interpolate_argument else {}
    states = tower.model(torch.zeros(1, 3, tower.image_size, tower.image_size, device=model.device), **arguments)
    prefix = states.last_hidden_state.shape[1] - (tower.image_size // tower.stride) ** 2
    return f"states.last_hidden_state[:, {prefix}:].mean(1)"


def _training(model: Model) -> list[str]:
    config = model.config
    towers = [
        (part, getattr(config.model, part).path, getattr(model.model, part).model.config.model_type)
        for part in ("text", "vision")
    ]
    manifest = Path(config.data.train).name if config.data.train else "not stated"
    levels = ", ".join(
        f"{name} (weight {level.weight:g})" for name, level in config.loss.levels().items() if level.used
    )
    return [
        f"- data: `{manifest}`",
        *(
            f"- {part} encoder: {kind}, from {Path(path).name if path else 'random weights'}"
            for part, path, kind in towers
        ),
        f"- losses: {levels}",
        f"- batch of {config.train.batch_size} pairs; checkpoint `{model.checkpoint.resolve().name}`",
    ]


def _metrics(model: Model) -> list[str]:
    """The metrics of the last evaluation of the checkpoint, else of its validation."""
    checkpoint = model.checkpoint.resolve()
    for path in (checkpoint.parent.parent / "metrics.json", checkpoint / VALIDATION):
        found = read_object(path)
        if found.get("checkpoint", checkpoint.name) != checkpoint.name or not found.keys() & METRICS.keys():
            continue
        rows = [f"| {label} | {found[name]:.3f} |" for name, label in METRICS.items() if name in found]
        data = f"On `{Path(str(found['data'])).name}`:" if "data" in found else "On the validation set:"
        return [data, "", "| metric | value |", "|---|---:|", *rows]
    return ["None were computed."]


def _licence(model: Model, licence: str | None) -> str:
    given = f"`{licence}`, as stated at export." if licence else "None was stated at export (`--licence`)."
    return f"{given} The weights derive from the encoders and the data above, whose terms apply too."
