"""The dual encoder: two towers, pooling of spans and regions, and projections to the shared feature space.

A batch becomes rows for each tower (`inputs`). A tower maps rows to states, each row by itself, so that a step can
encode them in chunks (`encode_text`, `encode_images`). Then the states of all rows become features of the batch
(`features`).

    B pairs    K spans    R regions    T tokens    M rows    H width of a tower    P of a pooled state    D features
    F width of the fusion, with P patches of an image
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spanbox.errors import ConfigError
from spanbox.geometry import picture_cells, roi_align
from spanbox.models.fusion import build_fusion
from spanbox.models.fusion_settings import FusionSettings
from spanbox.models.inputs import EMPTY, Images, Places, Texts, TowerInputs, in_places, tower_inputs
from spanbox.models.pooling import PartPool, pool_regions, pool_spans, pooled_alone, pooled_width
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import TextTower, VisionTower
from spanbox.settings import Settings
from spanbox.structures import Batch, Features, TensorBundle, at_least_float32

Part = Literal["text", "image", "spans", "regions"]
"""What has features: sentences, images, spans of sentences, regions of images."""


class SpanSettings(Settings):
    source: Literal["sentence", "own"] = Field(
        "sentence",
        description="sentence: the tokens of the span in its sentence; own: the text of the span encoded alone",
    )
    pool: PartPool = Field("mean", description="pooling of the tokens of a span")


class RegionSettings(Settings):
    source: Literal["roi_align", "crop"] = Field(
        "roi_align",
        description="roi_align: pooled from the patch grid of the image; crop: cut from the image, resized and encoded",
    )
    pool: PartPool = Field("mean", description="pooling of the bins of a region (roi_align)")
    output_size: int = Field(2, ge=1, description="bins along each axis of a region (roi_align)")
    sampling_ratio: int = Field(2, ge=1, description="samples along each axis of a bin (roi_align)")
    margin: float = Field(
        0.1, ge=0.0, description="margin added on each side of a box, as a fraction of its width and height (crop)"
    )


class ModelSettings(Settings):
    text: TowerSettings = Field(description="the text encoder")
    vision: VisionTowerSettings = Field(description="the image encoder")
    dim: int = Field(256, ge=2, description="dimension of the shared features")
    projections: Literal["separate", "shared"] = Field(
        "separate",
        description="shared: spans use the projection of sentences and regions that of images, so that both levels "
        "train the same projections; best with mean pooling",
    )
    spans: SpanSettings = Field(SpanSettings(), description="features of spans")
    regions: RegionSettings = Field(RegionSettings(), description="features of regions")
    fusion: FusionSettings = Field(FusionSettings(), description="scores from attention between tokens and patches")


@dataclass(frozen=True)
class TextStates(TensorBundle):
    """States of M texts."""

    pooled: Tensor  # (M, P)
    spans: Tensor  # (M, K, H), zeros for a span without tokens
    tokens: Tensor | None = None  # (M, T, F), projected for the fusion, zeros on padding


@dataclass(frozen=True)
class ImageStates(TensorBundle):
    """States of M images."""

    pooled: Tensor  # (M, P)
    regions: Tensor | None  # (M, R, H), if they are pooled from the patch grid
    patches: Tensor | None = None  # (M, P, F), projected for the fusion


class DualEncoder(nn.Module):
    """Maps a batch to unit-length features of sentences, images, spans and regions.

    Texts with equal tokens are encoded once in a batch and share their states, including dropout. Spans that are
    encoded alone repeat often, captions sometimes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, text: TextTower, vision: VisionTower, preprocessing: Preprocessing, settings: ModelSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        self.preprocessing = preprocessing
        self.text = text
        self.vision = vision
        span_width = pooled_width(text.width, settings.spans.pool)
        from_grid = settings.regions.source == "roi_align"
        region_width = pooled_width(vision.width, settings.regions.pool) if from_grid else vision.pooled_width
        self.text_projection = nn.Linear(text.pooled_width, settings.dim)
        self.image_projection = nn.Linear(vision.pooled_width, settings.dim)
        if settings.projections == "separate":
            self.span_projection = nn.Linear(span_width, settings.dim)
            self.region_projection = nn.Linear(region_width, settings.dim)
        elif (span_width, region_width) != (text.pooled_width, vision.pooled_width):
            raise ConfigError(
                "model.projections: shared needs parts as wide as the whole; set model.spans.pool and "
                "model.regions.pool to mean or max, or model.projections to separate"
            )
        if settings.fusion.used and not from_grid and vision.pooled_width != vision.width:
            raise ConfigError(
                "model.fusion: patches are projected as regions are, and with model.regions.source=crop that is a map "
                f"of {vision.pooled_width} dimensions where a patch has {vision.width}; set "
                "model.regions.source=roi_align, or model.vision.pool to cls or mean"
            )
        self.fusion = build_fusion(
            settings.fusion,
            patch_width=vision.width,
            patches=(preprocessing.image_size // vision.stride) ** 2,
            dim=settings.dim,
            patch=vision.stride,
        )
        self.register_buffer("mean", torch.tensor(preprocessing.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).reshape(3, 1, 1), persistent=False)

    def compile_towers(self, backend: str = "inductor") -> None:
        """Compile the forward pass of each tower with `torch.compile`, in place: the names of the weights stay.

        A whole tower is one graph, in every family. What lies between towers and features stays eager.
        """
        self.text.compile(backend=backend, dynamic=True)  # the numbers of texts and tokens differ between batches
        self.vision.compile(backend=backend)

    def forward(self, batch: Batch) -> Features:
        """Features of a batch on any device; each tower encodes all rows of a group at once."""
        inputs = self.inputs(batch)
        return self.features(
            [self.encode_text(texts) for texts in inputs.texts],
            [self.encode_images(images[:]) for images in inputs.images],
            inputs.places,
        )

    def inputs(self, batch: Batch) -> TowerInputs:
        """The rows that the towers encode for a batch."""
        spans_alone, crops = self.settings.spans.source == "own", self.settings.regions.source == "crop"
        return tower_inputs(
            batch.to("cpu"),
            spans_alone=spans_alone,
            crops=crops,
            patch=self.vision.stride,
            for_fusion=self.fusion is not None,
        )

    def encode_text(self, texts: Texts) -> TextStates:
        """States of texts, from any device, and of their spans."""
        length = texts.token_ids.shape[1]
        texts = texts.trimmed().to(self.device, non_blocking=True)
        states = self.text(texts.token_ids, texts.token_mask)
        tokens = None
        if texts.keep_tokens:
            assert self.fusion is not None
            alone = self.projection_of("spans")(pooled_alone(states.tokens, self.settings.spans.pool))
            projected = self.fusion.states_of_tokens(alone, texts.token_mask)
            tokens = F.pad(projected, (0, 0, 0, length - projected.shape[1]))  # chunks differ in their padding
        return TextStates(states.pooled, pool_spans(states.tokens, texts.span_tokens, self.settings.spans.pool), tokens)

    def encode_images(self, images: Images) -> ImageStates:
        """States of images, from any device, and of their regions."""
        images = images.to(self.device, non_blocking=True)
        states = self.vision(self.normalised(images.pixels, images.content), images.kept)
        grid = states.grid if images.nearest is None else _spread(states.grid, images.nearest)
        regions = patches = None
        if images.regions is not None:
            settings = self.settings.regions
            bins = roi_align(grid, images.regions, settings.output_size, settings.sampling_ratio)
            regions = pool_regions(bins, settings.pool)
        if images.keep_patches:
            assert self.fusion is not None
            alone = self.projection_of("regions")(self.pooled_patches(grid))
            patches = self.fusion.states_of_patches(grid, alone)
        return ImageStates(states.pooled, regions, patches)

    def features(self, texts: Sequence[TextStates], images: Sequence[ImageStates], places: Places) -> Features:
        """Features of a batch from the states of its rows.

        Args:
            texts, images: in the order of `TowerInputs`.
            places: from any device.
        """
        places = places.to(self.device, non_blocking=True)
        sentences, pooled = texts[0], torch.cat([rows.pooled for rows in images])
        whole, further = pooled[: len(places.text)], pooled[len(places.text) :]
        no_span = sentences.spans.new_zeros(0, sentences.spans.shape[2])
        alone = torch.cat([no_span, *(rows.spans[:, 0] for rows in texts[1:])])
        spans_BKH = sentences.spans[places.text] if places.spans is None else in_places(alone, places.spans)
        if places.regions is None:
            regions_BRH = _of_images([rows.regions for rows in images], places.images)
        else:
            regions_BRH = in_places(further, places.regions)
        assert regions_BRH is not None
        patches = _of_images([rows.patches for rows in images], places.images)
        views = None
        if places.views is not None:
            used = (places.views != EMPTY)[:, :, None]
            views = _unit(self.image_projection(in_places(further, places.views))).where(used, 0.0)
        return Features(
            text=_unit(self.text_projection(sentences.pooled[places.text])),
            image=_unit(self.image_projection(whole if places.images is None else whole[places.images])),
            spans=_unit(self.projection_of("spans")(spans_BKH)),
            regions=self.project_regions(regions_BRH),
            views=views,
            tokens=None if sentences.tokens is None else at_least_float32(sentences.tokens[places.text]),
            patches=None if patches is None else at_least_float32(patches),
        )

    @property
    def device(self) -> torch.device:
        """Device of both towers."""
        return self.mean.device

    def pooled_patches(self, grid: Tensor) -> Tensor:
        """States (..., P) of patches (..., H), each pooled as a region by itself."""
        return pooled_alone(grid, "mean" if self.settings.regions.source == "crop" else self.settings.regions.pool)

    def project_regions(self, pooled: Tensor) -> Tensor:
        """Unit-length features (..., D) of regions from their pooled states."""
        return _unit(self.projection_of("regions")(pooled))

    def projection_of(self, part: Part) -> nn.Linear:
        """The layer from pooled states (..., P) to features (..., D), which are not normalised yet."""
        shared = self.settings.projections == "shared"
        match part:
            case "text":
                return self.text_projection
            case "image":
                return self.image_projection
            case "spans":
                return self.text_projection if shared else self.span_projection
            case "regions":
                return self.image_projection if shared else self.region_projection
            case _:
                assert_never(part)

    def normalised(self, pixels: Tensor, content: Tensor | None = None) -> Tensor:
        """Pixels (..., 3, S, S) uint8, normalised for the vision tower.

        Args:
            content: (N, 2), width and height of the pictures of (N, 3, S, S). The pixels beside them, padding, become
                0, the mean colour, whatever they are.
        """
        values = pixels.to(self.mean.dtype, copy=True).div_(255.0).sub_(self.mean).div_(self.std)
        if content is None:
            return values
        return values.masked_fill_(~picture_cells(content, 1, pixels.shape[-1])[:, None], 0.0)


def _spread(grid: Tensor, nearest: Tensor) -> Tensor:
    """The whole grid (M, g, g, H) from the states of some patches (M, 1, n, H): the other patches copy the nearest one,
    so that `roi_align` treats the border of a picture as the border of a grid."""
    side = math.isqrt(nearest.shape[1])
    states = grid.flatten(1, 2).gather(1, nearest[:, :, None].expand(-1, -1, grid.shape[3]))
    return states.reshape(len(states), side, side, -1)


def _of_images(states: Sequence[Tensor | None], rows: Tensor | None) -> Tensor | None:
    """The states (B, ...) of whole images, from those of their groups; None if they have none."""
    present = [state for state in states if state is not None]
    if not present:
        return None
    joined = torch.cat(present) if len(present) > 1 else present[0]
    return joined if rows is None else joined[rows]


def _unit(features: Tensor) -> Tensor:
    """Normalise to unit length, in float32 or wider."""
    return F.normalize(at_least_float32(features), dim=-1)
