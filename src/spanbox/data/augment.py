"""Settings of augmentation: changed samples that are still true, boxes and spans moving along with every change."""

from typing import Self

from pydantic import Field, model_validator

from spanbox.data.augment_image import ImageAugmentSettings
from spanbox.data.augment_text import TextAugmentSettings
from spanbox.settings import Settings


class AugmentSettings(Settings):
    """Random changes of images and texts, drawn again each time a pair is read in training."""

    copies: int = Field(
        1,
        ge=1,
        description="samples of each pair in a batch, each augmented differently; they are positives of each other; "
        "train.batch_size counts them all",
    )
    image: ImageAugmentSettings = Field(ImageAugmentSettings(), description="random changes of the image")
    text: TextAugmentSettings = Field(TextAugmentSettings(), description="random changes of the text")

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        if self.copies > 1 and not (self.image.active or self.text.active):
            raise ValueError(
                f"copies={self.copies} would be equal: set image.preset or a change of the text, or copies to 1"
            )
        return self
