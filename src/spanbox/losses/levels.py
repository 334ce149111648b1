"""The levels as queries, keys and their relation: sentences against images, spans against regions, and copies.

B pairs    K queries per pair    R keys per pair    V masked views per image    D features
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.losses.relations import (
    BlockRelation,
    copies_relation,
    sentence_image_relation,
    sentence_view_relation,
    span_region_relation,
    span_view_relation,
    transposed,
)
from spanbox.losses.views import ViewLossSettings
from spanbox.structures import Features, Targets


class Contrast(NamedTuple):
    """The queries (rows) and keys (columns) of a similarity matrix, and their relation."""

    queries: Tensor  # (B, K, D)
    keys: Tensor  # (B, R, D)
    relation: BlockRelation
    column_relation: BlockRelation | None = None  # for the columns as queries, if their candidates differ

    def transposed(self) -> "Contrast":
        """The keys as queries, for their direction alone."""
        return Contrast(self.keys, self.queries, transposed(self.column_relation or self.relation))


def coarse_contrast(features: Features, targets: Targets, views: ViewLossSettings) -> Contrast:
    """Sentences against images and, if used, their masked views."""
    text, image = features.text[:, None], features.image[:, None]
    if not (has_views(features) and views.join_images):
        return Contrast(text, image, partial(sentence_image_relation, targets))
    relation = partial(sentence_view_relation, targets, keeping=views.positives, hiding=views.negatives)
    return Contrast(text, _with_views(image, features), relation, partial(relation, of_columns=True))


def fine_contrast(features: Features, targets: Targets, views: ViewLossSettings) -> Contrast:
    """Spans against regions and, if used, the masked views of the whole image."""
    if not (has_views(features) and views.negatives):
        return Contrast(features.spans, features.regions, partial(span_region_relation, targets))
    return Contrast(features.spans, _with_views(features.regions, features), partial(span_view_relation, targets))


def copies_contrast(features: Features, targets: Targets, views: ViewLossSettings) -> Contrast:
    """Sentences against sentences and images against images. Views are not used."""
    both = torch.stack([features.text, features.image], dim=1)
    return Contrast(both, both, partial(copies_relation, targets))


def has_views(features: Features) -> bool:
    return features.views is not None and features.views.shape[1] > 0


def _with_views(keys: Tensor, features: Features) -> Tensor:
    assert features.views is not None
    return torch.cat([keys, features.views], dim=1)
