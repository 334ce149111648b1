"""How much of a pair enters a sample, and in which form."""

from dataclasses import dataclass

from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_image import Aspect
from spanbox.data.masking import MaskSettings


@dataclass(frozen=True)
class SampleLimits:
    """How much of a pair enters a sample."""

    image_size: int  # side of the square the image is resized to, in pixels
    aspect: Aspect = "squash"  # the image is stretched to the square, or keeps its aspect ratio beside padding
    max_spans: int | None = None  # None: all
    max_regions: int | None = None  # None: all boxes of the entities, and the proposals
    proposals: int = 0  # regions taken from the objects, besides the entities' boxes
    objects_only: bool = False  # regions are all of the objects: candidates of a prediction
    link_iou: float | None = None  # with objects_only: objects that overlap a span's box by more are linked to it
    skip_ambiguous: bool = False  # ambiguous entities are left out
    crop_size: int | None = None  # side of a region's own crop, in pixels; None: regions are not cropped
    crop_margin: float = 0.0
    views: MaskSettings | None = None  # masked views are drawn of each image
    view_grid: int = 0  # cells along each side of a masked view
    augment: AugmentSettings | None = None  # images and texts are changed at random
