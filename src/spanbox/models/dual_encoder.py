"""The dual encoder: two towers, pooling of spans and regions, and projections to the shared feature space.

B pairs    K spans    R regions    T tokens    H width of a tower    D features
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spanbox.errors import ConfigError
from spanbox.geometry import by_kept_count, kept_indices, roi_align
from spanbox.models.pooling import PoolKind, pool_regions, pool_spans, pooled_width
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.towers import TextStates, TextTower, TowerSettings, VisionTower, VisionTowerSettings
from spanbox.models.visible import VisiblePatches
from spanbox.settings import Settings
from spanbox.structures import PADDING_ID, Batch, Features


class SpanSettings(Settings):
    source: Literal["sentence", "own"] = Field(
        "sentence",
        description="sentence: the tokens of the span in its sentence; own: the text of the span encoded alone",
    )
    pool: PoolKind = Field("mean", description="pooling of the tokens of a span")


class RegionSettings(Settings):
    source: Literal["roi_align", "crop"] = Field(
        "roi_align",
        description="roi_align: pooled from the patch grid of the image; crop: cut from the image, resized and encoded",
    )
    pool: PoolKind = Field("mean", description="pooling of the bins of a region (roi_align)")
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


class DualEncoder(nn.Module):
    """Maps a batch to unit-length features of sentences, images, spans and regions.

    Texts with equal tokens are encoded once and share their states, including dropout. Spans that are encoded alone
    repeat often, captions sometimes.
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
        self.register_buffer("mean", torch.tensor(preprocessing.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).reshape(3, 1, 1), persistent=False)

    def compile_towers(self, backend: str = "inductor") -> None:
        """Compile the forward pass of each tower with `torch.compile`, in place: the names of the weights stay.

        A whole tower is one graph, in every family. The steps between towers and features depend on the data
        (repeated texts, padded spans) and stay eager.
        """
        self.text.compile(backend=backend, dynamic=True)  # the numbers of texts and tokens differ between batches
        self.vision.compile(backend=backend)

    def forward(self, batch: Batch) -> Features:
        rows, copies = _distinct(batch.token_ids, batch.token_mask)
        distinct = self.text(batch.token_ids[rows], batch.token_mask[rows])
        text = TextStates(_spread(distinct.tokens, copies), _spread(distinct.pooled, copies))
        vision = self.vision(self.normalised(batch.pixels))
        if self.settings.spans.source == "sentence":
            spans_BKH = pool_spans(text.tokens, batch.span_tokens, self.settings.spans.pool)
        else:
            spans_BKH = self._encode_own_tokens(batch)
        if self.settings.regions.source == "roi_align":
            bins = roi_align(
                vision.grid, batch.regions, self.settings.regions.output_size, self.settings.regions.sampling_ratio
            )
            regions_BRH = pool_regions(bins, self.settings.regions.pool)
        else:
            regions_BRH = self._encode_crops(batch)
        shared = self.settings.projections == "shared"
        return Features(
            text=_unit(self.text_projection(text.pooled)),
            image=_unit(self.image_projection(vision.pooled)),
            spans=_unit((self.text_projection if shared else self.span_projection)(spans_BKH)),
            regions=self.project_regions(regions_BRH),
            views=None if batch.view_hidden is None else self._encode_views(batch, batch.view_hidden),
        )

    def project_regions(self, pooled: Tensor) -> Tensor:
        """Unit-length features (..., D) of regions from their pooled states."""
        shared = self.settings.projections == "shared"
        return _unit((self.image_projection if shared else self.region_projection)(pooled))

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels (..., 3, S, S) uint8, normalised for the vision tower."""
        return (pixels.to(self.mean.dtype) / 255.0 - self.mean) / self.std

    def _encode_own_tokens(self, batch: Batch) -> Tensor:
        """States (B, K, H) of the spans encoded alone; zeros for padding."""
        assert batch.own_token_ids is not None
        assert batch.own_token_mask is not None
        valid = batch.span_valid
        ids_NU, mask_NU = batch.own_token_ids[valid], batch.own_token_mask[valid]
        rows, copies = _distinct(ids_NU, mask_NU)
        states = self.text(ids_NU[rows], mask_NU[rows])
        pooled = pool_spans(states.tokens, mask_NU[rows, None, :], self.settings.spans.pool)[:, 0]
        return _scattered(_spread(pooled, copies), valid)

    def _encode_views(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Features (B, V, D) of the masked views that the losses use; zeros for the others."""
        assert batch.view_sentence is not None
        assert batch.view_spans is not None
        used = (batch.view_sentence != 0) | (batch.view_spans != 0).any(dim=2)
        if batch.view_pixels is not None:
            pooled = self.vision(self.normalised(batch.view_pixels[used])).pooled
        else:
            pooled = self._encode_visible(self.normalised(batch.pixels), used.nonzero()[:, 0], hidden[used])
        return _scattered(_unit(self.image_projection(pooled)), used)

    def _encode_visible(self, pixels: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
        """States (N, P) of the visible patches of views (N, g, g) of `pixels[image]`, grouped by number of patches."""
        groups = list(by_kept_count(hidden).values())
        if not groups:
            nothing: Tensor = self.vision(pixels[:0]).pooled
            return nothing
        pooled = []
        for rows in groups:
            images, of_view = torch.unique(image[rows], return_inverse=True)
            pooled.append(self.vision(pixels[images], VisiblePatches(of_view, kept_indices(hidden[rows]))).pooled)
        return torch.cat(pooled)[torch.cat(groups).argsort()]

    def _encode_crops(self, batch: Batch) -> Tensor:
        """States (B, R, H) of the crops of valid regions; zeros for padding."""
        assert batch.crops is not None
        valid = batch.region_valid
        return _scattered(self.vision(self.normalised(batch.crops[valid])).pooled, valid)


def _unit(features: Tensor) -> Tensor:
    """Normalise to unit length, in float32 or wider."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)


def _distinct(token_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the unique rows of (N, T), and the unique row that each row equals; padding is ignored.

    Returns:
        rows: (M,) index of the first of each group of equal rows, ascending.
        copies: (N,) such that row i equals row `rows[copies[i]]`.
    """
    numbers = torch.arange(len(token_ids), device=token_ids.device)
    if len(numbers) < 2:
        return numbers, numbers
    kinds, kind_N = torch.unique(token_ids.masked_fill(~token_mask, PADDING_ID), dim=0, return_inverse=True)
    first = numbers.new_zeros(len(kinds)).scatter_reduce(0, kind_N, numbers, "amin", include_self=False)
    rows, order = first.sort()
    return rows, order.argsort()[kind_N]


def _spread(distinct: Tensor, copies: Tensor) -> Tensor:
    """The states of all rows from those of the unique rows; the same tensor if no row repeats."""
    return distinct if len(distinct) == len(copies) else distinct[copies]


def _scattered(rows: Tensor, valid: Tensor) -> Tensor:
    """Scatter rows (N, H) to the N valid places of (B, K, H), zeros elsewhere."""
    out = rows.new_zeros(*valid.shape, rows.shape[-1])
    out[valid] = rows
    return out
