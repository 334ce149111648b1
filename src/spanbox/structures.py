"""The records and tensors passed from the data to the towers and the losses.

Padded, not ragged: slicing is `batch[i:j]`, gathers have equal shapes, compilers see static shapes.

    B pairs    K spans per sentence    R regions per image    T tokens    D features    V masked views per image
    S, s side of an image and of a crop in pixels    g side of the grid of cells    U tokens of a span encoded alone
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import NamedTuple, Self

import torch
from torch import Tensor

PADDING_ID = -1

SHOWN, NAMED_ONLY, NOT_KNOWN = 1, 0, -1
"""Presence of an entity in its image: it has a box; it has none; it has boxes that cannot be used (outside the image,
over a limit), or the data leaves it open."""


def stable_id(text: str) -> int:
    """A 63-bit hash of `text` that is the same in every process, so that workers and ranks need not exchange ids."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Incident(NamedTuple):
    """A fault in the data that was worked around. Incidents are counted and reported."""

    kind: str  # "broken image", "truncated span", "clipped box", "degenerate box", "span over limit", ...
    sample: str  # id of the pair
    detail: str


class SampleViews(NamedTuple):
    """Masked views of a sample's image, with the visibility of its entities: 1 visible, -1 hidden, 0 in between."""

    hidden: Tensor  # (V, g, g) bool
    sentence: Tensor  # (V,) int8: 1 if all entities are visible, -1 if one is hidden
    spans: Tensor  # (V, K) int8: the entity of each span
    pixels: Tensor | None  # (V, 3, S, S) uint8, if hidden cells are filled instead of dropped


