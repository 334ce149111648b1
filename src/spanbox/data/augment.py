"""Settings of augmentation: changed samples that are still true, boxes and spans moving along with every change."""

from pydantic import Field

from spanbox.data.augment_text import TextAugmentSettings
from spanbox.settings import Settings


class AugmentSettings(Settings):
    """Random changes of images and texts, drawn again each time a pair is read in training."""

    text: TextAugmentSettings = Field(TextAugmentSettings(), description="random changes of the text")
