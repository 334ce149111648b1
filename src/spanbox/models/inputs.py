"""The rows that each tower encodes for a batch, and the places of their states in it.

A batch is padded and repeats itself: captions and names occur several times, places of spans, regions and views are
empty. Here, on the CPU, it becomes rows that are worth encoding: distinct texts; images, crops and masked views that
are used. Indices put the states of the rows back into their places. So the path of the towers needs no operation whose
result has a size that depends on values on the device.

    B pairs    K spans per sentence    R regions per image    V masked views per image    M rows    S image size
"""

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbox.geometry import by_kept_count, kept_indices, nearest_picture_cells, picture_cells
from spanbox.structures import PADDING_ID, Batch, TensorBundle, used_columns

EMPTY = -1


@dataclass(frozen=True)
class Texts(TensorBundle):
    """Rows of the text tower."""

    token_ids: Tensor  # (M, T) int64
    token_mask: Tensor  # (M, T) bool, False on padding
    span_tokens: Tensor  # (M, K, T) bool: the tokens of the spans that are pooled from this text
    keep_tokens: bool = False  # whether the states of all tokens are kept, for fusion

    @property
    def parts(self) -> int:
        """Spans of a row, padding included."""
        return self.span_tokens.shape[1]

    def keys(self) -> list[bytes]:
        """Digest of each row without its padding."""
        spans = [places.nonzero() + 1 for places in self.span_tokens]
        return [_digest(*row) for row in zip(_unpadded(self) - PADDING_ID, spans, strict=True)]

    def trimmed(self) -> Self:
        """Without token columns that are padding in every row. Reads values, so call it on the CPU."""
        tokens = used_columns(self.token_mask)
        return replace(
            self,
            token_ids=self.token_ids[:, :tokens],
            token_mask=self.token_mask[:, :tokens],
            span_tokens=self.span_tokens[:, :, :tokens],
        )


@dataclass(frozen=True)
class Images(TensorBundle):
    """Rows of the vision tower."""

    pixels: Tensor  # (M, 3, S, S) uint8
    regions: Tensor | None = None  # (M, R, 4), normalised: the regions that are pooled from the patch grid
    kept: Tensor | None = None  # (M, n) int64: the patches that count, row by row; None: all
    content: Tensor | None = None  # (M, 2) int64: width and height of each picture in pixels, beside padding; None: all
    nearest: Tensor | None = None  # (M, P) int64: of each patch the nearest one of `kept`; None: all are kept
    keep_patches: bool = False  # whether the states of all patches are kept, for fusion
    drawn: bool = False  # masked views, which never occur again

    @property
    def parts(self) -> int:
        """Regions of a row, padding included."""
        return 0 if self.regions is None else self.regions.shape[1]

    @property
    def uses_grid(self) -> bool:
        """Whether more than the pooled state is used."""
        return self.regions is not None or self.keep_patches

    def keys(self) -> list[bytes] | None:
        """Digest of each row without its padding; None for masked views, which are drawn again each time."""
        if self.drawn:
            return None
        nothing = self.pixels.new_zeros(len(self), 0)
        tables = (self.pixels, *(nothing if one is None else one for one in (self.regions, self.content)))
        return [_digest(*row) for row in zip(*tables, strict=True)]


@dataclass(frozen=True)
class MaskedImages(TensorBundle):
    """Masked views as rows of the vision tower; the pixels of an image are copied when its rows are split off."""

    image: Tensor  # (M,) int64: row of `pixels`
    kept: Tensor  # (M, n) int64
    pixels: Tensor  # of all images, not one of each row
    content: Tensor | None = None  # of all images

    def __getitem__(self, rows: slice) -> Images:  # type: ignore[override]
        image = self.image[rows]
        content = None if self.content is None else self.content[image]
        return Images(self.pixels[image], kept=self.kept[rows], content=content, drawn=True)


@dataclass(frozen=True)
class Places(TensorBundle):
    """The row of each place of a batch; EMPTY where nothing is encoded."""

    text: Tensor  # (B,) int64: row of the sentences
    images: Tensor | None  # (B,) int64: row of the whole images, if it is not the pair's own number
    spans: Tensor | None  # (B, K) int64: row of the spans that are encoded alone
    regions: Tensor | None  # (B, R) int64: row of the further images, if regions are crops
    views: Tensor | None  # (B, V) int64: row of the further images


@dataclass(frozen=True)
class TowerInputs:
    """What the towers encode for a batch, in groups of rows of one shape, and where the states belong.

    Attributes:
        texts: the sentences; then, if used, the spans that are encoded alone.
        images: the whole images, in one group or by the size of their pictures; then the further ones: crops and masked
            views.
    """

    texts: tuple[Texts, ...]
    images: tuple[Images | MaskedImages, ...]
    places: Places


def tower_inputs(batch: Batch, *, spans_alone: bool, crops: bool, patch: int, for_fusion: bool = False) -> TowerInputs:
    """The inputs of both towers for a batch on the CPU.

    Args:
        spans_alone: spans are encoded without their sentence.
        crops: regions are encoded as crops, not pooled from the patch grid.
        patch: side of a patch of the vision tower in pixels.
        for_fusion: keep the states of tokens and patches.
    """
    sentences, of_text = _sentences(batch, with_spans=not spans_alone)
    sentences = replace(sentences, keep_tokens=for_fusion)
    alone, of_spans = _spans_alone(batch) if spans_alone else ([], None)
    pictures = Images(
        batch.pixels, regions=None if crops else batch.regions, content=batch.content, keep_patches=for_fusion
    )
    whole, of_images = by_picture(pictures, patch)
    cut_out, of_regions = _crops(batch, patch) if crops else ([], None)
    views, of_views = _views(batch, patch, first=sum(map(len, cut_out)))
    places = Places(of_text, of_images, of_spans, of_regions, of_views)
    return TowerInputs((sentences, *alone), (*whole, *cut_out, *views), places)