@dataclass(frozen=True)
class Sample:
    """One decoded image-text pair, before collation. K spans, R regions."""

    id: str
    place: int  # of its record in the manifest
    pixels: Tensor  # (3, S, S) uint8
    text: str
    group: int
    spans: tuple[tuple[int, int], ...]  # K half-open intervals of code points of `text`
    span_texts: tuple[str, ...]
    entities: tuple[int, ...]  # K, index of each span's entity in the record
    identities: tuple[int, ...]  # K
    shown: tuple[int, ...]  # K, SHOWN, NAMED_ONLY or NOT_KNOWN
    regions: Tensor  # (R, 4) float32, normalised
    links: Tensor  # (K, R) bool
    crops: Tensor | None  # (R, 3, s, s) uint8
    incidents: tuple[Incident, ...]
    relevance: float | None = None  # of the text for the image; None: 1 for all pairs and links of the data
    link_relevance: Tensor | None = None  # (K, R) float32: of each link
    proposals: tuple[Tensor, Tensor] | None = None  # boxes (P, 4), normalised, and scores (P,), for masked views
    views: SampleViews | None = None
    content: tuple[int, int] | None = None  # width and height of the picture on the square, if the rest is padding
    crop_content: Tensor | None = None  # (R, 2) int64: as `content`, of each crop
    original_text: str = ""  # of the pair, where `text` was changed; pairs of one text stay so
    text_changes: tuple[tuple[str, str], ...] = ()  # words of the text or paraphrase, and their replacements

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """The box of the square that shows the picture."""
        if self.content is None:
            return 0.0, 0.0, 1.0, 1.0
        width, height = (side / self.pixels.shape[-1] for side in self.content)
        return 0.0, 0.0, width, height

    def picture_cells(self, grid: int) -> tuple[int, int]:
        """Columns and rows, of a grid on the square, that show a part of the picture; the others are padding."""
        if self.content is None:
            return grid, grid
        width, height = (-(-side * grid // self.pixels.shape[-1]) for side in self.content)
        return width, height


@dataclass(frozen=True)
class TensorBundle:
    """A frozen dataclass of tensors with the same first dimension; optional tensors may be `None`."""

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                yield entry.name, value

    def tensors(self) -> list[Tensor]:
        return [tensor for _, tensor in self.named_tensors()]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply `function` to each tensor."""
        return replace(self, **{name: function(tensor) for name, tensor in self.named_tensors()})

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return self.map(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(next(self.named_tensors())[1])

    def split(self, size: int) -> Iterator[Self]:
        """Consecutive pieces of at most `size` rows; the last one may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self.map(lambda tensor: tensor.pin_memory())

    def detach(self) -> Self:
        return self.map(lambda tensor: tensor.detach())

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join parts along their first dimension. Parts of one batch have equal padded shapes."""
        names = [name for name, _ in parts[0].named_tensors()]
        return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Targets(TensorBundle):
    """The inputs of the losses besides the features: ids, links and boxes."""

    group: Tensor  # (B,) int64: the same for pairs of the same image
    sample: Tensor  # (B,) int64: hash of the pair's id
    wording: Tensor  # (B,) int64: the same for pairs of the same text
    span_identity: Tensor  # (B, K) int64, PADDING_ID where there is no usable span
    regions: Tensor  # (B, R, 4) float32, x0 y0 x1 y1 in [0, 1] of the square of pixels
    region_valid: Tensor  # (B, R) bool
    links: Tensor  # (B, K, R) bool: this span is shown by this region
    # Masked views, if any: 1 visible, -1 hidden, 0 in between. A sentence is visible if all its entities are, hidden if
    # one of them is.
    view_sentence: Tensor | None = field(default=None, kw_only=True)  # (B, V) int8
    view_spans: Tensor | None = field(default=None, kw_only=True)  # (B, V, K) int8: the entity of each span
    # Strength of positives in [0, 1], if known; 0: neither positive nor negative.
    relevance: Tensor | None = field(default=None, kw_only=True)  # (B,) float32: of the text for the image
    link_relevance: Tensor | None = field(default=None, kw_only=True)  # (B, K, R) float32: of each link
    # Width and height in pixels of the picture in the upper left corner of its square, if the rest is padding.
    content: Tensor | None = field(default=None, kw_only=True)  # (B, 2) int64
    # Of the tokens, for the fusion of tokens and patches.
    token_mask: Tensor | None = field(default=None, kw_only=True)  # (B, T) bool, False on padding
    span_tokens: Tensor | None = field(default=None, kw_only=True)  # (B, K, T) bool: this token belongs to this span

    @property
    def span_valid(self) -> Tensor:
        """(B, K) bool."""
        return self.span_identity != PADDING_ID


@dataclass(frozen=True)
class Batch(Targets):
    """Image-text pairs with their spans and regions, ready for the towers."""

    pixels: Tensor  # (B, 3, S, S) uint8; the model normalises
    token_ids: Tensor  # (B, T) int64
    token_mask: Tensor = field(kw_only=True)  # (B, T) bool, False on padding
    span_tokens: Tensor = field(kw_only=True)  # (B, K, T) bool: this token belongs to this span
    span_entity: Tensor  # (B, K) int64: index of the span's entity in its record, PADDING_ID as in `span_identity`
    span_shown: Tensor  # (B, K) int8: SHOWN, NAMED_ONLY or NOT_KNOWN
    place: Tensor  # (B,) int64: place of the pair's record in the manifest
    own_token_ids: Tensor | None = None  # (B, K, U) int64: each span encoded without its sentence (published form)
    own_token_mask: Tensor | None = None  # (B, K, U) bool
    crops: Tensor | None = None  # (B, R, 3, s, s) uint8: each region cut from the full image and resized
    crop_content: Tensor | None = None  # (B, R, 2) int64: as `content`, of each crop
    view_hidden: Tensor | None = None  # (B, V, g, g) bool: the hidden cells of each view
    view_pixels: Tensor | None = None  # (B, V, 3, S, S) uint8: masked views whose hidden cells are filled, not dropped

    @property
    def boxes_of_images(self) -> Tensor:
        """The regions (B, R, 4) in fractions of the picture, without the padding of the square."""
        if self.content is None:
            return self.regions
        sides = self.content.to(self.regions).repeat(1, 2)[:, None]
        return (self.regions * self.pixels.shape[-1] / sides).clamp(0.0, 1.0)

    @property
    def targets(self) -> Targets:
        """The part that the losses use."""
        return Targets(**{entry.name: getattr(self, entry.name) for entry in fields(Targets)})


@dataclass(frozen=True)
class Features(TensorBundle):
    """The output of the towers for a batch: unit vectors, float32 or wider. The boundary between towers and losses."""

    text: Tensor  # (B, D)
    image: Tensor  # (B, D)
    spans: Tensor  # (B, K, D), undefined where the span is padding
    regions: Tensor  # (B, R, D), undefined where the region is padding
    views: Tensor | None = None  # (B, V, D): masked views, undefined where a view is not used
    # Not of unit length, for the fusion of tokens and patches.
    tokens: Tensor | None = None  # (B, T, F), undefined on padding
    patches: Tensor | None = None  # (B, P, F), row by row


@dataclass(frozen=True)
class Losses:
    """The total loss, and its terms as scalars for the log."""

    total: Tensor
    terms: dict[str, Tensor]

    def detach(self) -> Self:
        terms = {name: term.detach() for name, term in self.terms.items()}
        return replace(self, total=self.total.detach(), terms=terms)


def used_columns(mask: Tensor) -> int:
    """Index of the last column with a True value, plus one; at least 1."""
    used = mask.flatten(0, -2).any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return values if values.dtype == torch.float64 else values.float()


def place_in_row(row: Tensor, count: Tensor) -> Tensor:
    """Index (n,) of each entry within its row; rows (n,) ascend and have `count` entries."""
    start = count.cumsum(0) - count
    return torch.arange(len(row), device=row.device) - start[row]
