"""From batches to a feature bank: the features and ids of a data set, which all metrics are computed from.

Batches are padded, a bank is ragged: the spans and regions of all pairs stand one after another, each with the index of
its pair.

    N pairs    S spans    M regions    L links, of the whole set    D features
    W tokens of the whole set    P patches of an image    F width of the fusion
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from spanbox.errors import DataError
from spanbox.structures import Batch, Features


@dataclass(frozen=True)
class FeatureBank:
    """Features and ids of a data set, on the CPU. A link joins a span and a region of the same pair."""

    text: Tensor  # (N, D)
    image: Tensor  # (N, D)
    group: Tensor  # (N,) int64: pairs that show the same image share it
    sample: Tensor  # (N,) int64
    place: Tensor  # (N,) int64: place of the pair's record in the manifest, ascending
    wording: Tensor  # (N,) int64: pairs with the same text share it
    spans: Tensor  # (S, D)
    span_pair: Tensor  # (S,) int64, index of the span's pair
    span_identity: Tensor  # (S,) int64
    span_entity: Tensor  # (S,) int64, index of the span's entity in the pair's record
    span_shown: Tensor  # (S,) int8: SHOWN, NAMED_ONLY or NOT_KNOWN
    regions: Tensor  # (M, D)
    region_pair: Tensor  # (M,) int64, index of the region's pair
    region_box: Tensor  # (M, 4) float32, in fractions of the image
    links: Tensor  # (L, 2) int64: index of a span, index of a region that shows it
    # Of a model with fusion, if they are needed.
    spans_in_context: Tensor | None = None  # (S, F), spans that have seen the image of their pair
    regions_in_context: Tensor | None = None  # (M, F), regions that have seen the sentence of their pair
    tokens: Tensor | None = None  # (W, F) float16, pair by pair
    token_count: Tensor | None = None  # (N,) int64, tokens of each pair
    patches: Tensor | None = None  # (N, P, F) float16
    content: Tensor | None = None  # (N, 2) int64, width and height of the pictures in pixels, beside padding

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.text)

    @classmethod
    def cat(cls, parts: Iterable["FeatureBank"]) -> Self:
        """Join banks; indices of pairs, spans and regions are shifted to their place in the whole."""
        placed = list(in_place(parts))
        return cls(**{name: torch.cat([getattr(part, name) for part in placed]) for name in placed[0].present()})

    def present(self) -> list[str]:
        """Names of the fields that are there."""
        return [entry.name for entry in fields(self) if getattr(self, entry.name) is not None]


def in_place(parts: Iterable[FeatureBank]) -> Iterator[FeatureBank]:
    """Parts of a bank, with their indices of pairs, spans and regions counted in the whole bank."""
    pairs = spans = regions = 0
    for part in parts:
        yield replace(
            part,
            span_pair=part.span_pair + pairs,
            region_pair=part.region_pair + pairs,
            links=part.links + torch.tensor([spans, regions]),
        )
        pairs, spans, regions = pairs + len(part), spans + len(part.spans), regions + len(part.regions)


Context = Callable[[Features, Batch], tuple[Tensor, Tensor]]
"""Maps features and batch to spans (B, K, F) and regions (B, R, F) that have seen their own pair."""


def extract_parts(
    encode: Callable[[Batch], Features],
    batches: Iterable[Batch],
    *,
    context: Context | None = None,
    keep_states: bool = False,
) -> Iterator[FeatureBank]:
    """Encode every batch, without gradients, and keep all features but those of the padding, as one bank per batch.

    Args:
        encode: the towers, in evaluation mode (dropout off); moves batches to their device.
        batches: not augmented; they may differ in size and in padding.
        context: gives spans and regions after attention within their pair, for models that have it.
        keep_states: also keep tokens and patches, if the features have them.

    Raises:
        DataError: there is no pair at all.
    """
    empty = True
    for batch in batches:
        with torch.no_grad():
            features = encode(batch)
            part = _without_padding(features, batch)
            if context is not None:
                part = _in_context(part, *context(features, batch), batch)
            if keep_states:
                part = _with_states(part, features, batch)
        empty = empty and not len(part)
        yield part
    if empty:
        raise DataError(
            "nothing to evaluate: the manifest has no pairs, or none of its images can be read; "
            "`spanbox data check MANIFEST` lists them"
        )


def _without_padding(features: Features, batch: Batch) -> FeatureBank:
    """The features and ids of one batch as a bank, without padding."""
    features, batch = features.to("cpu"), batch.to("cpu")
    span_valid, region_valid = batch.span_valid, batch.region_valid
    linked = batch.links & span_valid[:, :, None] & region_valid[:, None, :]
    pair, span, region = linked.nonzero(as_tuple=True)
    span_index, region_index = _index_among_valid(span_valid), _index_among_valid(region_valid)
    # Cloned, since a view keeps its whole storage alive: hidden states of a tower, or a shared-memory file of a worker
    # of the loader, of which a process can hold only some thousand open.
    return FeatureBank(
        text=features.text.clone(),
        image=features.image.clone(),
        group=batch.group.clone(),
        sample=batch.sample.clone(),
        place=batch.place.clone(),
        wording=batch.wording.clone(),
        spans=features.spans[span_valid],
        span_pair=span_valid.nonzero()[:, 0],
        span_identity=batch.span_identity[span_valid],
        span_entity=batch.span_entity[span_valid],
        span_shown=batch.span_shown[span_valid],
        regions=features.regions[region_valid],
        region_pair=region_valid.nonzero()[:, 0],
        region_box=batch.boxes_of_images[region_valid],
        links=torch.stack([span_index[pair, span], region_index[pair, region]], dim=1),
    )


def _in_context(part: FeatureBank, spans: Tensor, regions: Tensor, batch: Batch) -> FeatureBank:
    span_valid, region_valid = batch.span_valid.cpu(), batch.region_valid.cpu()
    return replace(part, spans_in_context=spans.cpu()[span_valid], regions_in_context=regions.cpu()[region_valid])


def _with_states(part: FeatureBank, features: Features, batch: Batch) -> FeatureBank:
    if features.tokens is None or features.patches is None:
        return part
    mask = batch.token_mask.cpu()
    return replace(
        part,
        tokens=features.tokens.cpu()[mask].half(),
        token_count=mask.sum(dim=1),
        patches=features.patches.cpu().half(),
        content=None if batch.content is None else batch.content.cpu().clone(),
    )


def _index_among_valid(valid: Tensor) -> Tensor:
    """Index of each valid entry of (B, K) among the valid ones; meaningless at the others."""
    return (valid.flatten().cumsum(0) - 1).reshape(valid.shape)