def by_picture(images: Images, patch: int) -> tuple[list[Images], Tensor | None]:
    """Images in groups of as many patches that show the picture, and the row of each image among those of the groups.

    Without padding they stay one group, and the rows are None.

    Args:
        images: on the CPU.
        patch: side of a patch in pixels.
    """
    if images.content is None or not len(images):
        return [images], None
    grid = images.pixels.shape[-1] // patch
    padding = ~picture_cells(images.content, patch, grid)
    groups, of_counts = [], by_kept_count(padding)
    for count, rows in of_counts.items():
        group = images[rows]
        if count < grid**2:
            nearest = nearest_picture_cells(images.content[rows], patch, grid) if images.uses_grid else None
            group = replace(group, kept=kept_indices(padding[rows]), nearest=nearest)
        groups.append(group)
    return groups, torch.cat([*of_counts.values()]).argsort()


def in_places(rows: Tensor, places: Tensor) -> Tensor:
    """Put rows (M, H) into places (B, K) -> (B, K, H); empty places get zeros."""
    return F.pad(rows, (0, 0, 0, 1))[places]  # EMPTY is the last row


def _sentences(batch: Batch, *, with_spans: bool) -> tuple[Texts, Tensor]:
    """Distinct sentences, by their tokens and spans, and the row (B,) of each pair."""
    whole = Texts(batch.token_ids, batch.token_mask, batch.span_tokens[:, : None if with_spans else 0])
    rows, copies = _distinct(_unpadded(whole), whole.span_tokens)
    return (whole if len(rows) == len(copies) else whole[rows]), copies


def _spans_alone(batch: Batch) -> tuple[list[Texts], Tensor]:
    """Distinct texts of spans, each with a single span of all its tokens, and the row (B, K) of each span."""
    assert batch.own_token_ids is not None
    assert batch.own_token_mask is not None
    valid = batch.span_valid
    token_ids, token_mask = batch.own_token_ids[valid], batch.own_token_mask[valid]
    whole = Texts(token_ids, token_mask, token_mask[:, None])
    rows, copies = _distinct(_unpadded(whole))
    return _used([whole[rows]]), _numbered(valid, copies)


def _crops(batch: Batch, patch: int) -> tuple[list[Images], Tensor]:
    """The crops of all regions, and the row (B, R) of each."""
    assert batch.crops is not None
    valid = batch.region_valid
    content = None if batch.crop_content is None else batch.crop_content[valid]
    groups, rows = by_picture(Images(batch.crops[valid], content=content), patch)
    return _used(groups), _numbered(valid, torch.arange(int(valid.sum())) if rows is None else rows)


def _views(batch: Batch, patch: int, first: int) -> tuple[list[Images | MaskedImages], Tensor | None]:
    """The masked views that the losses use, and the row (B, V) of each, counted from `first`. Views whose patches are
    dropped are grouped by the number of those that are kept."""
    if batch.view_hidden is None:
        return [], None
    assert batch.view_sentence is not None
    assert batch.view_spans is not None
    used = (batch.view_sentence != 0) | (batch.view_spans != 0).any(dim=2)
    image, hidden = used.nonzero()[:, 0], batch.view_hidden[used]
    if batch.view_pixels is not None:
        content = None if batch.content is None else batch.content[image]
        filled, rows = by_picture(Images(batch.view_pixels[used], content=content, drawn=True), patch)
        return _used(filled), _numbered(used, first + (torch.arange(len(image)) if rows is None else rows))
    groups = list(by_kept_count(hidden).values())
    order = torch.cat([*groups, image[:0]]).argsort()
    return [
        MaskedImages(image[rows], kept_indices(hidden[rows]), batch.pixels, batch.content) for rows in groups
    ], _numbered(used, first + order)


def _used(groups: list[Any]) -> list[Any]:
    """Groups that have a row."""
    return [group for group in groups if len(group)]


def _numbered(used: Tensor, rows: Tensor) -> Tensor:
    """Rows (M,) in the M used places of (B, K), EMPTY in the others."""
    return torch.full(used.shape, EMPTY).masked_scatter(used, rows)


def _digest(*tables: Tensor) -> bytes:
    """Digest of tables (N, ...) of one row; rows of zeros at their ends, which are padding, do not count."""
    digest = blake2b(digest_size=16)
    for table in tables:
        used = table[: used_columns((table != 0).reshape(1, len(table), -1).any(dim=2))] if len(table) else table
        digest.update(repr(tuple(used.shape)).encode())
        digest.update(used.contiguous().numpy().tobytes())
    return digest.digest()


def _unpadded(texts: Texts) -> Tensor:
    return texts.token_ids.masked_fill(~texts.token_mask, PADDING_ID)


def _distinct(*tables: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of tables (N, ...) side by side, in order of their first occurrence: their indices (M,), and the
    place (N,) of each row among them."""
    numbers: dict[bytes, int] = {}
    rows, copies = list[int](), list[int]()
    for row, values in enumerate(zip(*(table.numpy() for table in tables), strict=True)):
        number = numbers.setdefault(b"".join(part.tobytes() for part in values), len(rows))
        copies.append(number)
        if number == len(rows):
            rows.append(row)
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(copies, dtype=torch.int64)
