"""Random changes of an image: one affine map, one colour matrix, one table, then blur and erasing.

All geometric operations of a sample are composed before anything is computed, so that the image is resampled once and
boxes, crops of regions and masks of views follow the same map. All draws come from the sample's own generator.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from spanbox.data.colours import Look
from spanbox.data.images import reduction_for
from spanbox.geometry import WHOLE, Affine, Box, area_of, clip_box, shared_area
from spanbox.settings import Settings, list_of_presets, with_preset

Range = tuple[float, float]
Preset = Literal["none", "light", "standard", "strong"]
Aspect = Literal["squash", "pad"]
Size = tuple[int, int]  # width and height in pixels

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"crop": 1.0, "crop_scale": (0.7, 1.0), "flip": 0.5, "jitter": 0.5}
    | {"brightness": 0.15, "contrast": 0.15, "saturation": 0.15},
    "standard": {"crop": 1.0, "crop_scale": (0.4, 1.0), "flip": 0.5, "jitter": 0.8}
    | {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05},
    "strong": {"crop": 1.0, "crop_scale": (0.2, 1.0), "flip": 0.5, "jitter": 0.8}
    | {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.1, "blur": 0.2, "erase": 0.25}
    | {"operations": 2, "magnitude": 5.0},
}
DIRECTIONS = re.compile(
    r"(?<![a-z])((left|right|(north|south)?(east|west))(most|side|hand(ed)?|wards?|erly|ern)?|(anti|counter-?)?clock-?wise)(?![a-z])"
    r"|[左右]|[东西東]([边侧面方北南部]|邊|側)|[向朝往以偏][东西東]|[顺逆順]时针|[順逆]時針",
    re.IGNORECASE,
)
"""Words of a text that a mirror image makes wrong; mostly too many, as in "right" for correct."""

CROP_TRIES = 10
ERASE_TRIES = 10
MOST_TURN, MOST_SHEAR, MOST_SHIFT = 30.0, 17.0, 0.3  # degrees, degrees, fraction: of RandAugment at magnitude 10


class ImageAugmentSettings(Settings):
    """Random changes of the image of a pair. Probabilities are those of a sample."""

    preset: Preset = Field(
        "none",
        description=f"values of the other settings of this section that are not given ({list_of_presets(PRESETS)})",
    )
    crop: float = Field(0.0, ge=0, le=1, description="probability of a random crop, resized to the whole image")
    crop_scale: Range = Field((0.4, 1.0), description="area of a crop, as [lowest, highest] share of the image's")
    crop_ratio: Range = Field(
        (0.75, 1.3333), description="width / height of a crop, as [lowest, highest] multiple of the image's"
    )
    keep_boxes: Literal["none", "one", "all"] = Field(
        "all", description="linked boxes that a crop keeps whole; with all, no crop cuts away what the text names"
    )
    min_visible: float = Field(
        0.3, gt=0, le=1, description="a box with a smaller visible share is left out, with its links; these are counted"
    )
    flip: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of a mirror image; never where a text of the image has words such as left, east, 左 "
        "or 逆时针",
    )
    rotation: float = Field(0.0, ge=0, le=45, description="largest rotation, in degrees, either way")
    jitter: float = Field(0.0, ge=0, le=1, description="probability of a change of colours, by the next four settings")
    brightness: float = Field(0.0, ge=0, lt=1, description="largest relative change of the brightness")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change of the contrast, about mid-grey")
    saturation: float = Field(0.0, ge=0, le=1, description="largest relative change of the saturation")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest turn of the hue, as a fraction of the circle")
    grayscale: float = Field(0.0, ge=0, le=1, description="probability of an image without colours")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: Range = Field((0.1, 2.0), description="deviation of the blur in pixels, as [lowest, highest]")
    operations: int = Field(
        0,
        ge=0,
        le=100,
        description="RandAugment: number of operations, each drawn from identity, rotation, shear, shift, brightness, "
        "contrast, saturation, posterize and solarize; the geometric ones move the boxes",
    )
    magnitude: float = Field(5.0, ge=0, le=10, description="RandAugment: strength of the operations")
    erase: float = Field(0.0, ge=0, le=1, description="probability of an erased rectangle, which spares linked boxes")
    erase_scale: Range = Field((0.02, 0.2), description="area of the erased rectangle, as [lowest, highest] share")

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, given: Any) -> Any:
        return with_preset(given, PRESETS)

    @field_validator("crop_scale", "crop_ratio", "blur_sigma", "erase_scale")
    @classmethod
    def _lowest_first(cls, ends: Range) -> Range:
        if not 0 < ends[0] <= ends[1]:
            raise ValueError("give two numbers above 0, the lowest first")
        return ends

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for name in ("crop_scale", "erase_scale"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"{name} is a share of the image and at most 1")
        return self

    @property
    def smallest_crop(self) -> float:
        """The shortest side of a crop, as a share of the image's."""
        stretch = max(self.crop_ratio[1], 1 / self.crop_ratio[0])
        return math.sqrt(self.crop_scale[0] / stretch) if self.crop else 1.0

    @property
    def active(self) -> bool:
        """Whether anything may change."""
        chances = (self.crop, self.flip, self.rotation, self.jitter, self.grayscale, self.blur, self.erase)
        return any(chances) or self.operations > 0


