"""The GMNER task: tags of tokens by a CRF, and the region of each entity, on the towers of a dual encoder.

Both losses are means over the whole batch, of all ranks: the tagging loss over the tagged tokens, that of the regions
over the entities that have an answer among the candidates. An entity without a box has "none" as its answer; one whose
boxes no candidate matches has no answer and is left out (an incident, counted in the log).

    B pairs    K spans    R candidate regions    T tokens
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from spanbox.data.tagged import TaggedBatch
from spanbox.engine.large_batch import States
from spanbox.engine.task import BlockedLoss, StepInputs, is_trained
from spanbox.losses.kernel import Share, mean_over_counted
from spanbox.models.gmner import GmnerFeatures, GmnerModel
from spanbox.settings import Settings
from spanbox.structures import NAMED_ONLY, Losses, TensorBundle, at_least_float32


class GmnerSettings(Settings):
    """The `gmner` section of the config."""

    regions: bool = Field(
        True, description="choose the region of each entity; false: find entities in texts alone, images are not read"
    )
    region_weight: float = Field(1.0, ge=0, description="weight of the loss of the regions beside that of the tags")
    temperature: float = Field(
        0.07,
        gt=0,
        description="initial temperature of the similarity of span and region; not used with a "
        "pretrained run that has a fine level",
    )


@dataclass(frozen=True)
class GmnerTargets(TensorBundle):
    """The targets of the losses. Padding is False or below 0, so that ranks may pad them."""

    tags: Tensor  # (B, T) int64, below 0 on tokens without a tag
    links: Tensor  # (B, K, R) bool: right candidates of a span
    candidates: Tensor  # (B, R) bool
    none: Tensor  # (B, K) bool: spans that the image does not show


class Gmner:
    """Trains a GMNER model."""

    def __init__(self, model: GmnerModel, settings: GmnerSettings) -> None:
        self.model = model
        self.settings = settings
        self.objective = nn.Module()  # nothing is learned beside the model
        self.towers: Mapping[str, nn.Module] = {"text": model.encoder.text}
        if model.grounds:
            self.towers = {**self.towers, "image": model.encoder.vision}

    def inputs(self, batch: TaggedBatch) -> StepInputs:
        inputs = self.model.encoder.inputs(batch)
        rows: dict[str, Any] = {"text": inputs.texts}
        if self.model.grounds:
            rows["image"] = inputs.images
        return StepInputs(rows, targets_of(batch), inputs.places)

    def encode(self, tower: str, rows: Any) -> Any:
        return self.model.encode_text(rows) if tower == "text" else self.model.encode_images(rows)

    def trains(self, tower: str) -> bool:
        return is_trained(self.towers[tower])

    def features(self, states: Mapping[str, States], rest: Any) -> Any:
        return self.model.features(states["text"], states.get("image", []), rest)  # type: ignore[arg-type]

    def losses(self, features: Any, targets: Any, share: Share) -> Losses:
        return gmner_losses(self.model, features, targets, share, self.settings.region_weight)

    def unblocked(self, features: Any) -> Any:
        return features

    def blocked_losses(self, features: Any) -> Sequence[BlockedLoss]:
        return []

    def before_step(self, done: float, step: int) -> None:
        pass

    def after_step(self) -> None:
        if self.model.choice is not None:
            self.model.choice.clamp_scale()

    def notes(self, *, last: bool) -> list[str]:
        return []

    def log_values(self) -> dict[str, float]:
        choice = self.model.choice
        return {} if choice is None else {"temperature.regions": 1 / choice.scale.item()}

    def compile(self) -> None:
        self.model.encoder.compile_towers()


def targets_of(batch: TaggedBatch) -> GmnerTargets:
    """The targets of a batch."""
    shown = batch.links & batch.region_valid[:, None]
    none = batch.span_valid & (batch.span_shown == NAMED_ONLY)
    return GmnerTargets(batch.tags, shown, batch.region_valid, none)


def gmner_losses(
    model: GmnerModel, features: GmnerFeatures, targets: GmnerTargets, share: Share, region_weight: float
) -> Losses:
    """This rank's share of the losses, from the features and targets of all ranks."""
    features, targets = features[share.pairs], targets[share.pairs]
    tagged = (targets.tags >= 0).sum(dim=1)
    of_sentences = model.tagger.crf.negative_log_likelihood(features.emissions, targets.tags)
    terms = {"tags": of_sentences.sum() / share.total(tagged.sum()).clamp(min=1)}
    total = terms["tags"]
    if features.regions is not None:
        terms["regions"] = mean_over_counted(*_region_losses(features, targets), share.total)
        total = total + region_weight * terms["regions"]
    return Losses(total, terms)


def _region_losses(features: GmnerFeatures, targets: GmnerTargets) -> tuple[Tensor, Tensor]:
    """Minus the log of the probability of all right answers together (B * K), 0 where there are none; and the spans
    that count (B * K)."""
    assert features.regions is not None
    assert features.none is not None
    logits = at_least_float32(torch.cat([features.none[..., None], features.regions], dim=2)).flatten(0, 1)
    right = torch.cat([targets.none[..., None], targets.links], dim=2).flatten(0, 1)
    spans = targets.none.shape[1]
    possible = torch.cat([targets.candidates.new_ones(len(targets), 1), targets.candidates], dim=1)
    possible = possible.repeat_interleave(spans, dim=0)
    counted = right.any(dim=1)
    lowest = torch.finfo(logits.dtype).min  # not -inf, so that rows without an answer do not give NaN
    of_all = logits.masked_fill(~possible, lowest).logsumexp(dim=1)
    of_right = logits.masked_fill(~right, lowest).logsumexp(dim=1)
    return torch.where(counted, of_all - of_right, 0.0), counted
