"""What training minimises: the coarse and the fine contrastive loss, both directions each, from features alone."""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from spanbox.losses.contrastive import info_nce, mean_over_counted
from spanbox.losses.positives import pair_positives, span_region_masks
from spanbox.settings import Settings
from spanbox.structures import Features, Losses, Targets

MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound: a temperature below 0.01 makes training unstable


class LevelSettings(Settings):
    weight: float = Field(1.0, ge=0.0, description="weight of this level in the total; 0 leaves it out")
    temperature: float = Field(0.07, ge=0.01, description="temperature at the start (at the end too when fixed)")
    learnable: bool = Field(True, description="whether the temperature is learned, bounded below by 0.01")


class LossSettings(Settings):
    coarse: LevelSettings = Field(LevelSettings(), description="sentences against images")
    fine: LevelSettings = Field(LevelSettings(), description="spans against regions")


class Objective(nn.Module):
    """Weighted sum of the coarse and the fine InfoNCE, each the mean of its two directions."""

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings
        self.coarse_log_scale = _log_scale(settings.coarse)
        self.fine_log_scale = _log_scale(settings.fine)

    def forward(self, features: Features, targets: Targets) -> Losses:
        """Losses of a whole contrastive batch, from its features, ids and links."""
        terms: dict[str, Tensor] = {}
        total = features.text.new_zeros(())
        if self.settings.coarse.weight:
            terms["coarse"] = self._coarse(features, targets)
            total = total + self.settings.coarse.weight * terms["coarse"]
        if self.settings.fine.weight:
            terms["fine"] = self._fine(features, targets)
            total = total + self.settings.fine.weight * terms["fine"]
        return Losses(total, terms)

    def temperatures(self) -> dict[str, float]:
        """Temperature of each level, for the log."""
        return {
            "coarse": math.exp(-self.coarse_log_scale.item()),
            "fine": math.exp(-self.fine_log_scale.item()),
        }

    @torch.no_grad()
    def clamp_temperatures(self) -> None:
        """Keep the temperatures above their bound. On the parameter, after a step: a clamp inside `forward` would cut
        off the gradient that could bring it back."""
        self.coarse_log_scale.clamp_(max=MAX_LOG_SCALE)
        self.fine_log_scale.clamp_(max=MAX_LOG_SCALE)

    def _coarse(self, features: Features, targets: Targets) -> Tensor:
        logits_BB = self.coarse_log_scale.exp() * (features.text @ features.image.T)
        positives_BB = pair_positives(targets.group)
        return _both_directions(logits_BB, positives_BB, torch.ones_like(positives_BB))

    def _fine(self, features: Features, targets: Targets) -> Tensor:
        logits_QM = self.fine_log_scale.exp() * (features.spans.flatten(0, 1) @ features.regions.flatten(0, 1).T)
        return _both_directions(logits_QM, *span_region_masks(targets))


def _log_scale(level: LevelSettings) -> nn.Parameter:
    return nn.Parameter(torch.tensor(-math.log(level.temperature)), requires_grad=level.learnable and level.weight > 0)


def _both_directions(logits: Tensor, positives: Tensor, candidates: Tensor) -> Tensor:
    forward = mean_over_counted(*info_nce(logits, positives, candidates))
    backward = mean_over_counted(*info_nce(logits.T, positives.T, candidates.T))
    return (forward + backward) / 2
