"""What training minimises: a coarse and a fine contrastive loss, both directions each, from features alone."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spanbox.losses.contrastive import Statistics, mean_over_counted, row_statistics
from spanbox.losses.positives import WHOLE, sentence_image_masks, span_region_masks
from spanbox.losses.schedules import CURVES, scheduled
from spanbox.losses.strips import row_losses, transposed
from spanbox.losses.tiled import BlockMasks, tiled_statistics
from spanbox.losses.variants import LOSSES, LossName, RowLoss, StatisticsLoss
from spanbox.settings import Settings
from spanbox.structures import Features, Losses, Targets

MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound: a temperature below 0.01 makes training unstable
MOST_LOGITS = 2**23  # of a matrix that is held whole, 32 MiB in float32; tiles are faster above, by their use of caches
TILE_SIDE = 1024  # logits; from 256 to 1536 equally fast on a processor, slower above
STRIP_LOGITS = 2**20


class LevelSettings(Settings):
    """A level's loss, temperature and weight. docs/mathematics.md has the formulas."""

    loss: LossName = Field("info_nce", description="which loss; `spanbox losses` lists them")
    margin: float | None = Field(
        None, ge=0, le=1.5, description="arc_face alone: radians that a positive has to be nearer; there 0.5"
    )
    beta: float | None = Field(
        None, ge=0, description="hardness_weighted alone: how much more hard negatives weigh, 0 not at all; there 1.0"
    )
    bias: float | None = Field(
        None, description="sigmoid alone: what is added to every logit at the start, then learned; there -10.0"
    )
    temperature: float = Field(0.07, ge=0.01, description="temperature at the start; for sigmoid 0.1 unless given")
    temperature_end: float | None = Field(
        None, ge=0.01, description="temperature at the end of a linear or cosine schedule"
    )
    temperature_schedule: Literal["learnable", "fixed", "linear", "cosine"] = Field(
        "learnable", description="learnable is bounded below by 0.01; linear and cosine go to temperature_end"
    )
    weight: float = Field(1.0, ge=0, description="weight of this level in the total at the start; 0 leaves it out")
    weight_end: float | None = Field(None, ge=0, description="weight at the end of a linear or cosine schedule")
    weight_schedule: Literal["fixed", "linear", "cosine", "uncertainty"] = Field(
        "fixed", description="linear and cosine go to weight_end; uncertainty learns the weight from the loss"
    )

    @property
    def used(self) -> bool:
        """Whether the level has any weight at any time."""
        return self.weight > 0 or bool(self.weight_end)

    def temperature_at(self, done: float) -> float:
        """Temperature when the share `done` of the run is done; the first one when it is learned."""
        return scheduled(self.temperature_schedule, self.temperature, self.temperature_end, done)

    def weight_at(self, done: float) -> float:
        """Weight when the share `done` of the run is done; the first one when it is learned."""
        return scheduled(self.weight_schedule, self.weight, self.weight_end, done)

    @model_validator(mode="before")
    @classmethod
    def _published_values(cls, given: Any) -> Any:
        """What the loss has by publication, where the config says nothing."""
        name = given.get("loss", "info_nce") if isinstance(given, Mapping) else None
        if not isinstance(name, str) or name not in LOSSES:
            return given
        loss = LOSSES[name]
        return {"temperature": loss.temperature, **given} | {
            option: value for option, value in loss.options.items() if given.get(option) is None
        }

    @model_validator(mode="after")
    def _meaningful(self) -> "LevelSettings":
        for option in ("margin", "beta", "bias"):
            if getattr(self, option) is not None and option not in LOSSES[self.loss].options:
                raise ValueError(f"{option} means nothing to the loss {self.loss}: leave it out, or set it to null")
        for name in ("temperature", "weight"):
            schedule, end = getattr(self, f"{name}_schedule"), getattr(self, f"{name}_end")
            if schedule in CURVES and end is None:
                raise ValueError(f"{name}_schedule={schedule} needs {name}_end, the {name} at the end of the run")
            if schedule not in CURVES and end is not None:
                raise ValueError(f"{name}_end means nothing with {name}_schedule={schedule}: take linear or cosine")
        if self.weight_schedule == "uncertainty" and not self.weight:
            raise ValueError("weight_schedule=uncertainty starts from weight, which has to be above 0")
        if self.weight_schedule == "uncertainty" and self.loss == "decoupled":
            raise ValueError(
                "weight_schedule=uncertainty needs a loss that is never negative, and decoupled may be: its weight "
                "would grow without bound; change one of the two"
            )
        return self


class LossSettings(Settings):
    coarse: LevelSettings = Field(LevelSettings(), description="sentences against images")
    fine: LevelSettings = Field(LevelSettings(), description="spans against regions")

    def levels(self) -> dict[str, LevelSettings]:
        """The levels that are used, by name."""
        return {name: level for name, level in (("coarse", self.coarse), ("fine", self.fine)) if level.used}


