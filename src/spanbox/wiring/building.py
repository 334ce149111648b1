"""Builds model, tokenizer, collator and manifest from a config."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from spanbox.config import RunConfig
from spanbox.data.collate import Collator
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest
from spanbox.data.masking import kept_levels, mask_grid
from spanbox.data.sample_text import training_texts
from spanbox.data.source import container_of
from spanbox.data.tokenizer import load_tokenizer, train_tokenizer
from spanbox.errors import ConfigError, DataError
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder, ModelSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.pretrained import Part, model_folder
from spanbox.models.towers import build_text_tower, build_vision_tower
from spanbox.structures import Batch

LARGEST_VOCABULARY = 1_000_000
PARTS: tuple[Part, ...] = ("text", "vision")
EXAMPLE_SPAN_TOKENS = 8  # tokens of a typical name


def build_model(settings: ModelSettings, pad_token_id: int | None = None) -> DualEncoder:
    """A dual encoder with the weights of the towers' folders; other weights are random, from torch's generator."""
    settings = fitted_to(pad_token_id, settings)
    text = build_text_tower(settings.text, pad_token_id=pad_token_id)
    vision = build_vision_tower(settings.vision)
    folder = model_folder(settings.vision.path, "vision") if settings.vision.path else None
    preprocessing = Preprocessing.from_model_folder(folder, vision.image_size)
    return DualEncoder(text, vision, preprocessing, settings)


def fitted_to(pad_token_id: int | None, settings: ModelSettings) -> ModelSettings:
    """The settings with the padding id of the tokenizer, which was trained for a text tower with random weights."""
    architecture = settings.text.architecture
    if architecture is None or pad_token_id is None:
        return settings
    fitted = settings.text.model_copy(update={"architecture": {**architecture, "pad_token_id": pad_token_id}})
    return settings.model_copy(update={"text": fitted})


def build_objective(config: RunConfig) -> Objective:
    """The losses of a config; their initial weights are not random."""
    return Objective(config.loss, config.model.dim, config.model.fusion.kind, seed=config.seed)


def make_tokenizer(config: RunConfig, manifest: Manifest) -> Any:
    """The tokenizer of the text tower, or one trained on the training texts for a tower with random weights."""
    text = config.model.text
    if text.path is not None:
        return load_tokenizer(str(model_folder(text.path, "text")))
    assert text.architecture is not None
    vocabulary = text.architecture.get("vocab_size")
    if not isinstance(vocabulary, int):
        raise ConfigError("model.text.architecture: needs vocab_size, the size of the vocabulary to train, e.g. 8192")
    if vocabulary > LARGEST_VOCABULARY:
        raise ConfigError(f"model.text.architecture.vocab_size: {vocabulary}, at most {LARGEST_VOCABULARY} are trained")
    return train_tokenizer(training_texts(manifest, config.data.augment.text), vocabulary)


def make_collator(config: RunConfig, tokenizer: Any, *, sort_by_length: bool = False) -> Collator:
    own_spans = config.model.spans.source == "own"
    return Collator(tokenizer, config.data.max_tokens, own_spans=own_spans, sort_by_length=sort_by_length)


def sample_limits(
    config: RunConfig, model: DualEncoder, *, training: bool = False, objects_only: bool = False
) -> SampleLimits:
    """Limits of a sample. Only training draws masked views and limits spans and regions; a limit of 0
    turns the fine level off for both."""
    size = model.preprocessing.image_size
    crops = config.model.regions.source == "crop"
    draws_views = training and uses_views(config)
    return SampleLimits(
        image_size=size,
        aspect=config.data.aspect,
        max_spans=config.data.max_spans if training or not config.data.max_spans else None,
        max_regions=config.data.max_regions if training or not config.data.max_regions else None,
        proposals=config.data.proposals,
        objects_only=objects_only,
        skip_ambiguous=training and config.data.ambiguous == "skip",
        crop_size=size if crops else None,
        crop_margin=config.model.regions.margin,
        views=config.data.views if draws_views else None,
        view_grid=view_grid(config, model) if draws_views else 0,
        augment=config.data.augment if training else None,
    )


def uses_views(config: RunConfig) -> bool:
    """Whether there are masked views, and losses that use them."""
    return config.data.views.count > 0 and config.loss.views.used


def view_grid(config: RunConfig, model: DualEncoder) -> int:
    """Cells along each side of the masked views."""
    patch = model.vision.stride if model.vision.drops_patches else None
    return mask_grid(config.data.views, model.preprocessing.image_size, patch)


def example_views(config: RunConfig, model: DualEncoder) -> dict[str, torch.Tensor]:
    """The view fields of a synthetic pair, with all views used; empty without views."""
    settings = config.data.views
    if not uses_views(config):
        return {}
    side, grid = model.preprocessing.image_size, view_grid(config, model)
    ratio = settings.ratio if isinstance(settings.ratio, float) else min(settings.ratio)
    kept = min(kept_levels(settings.levels, grid**2), key=lambda count: abs(count - (1 - ratio) * grid**2))
    hidden = torch.arange(grid**2).reshape(grid, grid) >= kept
    fields = {
        "view_hidden": hidden.expand(settings.count, grid, grid),
        "view_sentence": -torch.ones(settings.count, dtype=torch.int8),
        "view_spans": -torch.ones(settings.count, config.data.max_spans, dtype=torch.int8),
    }
    filled = torch.zeros(settings.count, 3, side, side, dtype=torch.uint8)
    return fields if settings.fill == "drop" else fields | {"view_pixels": filled}


def example_batches(config: RunConfig, model: DualEncoder) -> Callable[[int], Batch]:
    """Synthetic batches for memory measurements, with the maximum of tokens, spans and regions per pair."""
    data, size = config.data, model.preprocessing.image_size
    vocabulary = model.text.model.config.vocab_size
    own, cropped = config.model.spans.source == "own", config.model.regions.source == "crop"
    spans_alone = (data.max_spans, min(EXAMPLE_SPAN_TOKENS, data.max_tokens))
    views = example_views(config, model)

    def example(pairs: int) -> Batch:
        return Batch(
            pixels=torch.zeros(pairs, 3, size, size, dtype=torch.uint8),
            token_ids=torch.randint(vocabulary, (pairs, data.max_tokens)),
            token_mask=torch.ones(pairs, data.max_tokens, dtype=torch.bool),
            span_tokens=torch.ones(pairs, data.max_spans, data.max_tokens, dtype=torch.bool),
            span_entity=torch.arange(data.max_spans).expand(pairs, -1),
            span_shown=torch.ones(pairs, data.max_spans, dtype=torch.int8),
            place=torch.arange(pairs),
            span_identity=torch.arange(pairs * data.max_spans).reshape(pairs, data.max_spans),
            regions=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(pairs, data.max_regions, 4),
            region_valid=torch.ones(pairs, data.max_regions, dtype=torch.bool),
            links=torch.eye(data.max_spans, data.max_regions, dtype=torch.bool).expand(pairs, -1, -1),
            group=torch.arange(pairs),
            sample=torch.arange(pairs),
            wording=torch.arange(pairs),
            own_token_ids=torch.randint(vocabulary, (pairs, *spans_alone)) if own else None,
            own_token_mask=torch.ones(pairs, *spans_alone, dtype=torch.bool) if own else None,
            crops=torch.zeros(pairs, data.max_regions, 3, size, size, dtype=torch.uint8) if cropped else None,
            **{name: view.expand(pairs, *view.shape) for name, view in views.items()},
        )

    return example


def open_manifest(config: RunConfig, path: str | None, key: str, *, subset: int | None = None) -> Manifest:
    """Open a manifest or a subset of it, and check that the folder of its first image exists."""
    if path is None:
        raise ConfigError(f"{key}: is not set; give the path of a manifest, see docs/data.md")
    manifest = Manifest(path, config.data.inverted_boxes, subset=subset)
    folder = container_of(manifest.image_path(manifest[0]))
    if not folder.exists():
        raise DataError(
            f"{path}: its first image is {manifest[0].image}, but there is no folder {folder}; "
            "paths are relative to the manifest"
        )
    if manifest.inverted_count:
        dropped = f"{manifest.inverted_count} boxes without an area are left out (data.inverted_boxes=drop)"
        print(f"{path}: {dropped}", file=sys.stderr)
    return manifest