class ImagePlan(NamedTuple):
    """The drawn changes of an image."""

    to_square: Affine = Affine()  # from the image to the sample's square, both in fractions
    colour: NDArray[np.float32] | None = None  # (3, 4): matrix of red, green, blue and 255
    table: bytes | None = None  # new value of each of 256, in every channel
    blur: float = 0.0  # deviation, as a fraction of the side of the square
    erased: Box | None = None  # rectangle of the square
    reduction: int = 1  # the image may be decoded at 1/2, 1/4 or 1/8
    frame: Box = WHOLE  # the part of the square that shows the image; the rest is padding


def has_direction(text: str) -> bool:
    """Whether a mirror image may contradict the text. Full-width letters, as in Chinese texts, are letters."""
    return DIRECTIONS.search(normalize("NFKC", text)) is not None


def fitted(width: float, height: float, side: int) -> Size:
    """Width and height in pixels of the largest picture of this aspect in a square; at least one pixel."""
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def plain_plan(image_size: Size, side: int, aspect: Aspect = "squash") -> ImagePlan:
    """No change: the whole image, squashed to the square, or padded."""
    frame = _frame(image_size, side, aspect)
    to_square = Affine() if frame == WHOLE else Affine.onto(frame)
    return ImagePlan(to_square, reduction=reduction_for(deciding_side(image_size, aspect), side), frame=frame)


def deciding_side(size: tuple[float, float], aspect: Aspect) -> float:
    """The side of an image whose length is scaled to the side of the square, or is scaled least."""
    return max(size) if aspect == "pad" else min(size)


def _frame(size: tuple[float, float], side: int, aspect: Aspect) -> Box:
    if aspect == "squash":
        return WHOLE
    width, height = fitted(*size, side)
    return 0.0, 0.0, width / side, height / side


def draw_plan(
    settings: ImageAugmentSettings,
    image_size: Size,
    side: int,
    linked: Sequence[Box],
    *,
    aspect: Aspect = "squash",
    may_flip: bool,
    generator: np.random.Generator,
) -> ImagePlan:
    """Draw the changes of an image.

    Args:
        settings: probabilities and strengths.
        image_size: width and height in pixels.
        side: of the square, in pixels.
        linked: boxes that show a span, in fractions and clipped.
        aspect: whether the window of the image is squashed to the square, or padded.
        may_flip: whether the image may be mirrored.
        generator: of the sample.
    """
    chance = _Chance(generator)
    window = WHOLE
    if chance(settings.crop):
        window = _draw_window(settings, linked, generator)
    window, reduction = whole_pixels(window, image_size, side, aspect)
    size = (window[2] - window[0]) * image_size[0], (window[3] - window[1]) * image_size[1]
    shape = size[0] / size[1] if aspect == "pad" else 1.0
    to_frame = Affine.onto(window).inverse()
    if chance(settings.flip) and may_flip:
        to_frame = to_frame.then(Affine.mirror())
    if settings.rotation:
        to_frame = to_frame.then(Affine.rotation(generator.uniform(-settings.rotation, settings.rotation), shape))
    look = Look()
    for _ in range(settings.operations):
        to_frame = to_frame.then(_rand_augment(settings.magnitude / 10, look, shape, generator))
    if chance(settings.jitter):
        look.jitter(settings.brightness, settings.contrast, settings.saturation, settings.hue, generator)
    if chance(settings.grayscale):
        look.saturate(0.0)
    blur = generator.uniform(*settings.blur_sigma) / side if chance(settings.blur) else 0.0
    erased = None
    if chance(settings.erase):
        erased = _draw_erased(settings, [clip_box(to_frame.box(box)) for box in linked], generator)
    frame = _frame(size, side, aspect)
    placed = Affine() if frame == WHOLE else Affine.onto(frame)
    erased = erased and placed.box(erased)
    return ImagePlan(to_frame.then(placed), look.matrix(), look.table(), blur, erased, reduction, frame)


def whole_pixels(window: Box, image_size: Size, side: int, aspect: Aspect = "squash") -> tuple[Box, int]:
    """The window with its edges on pixels of the decoded image, and the reduction 1, 2, 4 or 8 that it allows.

    A window that is decoded at 1/n has n times as many pixels as the square, so an edge moves outwards by
    one pixel of the square at most. Only so can the vectorised filter be used, which starts at a whole pixel.
    """
    width, height = image_size
    x0, x1, y0, y1 = window[0] * width, window[2] * width, window[1] * height, window[3] * height
    reduction = reduction_for(deciding_side((x1 - x0, y1 - y0), aspect), side)
    (x0, x1), (y0, y1) = _to_grid(x0, x1, width, reduction), _to_grid(y0, y1, height, reduction)
    return (x0 / width, y0 / height, x1 / width, y1 / height), reduction


