"""The `loss.fusion` section of the config."""

from typing import Literal

from pydantic import Field

from spanbox.losses.formulas import LossName
from spanbox.losses.negatives import NegativeSettings
from spanbox.settings import Settings


class FusionLossSettings(Settings):
    """The losses of fused scores; without effect where model.fusion.kind is none."""

    weight: float = Field(1.0, ge=0, description="weight of the loss of pairs of a sentence and an image; 0: off")
    parts_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the loss of spans and regions, where the fine level is on; gated, cross_attention: "
        "after attention within their pair; conditioned_pooling: as queries; 0: off",
    )
    loss: LossName = Field("info_nce", description="name of the loss, with its published options")
    temperature: float = Field(0.07, ge=0.01, description="initial temperature, which is learned")
    candidates: int = Field(
        15, ge=1, description="gated, cross_attention: negatives that each sentence and image is scored with, at most"
    )
    choice: Literal["hardest", "random", "mix"] = Field(
        "mix",
        description="gated, cross_attention: hardest: those that the towers find most similar; random; mix: half of "
        "each",
    )
    negatives: NegativeSettings = Field(
        NegativeSettings(), description="conditioned_pooling: choice of negatives; the others use candidates and choice"
    )
