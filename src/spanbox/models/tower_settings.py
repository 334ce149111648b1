"""The settings of a tower: its encoder, its pooled state and its trained parts."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from spanbox.models.trainable import Freeze, LoraSettings
from spanbox.settings import PathText, Settings


class TowerSettings(Settings):
    """Encoder, pooled state and trained parameters of a tower."""

    path: PathText | None = Field(
        default=None,
        description="local transformers folder of a pretrained encoder or of a whole CLIP or SigLIP, or the name of a "
        "model in the local cache; nothing is downloaded: use `hf download NAME --local-dir DIR`",
    )
    architecture: dict[str, Any] | None = Field(
        default=None,
        description="instead of path: a transformers config with its model_type, for an encoder with random weights",
    )
    pool: Literal["auto", "cls", "mean", "pooler"] = Field(
        default="auto",
        description="pooled state: the class token, the mean over tokens or patches without padding, or the encoder's "
        "pooler; auto: the class token if there is one, else the pooler",
    )
    freeze: Freeze = Field(
        default=0,
        description="number of lowest layers that are not trained, including the embeddings; all: the whole tower, "
        "with dropout off; counts stages for ConvNeXt, ResNet and RegNet; with lora: the lowest layers without "
        "an update",
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="train low-rank updates instead of the weights: rank, alpha, dropout, targets; {} for the "
        'defaults; needs `pip install "spanbox[lora]"`',
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute the activations of each layer again in the backward pass: the same gradients with much "
        "less memory, a third to a half slower; not for convolutional encoders such as ConvNeXt and ResNet",
    )

    @field_validator("architecture")
    @classmethod
    def _names_its_type(cls, architecture: dict[str, Any] | None) -> dict[str, Any] | None:
        if architecture is not None and not isinstance(architecture.get("model_type"), str):
            raise ValueError("architecture needs a model_type, for example `model_type: bert`")
        return architecture

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.architecture is None):
            raise ValueError(
                "give either path (a pretrained encoder) or architecture (one with random weights)"
                + (", not both" if self.path is not None else "")
            )
        return self

    @model_validator(mode="after")
    def _something_to_update(self) -> Self:
        if self.lora is not None and self.freeze == "all":
            raise ValueError(
                "lora freezes the weights of the tower, and freeze=all leaves no layer to update: remove freeze, "
                "or set it to the number of lowest layers without an update"
            )
        return self


class VisionTowerSettings(TowerSettings):
    """Encoder and image size of the vision tower."""

    image_size: int | None = Field(
        default=None,
        ge=1,
        description="side of the square input in pixels, a multiple of the patch size; default: the encoder's size, "
        "rounded down to a multiple, 224 for ResNet and RegNet; other sizes interpolate the position embeddings",
    )
    freeze_norm: bool = Field(
        default=False,
        description="keep the statistics of BatchNorm, which admits ResNet, RegNet, EfficientNet and MobileNet: the "
        "features of an image then do not depend on the rest of its batch; scale and shift are still trained; for "
        "pretrained encoders, as random weights have no statistics; implied by freeze=all",
    )
