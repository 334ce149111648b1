"""Tiny dual encoders and batches for them, for tests of what lies between the data and the losses. No file is read."""

import random
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal

import torch

import tiny
from spanbox.data.collate import Collator
from spanbox.data.tokenizer import train_tokenizer
from spanbox.engine.frozen_layers import FrozenLayers
from spanbox.engine.large_batch import States, TowerStep, accumulate_gradients, even_chunk
from spanbox.losses.kernel import WHOLE_SHARE
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder, ModelSettings, RegionSettings, SpanSettings
from spanbox.models.fusion_settings import FusionSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower
from spanbox.structures import Batch, Losses, Sample, stable_id
from spanbox.tasks.pretraining import Pretraining

THINGS = ("kite", "lamp", "bridge", "otter", "violin", "teapot", "canoe", "maple")
COLOURS = ("red", "blue", "green", "white", "grey")
MAX_TOKENS = 32
VOCABULARY = 128


@cache
def tokenizer() -> Any:
    """Knows every word of `make_sample`."""
    return train_tokenizer([f"the {colour} {thing} and" for colour in COLOURS for thing in THINGS], VOCABULARY)


def make_sample(number: int, spans: int = 2, regions: int = 3) -> Sample:
    """A decoded pair like any other: span `i` is shown by region `i`, the other regions show no span."""
    rng = random.Random(number)
    generator = torch.Generator().manual_seed(number)
    text, edges = "the", []
    for thing in rng.sample(THINGS, max(1, spans)):
        text += " and the " if edges else " "
        name = " ".join([*rng.sample(COLOURS, rng.randint(0, 2)), thing])
        edges.append((len(text), len(text) + len(name)))
        text += name
    corners = torch.rand(regions, 2, 2, generator=generator).sort(dim=1).values
    side = tiny.IMAGE_SIZE
    return Sample(
        id=f"pair-{number}",
        place=number,
        pixels=torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8),
        text=text,
        group=number,
        spans=tuple(edges[:spans]),
        span_texts=tuple(text[start:end] for start, end in edges[:spans]),
        entities=tuple(range(spans)),
        identities=tuple(stable_id(text[start:end]) for start, end in edges[:spans]),
        shown=tuple(int(span < regions) for span in range(spans)),
        regions=corners.flatten(1),
        links=torch.eye(spans, regions, dtype=torch.bool),
        crops=torch.randint(0, 256, (regions, 3, side, side), generator=generator, dtype=torch.uint8),
        incidents=(),
    )


def padded(sample: Sample, *sizes: tuple[int, int]) -> Sample:
    """The sample with a picture of the first of these sizes, which holds its regions, and crops of each in turn."""
    share = torch.tensor([*sizes[0], *sizes[0]]) / tiny.IMAGE_SIZE
    of_crops = torch.tensor([sizes[crop % len(sizes)] for crop in range(len(sample.regions))]).reshape(-1, 2)
    return replace(sample, regions=sample.regions * share, content=sizes[0], crop_content=of_crops)


def fused(kind: str, dropout: float = 0.0) -> FusionSettings:
    """A tiny fusion."""
    return FusionSettings.model_validate({"kind": kind, "layers": 2, "heads": 2, "width": 8, "dropout": dropout})


def collate(*samples: Sample) -> Batch:
    """A batch with all that any dual encoder reads: own tokens of the spans and crops of the regions too."""
    return Collator(tokenizer(), MAX_TOKENS, own_spans=True)(samples).batch


def make_model(
    *,
    spans: SpanSettings | None = None,
    regions: RegionSettings | None = None,
    fusion: FusionSettings | None = None,
    dim: int = 8,
    dropout: float = 0.0,
    projections: Literal["separate", "shared"] = "separate",
    pool: Literal["auto", "mean"] = "auto",
) -> DualEncoder:
    """A tiny BERT and a tiny ViT, random weights, in training mode."""
    text = tiny.bert(vocab_size=VOCABULARY, max_position_embeddings=MAX_TOKENS, hidden_dropout_prob=dropout)
    settings = ModelSettings(
        text=TowerSettings(architecture=text | {"attention_probs_dropout_prob": dropout}, pool=pool),
        vision=VisionTowerSettings(architecture=tiny.vit(hidden_dropout_prob=dropout), pool=pool),
        dim=dim,
        projections=projections,
        spans=spans or SpanSettings(),
        regions=regions or RegionSettings(),
        fusion=fusion or FusionSettings(),
    )
    towers = build_text_tower(settings.text), build_vision_tower(settings.vision)
    return DualEncoder(*towers, Preprocessing(image_size=tiny.IMAGE_SIZE), settings)


def with_views(batch: Batch, *, seed: int = 0, filled: bool = False) -> Batch:
    """Four views an image on the grid of patches, with 4, 8 or 12 of 16 visible; some tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    pairs, views, side = len(batch), 4, tiny.IMAGE_SIZE
    kept = 4 * torch.randint(1, 4, (pairs, views, 1), generator=generator)
    order = torch.rand(pairs, views, 16, generator=generator).argsort(dim=2)
    sentence = torch.randint(-1, 2, (pairs, views), generator=generator).to(torch.int8)
    spans = torch.randint(-1, 2, (pairs, views, batch.span_identity.shape[1]), generator=generator).to(torch.int8)
    pixels = torch.randint(0, 256, (pairs, views, 3, side, side), generator=generator).to(torch.uint8)
    return replace(
        batch,
        view_hidden=(order >= kept).reshape(pairs, views, 4, 4),
        view_sentence=sentence,
        view_spans=spans * (sentence != 0)[:, :, None],
        view_pixels=pixels if filled else None,
    )


def accumulate(
    model: DualEncoder, objective: Objective, batch: Batch, *, text: int = 1000, image: int = 1000
) -> Losses:
    """An exact step with so many texts and images in a chunk, on one rank."""
    task = Pretraining(model, objective)
    inputs = task.inputs(batch)
    sizes = {"text": text, "image": image}

    def score(*states: States) -> Losses:
        features = task.features(dict(zip(inputs.rows, states, strict=True)), inputs.rest)
        return task.losses(features, inputs.targets.to(model.device), WHOLE_SHARE)

    steps = [
        TowerStep(
            partial(task.encode, name),
            rows,
            sizes[name],
            task.trains(name),
            FrozenLayers.of(task.towers[name]),
        )
        for name, rows in inputs.rows.items()
    ]
    return accumulate_gradients(steps, score)


def in_one_graph(model: DualEncoder, objective: Objective, batch: Batch, text: int, image: int) -> Losses:
    """The slow, obvious way: the graphs of all chunks held at once. In chunks, so that dropout draws the same."""
    inputs = model.inputs(batch)
    texts, images = (
        [
            type(parts[0]).cat(parts)
            for group in groups
            if (parts := [encode(chunk) for chunk in group.split(even_chunk(len(group), size))])
        ]
        for encode, groups, size in (
            (model.encode_text, inputs.texts, text),
            (model.encode_images, inputs.images, image),
        )
    )
    features = model.features(texts, images, inputs.places)
    losses: Losses = objective(features, batch.targets.to(model.device), fusion=model.fusion)
    losses.total.backward()
    for parameter in (*model.parameters(), *objective.parameters()):  # of what the losses do not use
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return losses