class Objective(nn.Module):
    """Weighted sum of a coarse and a fine loss, each the mean of its two directions.

    Schedules follow `set_progress`; before it is called the run stands at its start.
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings
        self.coarse_log_scale = _log_scale(settings.coarse)
        self.fine_log_scale = _log_scale(settings.fine)
        self.biases = nn.ParameterDict()
        self.log_variances = nn.ParameterDict()
        for name, level in settings.levels().items():
            if level.bias is not None:
                self.biases[name] = nn.Parameter(torch.tensor(level.bias))
            if level.weight_schedule == "uncertainty":
                self.log_variances[name] = nn.Parameter(torch.tensor(-math.log(level.weight)))
        self._done = 0.0

    def forward(self, features: Features, targets: Targets) -> Losses:
        """Losses of a whole contrastive batch, from its features, ids and links."""
        sides = {
            "coarse": (features.text[:, None], features.image[:, None], partial(sentence_image_masks, targets)),
            "fine": (features.spans, features.regions, partial(span_region_masks, targets)),
        }
        terms: dict[str, Tensor] = {}
        total = features.text.new_zeros(())
        for name, level in self.settings.levels().items():
            scale = self._log_scales()[name].exp()
            terms[name] = _both_directions(*sides[name], scale, LOSSES[level.loss], self._options(name))
            total = total + self._weighted(name, terms[name])
        return Losses(total, terms)

    @torch.no_grad()
    def set_progress(self, done: float) -> None:
        """Move the temperatures and weights that follow a schedule to where the share `done` of the run is done."""
        self._done = done
        for name, level in self.settings.levels().items():
            if level.temperature_schedule in CURVES:
                self._log_scales()[name].fill_(-math.log(level.temperature_at(done)))

    def temperatures(self) -> dict[str, float]:
        """Temperature of each level, for the log."""
        return {name: math.exp(-log_scale.item()) for name, log_scale in self._log_scales().items()}

    def weights(self) -> dict[str, float]:
        """Weight of each level that is used, for the log."""
        learned = {name: math.exp(-log_variance.item()) for name, log_variance in self.log_variances.items()}
        return {name: learned.get(name, level.weight_at(self._done)) for name, level in self.settings.levels().items()}

    @torch.no_grad()
    def clamp_temperatures(self) -> None:
        """Keep the temperatures above their bound. On the parameter, after a step: a clamp inside `forward` would cut
        off the gradient that could bring it back."""
        for log_scale in self._log_scales().values():
            log_scale.clamp_(max=MAX_LOG_SCALE)

    def _log_scales(self) -> dict[str, nn.Parameter]:
        return {"coarse": self.coarse_log_scale, "fine": self.fine_log_scale}

    def _options(self, name: str) -> dict[str, Any]:
        """What the loss of a level takes besides: numbers of the config, and the bias, which is learned."""
        level = self.settings.levels()[name]
        options = {option: getattr(level, option) for option in LOSSES[level.loss].options}
        return options | ({"bias": self.biases[name]} if name in self.biases else {})

    def _weighted(self, name: str, term: Tensor) -> Tensor:
        """The share of a level in the total. Learned weights: Kendall et al., 2018, eq. 7, times two."""
        if name in self.log_variances:
            log_variance: Tensor = self.log_variances[name]
            return (-log_variance).exp() * term + log_variance
        return self.settings.levels()[name].weight_at(self._done) * term


def _log_scale(level: LevelSettings) -> nn.Parameter:
    learned = level.temperature_schedule == "learnable" and level.used
    return nn.Parameter(torch.tensor(-math.log(level.temperature)), requires_grad=learned)


def _both_directions(
    queries: Tensor,
    keys: Tensor,
    masks: BlockMasks,
    scale: Tensor,
    loss: StatisticsLoss | RowLoss,
    options: dict[str, Any],
) -> Tensor:
    """Mean of the losses of queries (B, K, D) among keys (B, R, D) and of keys among queries."""
    if isinstance(loss, StatisticsLoss):
        sides = [loss.formula(statistics) for statistics in _statistics(queries, keys, masks, scale)]
    else:
        logits_of_a_pair = queries.shape[1] * keys.shape[:2].numel()  # the same in both directions
        strip_pairs = max(1, STRIP_LOGITS // max(1, logits_of_a_pair))

        def of_rows(cosines: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
            return loss.function(cosines, scale, positives, candidates, **options)

        learned = [scale, *(value for value in options.values() if isinstance(value, Tensor))]
        sides = [
            row_losses(queries, keys, masks, of_rows, learned, strip_pairs),
            row_losses(keys, queries, transposed(masks), of_rows, learned, strip_pairs),
        ]
    forward, backward = (mean_over_counted(*side) for side in sides)
    return (forward + backward) / 2


def _statistics(queries: Tensor, keys: Tensor, masks: BlockMasks, scale: Tensor) -> tuple[Statistics, Statistics]:
    """Of the rows and of the columns, from the whole matrix or tile by tile."""
    if queries.shape[:2].numel() * keys.shape[:2].numel() > MOST_LOGITS:
        tile_pairs = max(1, TILE_SIDE // max(queries.shape[1], keys.shape[1]))
        return tiled_statistics(queries, keys, scale, masks, tile_pairs)
    logits = (scale * queries.flatten(0, 1)) @ keys.flatten(0, 1).T
    positives, candidates = masks(WHOLE, WHOLE)
    return row_statistics(logits, positives, candidates), row_statistics(logits.T, positives.T, candidates.T)
