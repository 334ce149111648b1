"""The `model.fusion` section of the config."""

from typing import Literal, Self

from pydantic import Field, model_validator

from spanbox.settings import Settings


class FusionSettings(Settings):
    """Attention between the sentence and the image of a pair. docs/fusion.md has the forms."""

    kind: Literal["none", "gated", "cross_attention", "conditioned_pooling"] = Field(
        "none",
        description="none: the towers alone; gated: tokens mix with the patches that they attend to by gates; "
        "cross_attention: a transformer in which tokens attend to patches; conditioned_pooling: the sentence pools the "
        "patches and the image the tokens",
    )
    layers: int = Field(2, ge=1, description="layers of gated and cross_attention; conditioned_pooling has one")
    token_layers: int = Field(
        2,
        ge=0,
        description="self-attention layers of the tokens of a text before the fusion, computed once for all images",
    )
    heads: int = Field(4, ge=1, description="heads of the attention among tokens and of conditioned_pooling")
    width: int = Field(128, ge=2, description="dimension of the states of tokens and patches")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the layers of the fusion")

    @property
    def used(self) -> bool:
        return self.kind != "none"

    @property
    def content(self) -> int:
        """Dimension of the first half of a state, its content."""
        return self.width // 2

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} do not divide width={self.width}: set width to a multiple of heads")
        return self
