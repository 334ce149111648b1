"""The towers, batches and training steps that several benchmarks measure."""

from pathlib import Path
from typing import Any

import torch

from spanbox.engine.checkpoint import CheckpointFiles, CheckpointStore
from spanbox.engine.device import choose_device, choose_precision
from spanbox.engine.settings import TrainSettings
from spanbox.engine.tracking import IncidentTally
from spanbox.engine.trainer import Trainer
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder, ModelSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.towers import build_text_tower, build_vision_tower
from spanbox.structures import Batch
from spanbox.tasks.pretraining import Pretraining

SIZES = {
    "small": {
        "text": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
        "vision": {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "image_size": 112,
        },
    },
    "demo": {
        "text": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
        "vision": {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "image_size": 80,
        },
    },
    "base": {"text": {}, "vision": {}},
}
SPANS = REGIONS = 8
TOKENS = 32


def make_batch(pairs: int, image_size: int, *, tokens: int = TOKENS, crops: bool = False) -> Batch:
    """Pairs with 8 spans of 2 tokens and 8 regions each, every span linked to one region."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(pairs, REGIONS, 2, generator=generator) * 0.6
    span_tokens = torch.zeros(pairs, SPANS, tokens, dtype=torch.bool)
    for span in range(SPANS):
        span_tokens[:, span, 1 + 3 * span : 3 + 3 * span] = True
    shape = (pairs, REGIONS, 3, image_size, image_size)
    return Batch(
        pixels=torch.randint(256, (pairs, 3, image_size, image_size), generator=generator, dtype=torch.uint8),
        token_ids=torch.randint(5, 1000, (pairs, tokens), generator=generator),
        token_mask=torch.ones(pairs, tokens, dtype=torch.bool),
        span_tokens=span_tokens,
        span_entity=torch.arange(SPANS).repeat(pairs, 1),
        span_shown=torch.ones(pairs, SPANS, dtype=torch.int8),
        place=torch.arange(pairs),
        span_identity=torch.arange(pairs * SPANS).reshape(pairs, SPANS),
        regions=torch.cat([low, low + 0.3], dim=-1),
        region_valid=torch.ones(pairs, REGIONS, dtype=torch.bool),
        links=torch.eye(SPANS, REGIONS, dtype=torch.bool).repeat(pairs, 1, 1),
        group=torch.arange(pairs),
        sample=torch.arange(pairs),
        wording=torch.arange(pairs),
        crops=torch.randint(256, shape, generator=generator, dtype=torch.uint8) if crops else None,
    )


def make_model(
    size: str, source: str = "roi_align", *, checkpointing: bool = False, fusion: str = "none"
) -> DualEncoder:
    """A BERT and a ViT with the same random weights every time."""
    torch.manual_seed(0)
    settings = ModelSettings.model_validate(
        {
            "text": {
                "architecture": {"model_type": "bert", **SIZES[size]["text"]},
                "gradient_checkpointing": checkpointing,
            },
            "vision": {
                "architecture": {"model_type": "vit", **SIZES[size]["vision"]},
                "gradient_checkpointing": checkpointing,
            },
            "regions": {"source": source},
            "fusion": {"kind": fusion},
        }
    )
    vision = build_vision_tower(settings.vision)
    return DualEncoder(build_text_tower(settings.text), vision, Preprocessing(image_size=vision.image_size), settings)


def frozen(model: DualEncoder, tower: str | None) -> DualEncoder:
    """The model with one tower frozen, if one is named."""
    if tower:
        (model.text if tower == "text" else model.vision).requires_grad_(False)
    return model


def make_trainer(model: DualEncoder, folder: Path, loss: dict[str, Any] | None = None, **settings: Any) -> Trainer:
    """A trainer in training mode that neither validates nor saves."""
    train = TrainSettings.model_validate({"steps": 100_000, **settings})
    trainer = Trainer(
        Pretraining(model, Objective(LossSettings.model_validate(loss or {}), fusion=model.settings.fusion.kind)),
        train,
        example=lambda pairs: make_batch(pairs, model.vision.image_size),
        precision=choose_precision(train.precision, choose_device(train.device)),
        seed=0,
        run_dir=folder,
        store=CheckpointStore(folder, CheckpointFiles("", None, {}, model.preprocessing), keep=1),
        tally=IncidentTally(1, 0.0),
        validate=None,
    )
    model.train()
    return trainer