def _to_grid(low: float, high: float, size: int, reduction: int) -> Range:
    """The ends moved outwards to multiples of the reduction, within the image."""
    last = (size - 1) // reduction * reduction
    low = min(math.floor(low / reduction) * reduction, last)
    high = max(math.ceil(high / reduction) * reduction, low + reduction)
    return float(low), float(min(high, size))


def _draw_window(settings: ImageAugmentSettings, linked: Sequence[Box], generator: np.random.Generator) -> Box:
    """A random window of the image, in fractions; around the linked boxes that are to be kept whole."""
    low, high = np.log(settings.crop_ratio)
    for _ in range(CROP_TRIES):
        area, stretch = generator.uniform(*settings.crop_scale), math.exp(generator.uniform(low, high) / 2)
        width, height = math.sqrt(area) * stretch, math.sqrt(area) / stretch
        if width <= 1 and height <= 1:
            break
    else:
        width = height = math.sqrt(settings.crop_scale[1])
    if settings.keep_boxes != "none" and len(linked):
        kept = _around(linked) if settings.keep_boxes == "all" else linked[int(generator.integers(len(linked)))]
        width, height = _grown(width, height, kept, generator)
    else:
        kept = (1.0, 1.0, 0.0, 0.0)  # any place will do
    x0 = _between(max(0.0, kept[2] - width), min(kept[0], 1 - width), generator)
    y0 = _between(max(0.0, kept[3] - height), min(kept[1], 1 - height), generator)
    return x0, y0, min(x0 + width, 1.0), min(y0 + height, 1.0)


def _grown(width: float, height: float, kept: Box, generator: np.random.Generator) -> tuple[float, float]:
    """A size that a box fits into: the given one, or a larger one of its shape, as far as the image goes."""
    least = max((kept[2] - kept[0]) / width, (kept[3] - kept[1]) / height)
    if least <= 1:
        return width, height
    growth = generator.uniform(least, max(least, 1 / max(width, height)))
    return min(growth * width, 1.0), min(growth * height, 1.0)


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box around all."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _between(low: float, high: float, generator: np.random.Generator) -> float:
    """A random number; `low` where rounding put it above `high`."""
    return low + max(high - low, 0.0) * generator.random()


def _draw_erased(settings: ImageAugmentSettings, linked: Sequence[Box], generator: np.random.Generator) -> Box | None:
    """A rectangle that leaves at least `min_visible` of each linked box; None if none of the tries does."""
    for _ in range(ERASE_TRIES):
        area, stretch = generator.uniform(*settings.erase_scale), math.exp(generator.uniform(-0.6, 0.6))
        width, height = min(math.sqrt(area) * stretch, 1.0), min(math.sqrt(area) / stretch, 1.0)
        x0, y0 = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
        erased = (x0, y0, x0 + width, y0 + height)
        if all(shared_area(erased, box) <= (1 - settings.min_visible) * area_of(box) for box in linked):
            return erased
    return None


class _Chance:
    """Draws events. A probability of 0 draws nothing, so that a setting that is off changes no other draw."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def __call__(self, probability: float) -> bool:
        return probability > 0 and bool(self.generator.random() < probability)


def _rand_augment(strength: float, look: Look, shape: float, generator: np.random.Generator) -> Affine:
    """Draw one operation, of a strength in [0, 1] and either sign: colours go to `look`, the others are the map, of a
    picture whose width is `shape` times its height.

    Source: Cubuk et al., RandAugment, 2020. Left out are the operations that need a histogram or a filter of the image,
    since each would need another pass over the pixels.
    """
    signed = strength * (1 if generator.random() < 0.5 else -1)
    match generator.integers(11):
        case 0:
            return Affine()
        case 1:
            return Affine.rotation(MOST_TURN * signed, shape)
        case 2:
            return Affine.shear(MOST_SHEAR * signed, 0.0, shape)
        case 3:
            return Affine.shear(0.0, MOST_SHEAR * signed, shape)
        case 4:
            return Affine(c=MOST_SHIFT * signed)
        case 5:
            return Affine(f=MOST_SHIFT * signed)
        case 6:
            look.brighten(1 + 0.9 * signed)
        case 7:
            look.contrast(1 + 0.9 * signed)
        case 8:
            look.saturate(1 + 0.9 * signed)
        case 9:
            look.posterize(8 - round(4 * strength))
        case _:
            look.solarize(256 - round(256 * strength))
    return Affine()
