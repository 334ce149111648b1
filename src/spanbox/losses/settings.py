"""The config sections of the losses: what each level minimises, and how that changes over a run."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from spanbox.losses.negatives import NegativeSettings
from spanbox.losses.schedules import CURVES, scheduled
from spanbox.losses.variants import LOSSES, LossName
from spanbox.losses.views import ViewLossSettings
from spanbox.settings import Settings


class LevelSettings(Settings):
    """A level's loss, temperature and weight. docs/mathematics.md has the formulas."""

    loss: LossName = Field("info_nce", description="which loss; `spanbox losses` lists them")
    margin: float | None = Field(
        None,
        ge=0,
        le=1.5,
        description="arc_face alone: radians that a positive has to be nearer; there 0.5, as published; from random "
        "weights try 0.1",
    )
    beta: float | None = Field(
        None, ge=0, description="hardness_weighted alone: how much more hard negatives weigh, 0 not at all; there 1.0"
    )
    bias: float | None = Field(
        None, description="sigmoid alone: what is added to every logit at the start, then learned; there -10.0"
    )
    negatives: NegativeSettings = Field(NegativeSettings(), description="which negatives a row is contrasted with")
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
    views: ViewLossSettings = Field(ViewLossSettings(), description="what masked views of the images are used for")

    def levels(self) -> dict[str, LevelSettings]:
        """The levels that are used, by name."""
        return {name: level for name, level in (("coarse", self.coarse), ("fine", self.fine)) if level.used}
