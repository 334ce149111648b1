"""Rows, columns and masks of each level.

B pairs    K queries per pair    R keys per pair    V masked views per image    D features
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.losses.positives import sentence_image_masks, span_region_masks
from spanbox.losses.tiled import BlockMasks
from spanbox.losses.views import ViewLossSettings, sentence_view_masks, span_view_masks
from spanbox.structures import Features, Targets


class Contrast(NamedTuple):
    """The queries (rows) and keys (columns) of a similarity matrix, with its masks."""

    queries: Tensor  # (B, K, D)
    keys: Tensor  # (B, R, D)
    masks: BlockMasks
    column_masks: BlockMasks | None = None  # for the columns as queries, if their candidates differ


def coarse_contrast(features: Features, targets: Targets, settings: ViewLossSettings) -> Contrast:
    """Sentences against images and, if used, their masked views."""
    text, image = features.text[:, None], features.image[:, None]
    if not (has_views(features) and settings.join_images):
        return Contrast(text, image, partial(sentence_image_masks, targets))
    masks = partial(sentence_view_masks, targets, settings)
    return Contrast(text, _with_views(image, features), masks, partial(masks, of_columns=True))


def fine_contrast(features: Features, targets: Targets, settings: ViewLossSettings) -> Contrast:
    """Spans against regions and, if used, the masked views of the whole image."""
    if not (has_views(features) and settings.negatives):
        return Contrast(features.spans, features.regions, partial(span_region_masks, targets))
    return Contrast(features.spans, _with_views(features.regions, features), partial(span_view_masks, targets))


def has_views(features: Features) -> bool:
    return features.views is not None and features.views.shape[1] > 0


def _with_views(keys: Tensor, features: Features) -> Tensor:
    assert features.views is not None
    return torch.cat([keys, features.views], dim=1)
