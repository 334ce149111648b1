"""From batches to a feature bank: everything that evaluation needs to know about a data set, and nothing else.

The padding of the batches ends here. A bank is ragged: the spans and regions of all pairs stand one after another, each
with the index of its pair, so that metrics see only what exists.

    N pairs    S spans    M regions    L links, of the whole set    D features
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
    wording: Tensor  # (N,) int64: pairs with the same text share it
    spans: Tensor  # (S, D)
    span_pair: Tensor  # (S,) int64, index of the span's pair
    span_identity: Tensor  # (S,) int64
    regions: Tensor  # (M, D)
    region_pair: Tensor  # (M,) int64, index of the region's pair
    links: Tensor  # (L, 2) int64: index of a span, index of a region that shows it

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.text)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join banks; their indices are shifted to where their pairs, spans and regions end up."""
        span_pair, region_pair, links = [], [], []
        pairs = spans = regions = 0
        for part in parts:
            span_pair.append(part.span_pair + pairs)
            region_pair.append(part.region_pair + pairs)
            links.append(part.links + torch.tensor([spans, regions]))
            pairs, spans, regions = pairs + len(part), spans + len(part.spans), regions + len(part.regions)
        return cls(
            text=torch.cat([part.text for part in parts]),
            image=torch.cat([part.image for part in parts]),
            group=torch.cat([part.group for part in parts]),
            sample=torch.cat([part.sample for part in parts]),
            wording=torch.cat([part.wording for part in parts]),
            spans=torch.cat([part.spans for part in parts]),
            span_pair=torch.cat(span_pair),
            span_identity=torch.cat([part.span_identity for part in parts]),
            regions=torch.cat([part.regions for part in parts]),
            region_pair=torch.cat(region_pair),
            links=torch.cat(links),
        )


def extract(
    encode: Callable[[Batch], Features], batches: Iterable[Batch], device: torch.device | str = "cpu"
) -> FeatureBank:
    """Encode every batch on `device`, without gradients, and keep the features of what is not padding.

    Args:
        encode: the towers, already on `device` and in evaluation mode (dropout off): that is the caller's to see to.
        batches: not augmented; they may differ in size and in padding.

    Raises:
        DataError: there is no pair at all.
    """
    with torch.no_grad():
        parts = [_without_padding(encode(batch.to(device, non_blocking=True)), batch) for batch in batches]
    if not any(len(part) for part in parts):
        raise DataError(
            "the data set to evaluate has no image-text pairs; expected at least one. "
            "Check the manifest (or the split) that the evaluation reads."
        )
    return FeatureBank.cat(parts)


def _without_padding(features: Features, batch: Batch) -> FeatureBank:
    """One batch as a bank of its own."""
    features, batch = features.to("cpu"), batch.to("cpu")
    span_valid, region_valid = batch.span_valid, batch.region_valid
    linked = batch.links & span_valid[:, :, None] & region_valid[:, None, :]
    pair, span, region = linked.nonzero(as_tuple=True)
    span_index, region_index = _index_among_valid(span_valid), _index_among_valid(region_valid)
    # Cloned, because a view would keep alive what it was cut from: hidden states of a tower, and for tensors that
    # came from a loader's worker an open file each, of which a process may hold only some thousand.
    return FeatureBank(
        text=features.text.clone(),
        image=features.image.clone(),
        group=batch.group.clone(),
        sample=batch.sample.clone(),
        wording=batch.wording.clone(),
        spans=features.spans[span_valid],
        span_pair=span_valid.nonzero()[:, 0],
        span_identity=batch.span_identity[span_valid],
        regions=features.regions[region_valid],
        region_pair=region_valid.nonzero()[:, 0],
        links=torch.stack([span_index[pair, span], region_index[pair, region]], dim=1),
    )


def _index_among_valid(valid: Tensor) -> Tensor:
    """Where each entry of `valid` (B, K) stands when only the valid ones are kept; meaningless at the others."""
    return (valid.flatten().cumsum(0) - 1).reshape(valid.shape)
