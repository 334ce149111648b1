"""The `loss` section of the config: loss, temperature, weight and negatives of each level."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from spanbox.losses.formulas import LOSSES, LossName
from spanbox.losses.fusion_settings import FusionLossSettings
from spanbox.losses.negatives import NegativeSettings
from spanbox.losses.noise import NoiseSettings
from spanbox.losses.views import ViewLossSettings
from spanbox.settings import Settings

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,  # slow at both ends
}
"""Maps the finished share of the run to the interpolation between the first and the last value of a schedule."""


def scheduled(schedule: str, start: float, end: float | None, done: float) -> float:
    """The value after the share `done` of the run: from `start` to `end`, or always `start` if `end` is None.

    Args:
        schedule: a name in `CURVES`; ignored if `end` is None.
    """
    return start if end is None else start + (end - start) * CURVES[schedule](min(1.0, done))


class LevelSettings(Settings):
    """A level's loss, temperature and weight. docs/mathematics.md has the formulas."""

    loss: LossName = Field("info_nce", description="name of the loss; `spanbox losses` lists them")
    margin: float | None = Field(
        None,
        ge=0,
        le=1.5,
        description="arc_face only: additive angular margin in radians; default 0.5, as published; with random weights "
        "try 0.1",
    )
    beta: float | None = Field(
        None,
        ge=0,
        description="hardness_weighted only: strength of the weighting of hard negatives, 0: none; default 1.0",
    )
    bias: float | None = Field(
        None, description="sigmoid only: initial value of the learned bias of the logits; default -10.0"
    )
    negatives: NegativeSettings = Field(NegativeSettings(), description="choice of negatives")
    temperature: float = Field(0.07, ge=0.01, description="initial temperature; default for sigmoid: 0.1")
    temperature_end: float | None = Field(
        None, ge=0.01, description="temperature at the end of a linear or cosine schedule"
    )
    temperature_schedule: Literal["learnable", "fixed", "linear", "cosine"] = Field(
        "learnable", description="learnable: with a lower bound of 0.01; linear, cosine: to temperature_end"
    )
    weight: float = Field(1.0, ge=0, description="initial weight of this level in the total loss; 0: level off")
    weight_end: float | None = Field(None, ge=0, description="weight at the end of a linear or cosine schedule")
    weight_schedule: Literal["fixed", "linear", "cosine", "uncertainty"] = Field(
        "fixed", description="linear, cosine: to weight_end; uncertainty: learned from the loss"
    )

    @property
    def used(self) -> bool:
        """Whether the level has a weight above 0 at any time."""
        return self.weight > 0 or bool(self.weight_end)

    @property
    def learned(self) -> dict[str, float]:
        """Initial values of the numbers that are learned, by their keys."""
        is_learned = {
            "temperature": self.temperature_schedule == "learnable",
            "bias": self.bias is not None,
            "weight": self.weight_schedule == "uncertainty",
        }
        return {key: getattr(self, key) for key, learned in is_learned.items() if learned}

    def temperature_at(self, done: float) -> float:
        """Temperature after the share `done` of the run; the initial one if it is learned."""
        return scheduled(self.temperature_schedule, self.temperature, self.temperature_end, done)

    def weight_at(self, done: float) -> float:
        """Weight after the share `done` of the run; the initial one if it is learned."""
        return scheduled(self.weight_schedule, self.weight, self.weight_end, done)

    @model_validator(mode="before")
    @classmethod
    def _published_values(cls, given: Any) -> Any:
        """Fill in the published values of the loss for keys that are not given."""
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
                raise ValueError(f"{option} is not an option of the loss {self.loss}: remove it, or set it to null")
        for name in ("temperature", "weight"):
            schedule, end = getattr(self, f"{name}_schedule"), getattr(self, f"{name}_end")
            if schedule in CURVES and end is None:
                raise ValueError(f"{name}_schedule={schedule} needs {name}_end, the {name} at the end of the run")
            if schedule not in CURVES and end is not None:
                raise ValueError(f"{name}_end has no effect with {name}_schedule={schedule}: use linear or cosine")
        if self.weight_schedule == "uncertainty" and not self.weight:
            raise ValueError("weight_schedule=uncertainty needs an initial weight above 0")
        if self.weight_schedule == "uncertainty" and self.loss == "decoupled":
            raise ValueError(
                "weight_schedule=uncertainty needs a loss that is never negative; decoupled can be negative, so its "
                "weight would grow without bound: change one of the two"
            )
        return self


class CopiesSettings(LevelSettings):
    """Images against images and texts against texts; positives are of one group: augmented copies, or captions."""

    weight: float = Field(0.0, ge=0, description="initial weight of this term in the total loss; 0: off")


class LossSettings(Settings):
    coarse: LevelSettings = Field(LevelSettings(), description="sentences against images")
    fine: LevelSettings = Field(LevelSettings(), description="spans against regions")
    copies: CopiesSettings = Field(
        CopiesSettings(), description="images against images and texts against texts, of copies or of several captions"
    )
    views: ViewLossSettings = Field(ViewLossSettings(), description="use of the masked views")
    noise: NoiseSettings = Field(NoiseSettings(), description="links that are probably wrong, left out while training")
    fusion: FusionLossSettings = Field(FusionLossSettings(), description="scores of fused pairs (model.fusion)")

    def levels(self) -> dict[str, LevelSettings]:
        """The levels that are used, by name."""
        levels = {"coarse": self.coarse, "fine": self.fine, "copies": self.copies}
        return {name: level for name, level in levels.items() if level.used}

    @model_validator(mode="after")
    def _judged_by_both(self) -> "LossSettings":
        if self.noise.kind != "none" and not (self.coarse.used and self.fine.used):
            raise ValueError(
                f"noise.kind={self.noise.kind} compares the losses of both levels, and one of them is off: raise "
                "coarse.weight and fine.weight above 0, or set noise.kind=none"
            )
        return self
