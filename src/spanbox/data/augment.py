"""Settings of augmentation: changed samples that are still true, boxes and spans moving along with every change."""

from pydantic import Field

from spanbox.data.augment_image import ImageAugmentSettings
from spanbox.data.augment_text import TextAugmentSettings
from spanbox.settings import Settings


class AugmentSettings(Settings):
    """Random changes of images and texts, drawn again each time a pair is read in training."""

    image: ImageAugmentSettings = Field(ImageAugmentSettings(), description="random changes of the image")
    text: TextAugmentSettings = Field(TextAugmentSettings(), description="random changes of the text")
