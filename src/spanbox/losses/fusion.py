"""Losses of fused scores (`models/fusion.py`).

- Pair scoring: a sentence is contrasted with its positives and some candidates, an image likewise. The score of each is
  computed, the matching ones like the others.
- Conditioned pooling: a matrix of cosines like any other, but not a product of features.
- Context: after attention within a pair, each span is contrasted with the regions of the image and each
  region with the spans of the sentence. All of them have attended to the same pair.

    B pairs    K spans    R regions    F width of the fusion    n scored pairs    Q rows of a rank
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from spanbox.losses.blocks import STRIP_LOGITS, blocks_of, cat_rows, recomputed, whole_rows
from spanbox.losses.formulas import LOSSES
from spanbox.losses.fusion_settings import FusionLossSettings
from spanbox.losses.kernel import RowLosses, Share, mean_over_counted
from spanbox.losses.negatives import highest, random_order, selected
from spanbox.losses.relations import (
    WHOLE,
    BlockRelation,
    Relation,
    RowRelation,
    own_pair_relation,
    region_sentence_relation,
    sentence_image_relation,
    span_image_relation,
    transposed,
)
from spanbox.structures import Features, Targets, place_in_row, stable_id

BlockOfScores = Callable[[slice, slice], Tensor]
"""Maps the pairs of the rows and those of the columns to scores."""
Matrices = Mapping[str, BlockOfScores]


class PairScorer(Protocol):
    """Scores of chosen pairs, and parts in the context of their own pair."""

    def pair_scores(self, features: Features, targets: Targets, sentences: Tensor, images: Tensor) -> Tensor:
        """Scores (n,) in [-1, 1] of n pairs of a sentence and an image."""

    def in_context(self, features: Features, targets: Targets) -> tuple[Tensor, Tensor]:
        """Spans (B, K, F) and regions (B, R, F) after attention within their own pair, of unit length."""


class MatrixScorer(Protocol):
    """Scores of whole blocks: the rows of some pairs against the columns of others."""

    def matrices(self, features: Features, targets: Targets) -> Matrices:
        """`sentence_image` (b, c), `span_image` (b*K, c) and `region_sentence` (b*R, c)."""


Terms = dict[str, tuple[float, Tensor]]
"""The weight of each term, and this rank's share of it."""


class FusionObjective(nn.Module):
    """Base of the losses of fused scores: their temperatures, weights and random choices.

    Args:
        settings: of the losses.
        parts: whether there is a loss of spans and regions.
        seed: of random candidates and negatives, with the step.
    """

    def __init__(self, settings: FusionLossSettings, *, parts: bool, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        start = torch.tensor(-math.log(settings.temperature))
        self.log_scale = nn.Parameter(start.clone())
        self.parts_log_scale = nn.Parameter(start.clone()) if parts and settings.parts_weight else None
        options = LOSSES[settings.loss].options
        self.bias = nn.Parameter(torch.tensor(options["bias"])) if "bias" in options else None
        self.seed, self.done, self.step = seed, 0.0, 0

    def set_progress(self, done: float, step: int) -> None:
        self.done, self.step = done, step

    def log_scales(self) -> dict[str, nn.Parameter]:
        scales = {"fusion": self.log_scale, "fusion_parts": self.parts_log_scale}
        return {name: scale for name, scale in scales.items() if scale is not None}

    def _terms(self, of_pairs: Callable[[], Tensor], of_parts: Callable[[Tensor], Tensor]) -> Terms:
        """The terms that have a weight; `of_parts` gets its log scale."""
        terms = {}
        if self.settings.weight:
            terms["fusion"] = self.settings.weight, of_pairs()
        if self.parts_log_scale is not None:
            terms["fusion_parts"] = self.settings.parts_weight, of_parts(self.parts_log_scale)
        return terms

    def _rows(self, cosines: Tensor, scale: Tensor, relation: Relation) -> RowLosses:
        loss = LOSSES[self.settings.loss]
        options: dict[str, Any] = dict(loss.options) | ({} if self.bias is None else {"bias": self.bias})
        return loss.rows(cosines, scale, relation, **options)

    def _generator(self, name: str) -> torch.Generator:
        """In the same state on every rank."""
        return torch.Generator().manual_seed(stable_id(f"fusion {name} {self.seed} {self.step}"))


class PairObjective(FusionObjective):
    """The losses of scores of pairs: chosen pairs, and parts in the context of their own pair."""

    def forward(self, features: Features, targets: Targets, share: Share, fusion: PairScorer) -> Terms:
        """The weight and this rank's share of each term."""
        return self._terms(
            partial(self._chosen_pairs, fusion, features, targets, share),
            partial(self._in_context, fusion, features, targets, share),
        )

    def _chosen_pairs(self, fusion: PairScorer, features: Features, targets: Targets, share: Share) -> Tensor:
        """Mean of both directions over chosen pairs."""
        relation = partial(sentence_image_relation, targets)
        text, image = features.text, features.image
        sides = [
            choose_pairs(text, image, relation, self.settings, self._generator("sentences"), share.pairs),
            choose_pairs(image, text, transposed(relation), self.settings, self._generator("images"), share.pairs),
        ]
        (own_sentences, images), (own_images, sentences) = ((side.row, side.column) for side in sides)
        pairs = torch.cat([own_sentences * len(targets) + images, sentences * len(targets) + own_images])
        distinct, place = torch.unique(pairs, return_inverse=True)  # a pair that both sides chose is scored once
        scores = fusion.pair_scores(features, targets, distinct // len(targets), distinct % len(targets))[place]
        parts = torch.split(scores, [len(side.row) for side in sides])
        scale, means = self.log_scale.exp(), []
        for side, values in zip(sides, parts, strict=True):
            cosines, of_rows = side.table(values)
            means.append(mean_over_counted(*self._rows(cosines, scale, of_rows), share.total))
        return (means[0] + means[1]) / 2

    def _in_context(
        self, fusion: PairScorer, features: Features, targets: Targets, share: Share, log_scale: Tensor
    ) -> Tensor:
        """Spans against the regions of their own image, and regions against the spans of their own sentence."""
        own, ids = features[share.pairs], targets[share.pairs]
        spans, regions = fusion.in_context(own, ids)
        scale, cosines = log_scale.exp(), spans @ regions.mT
        relation = own_pair_relation(ids)
        means = []
        for values, of_rows in ((cosines, relation), (cosines.mT, relation.transposed())):
            rows = self._rows(values.flatten(0, 1), scale, of_rows.map(lambda entries: entries.flatten(0, 1)))
            means.append(mean_over_counted(*rows, share.total))
        return (means[0] + means[1]) / 2


class PoolingObjective(FusionObjective):
    """The losses of scores by conditioned pooling: whole matrices, in strips."""

    def forward(self, features: Features, targets: Targets, share: Share, fusion: MatrixScorer) -> Terms:
        """The weight and this rank's share of each term."""
        if not (self.settings.weight or self.settings.parts_weight):
            return {}
        matrices = fusion.matrices(features, targets)
        spans, regions = features.spans.shape[1], features.regions.shape[1]
        of_pairs, of_spans, of_regions = (
            _Matrix(matrices[name], partial(relation, targets), per_pair, choice)
            for name, relation, per_pair, choice in (
                ("sentence_image", sentence_image_relation, 1, "pairs"),
                ("span_image", span_image_relation, spans, "spans"),
                ("region_sentence", region_sentence_relation, regions, "regions"),
            )
        )

        def of_parts(log_scale: Tensor) -> Tensor:
            first, second = (
                self._both_directions(matrix, features, share, log_scale) for matrix in (of_spans, of_regions)
            )
            return (first + second) / 2

        return self._terms(partial(self._both_directions, of_pairs, features, share, self.log_scale), of_parts)

    def _both_directions(self, matrix: "_Matrix", features: Features, share: Share, log_scale: Tensor) -> Tensor:
        """Mean of both directions of a matrix of scores, in strips that the backward pass computes again."""
        pairs = len(features)
        states = sum(tensor.shape[1] for tensor in (features.tokens, features.patches) if tensor is not None)
        size = max(1, STRIP_LOGITS // max(1, matrix.per_pair * pairs * states))

        def turned(rows: slice, columns: slice) -> Tensor:
            return matrix.scores(columns, rows).T

        per_pair, device = (matrix.per_pair, 1), features.text.device
        means = []
        for scores, relation, (own, others) in (
            (matrix.scores, matrix.relation, per_pair),
            (turned, transposed(matrix.relation), per_pair[::-1]),
        ):
            chosen = self._selection(matrix.name, relation, (pairs, own), (pairs, others), device)

            def strip(rows: slice, scores: BlockOfScores = scores, chosen: RowRelation = chosen) -> RowLosses:
                cosines = scores(rows, WHOLE)
                return self._rows(cosines, log_scale.exp(), chosen(rows, cosines.detach()))

            rows = cat_rows([recomputed(strip, block) for block in blocks_of(share.pairs, pairs, size)])
            means.append(mean_over_counted(*rows, share.total))
        return (means[0] + means[1]) / 2

    def _selection(
        self, name: str, relation: BlockRelation, rows: tuple[int, int], columns: tuple[int, int], device: torch.device
    ) -> RowRelation:
        if not self.settings.negatives.used_at(self.done):
            return whole_rows(relation)
        return selected(self.settings.negatives, self._generator(name), relation, rows, columns, device)


class _Matrix(NamedTuple):
    """A matrix of scores, block by block."""

    scores: BlockOfScores
    relation: BlockRelation
    per_pair: int  # rows of each pair; there is one column
    name: str  # of its random choice of negatives


def pairs_of_a_strip(states: int, per_pair: int) -> int:
    """Pairs of a batch whose matrix fills a strip.

    Args:
        states: tokens and patches of a pair.
        per_pair: rows of a pair.
    """
    return max(1, math.isqrt(STRIP_LOGITS // max(1, states * per_pair)))


class ChosenPairs(NamedTuple):
    """The positives and candidates of some rows, as a list in ascending order of rows."""

    row: Tensor  # (n,) int64
    column: Tensor  # (n,) int64
    positive: Tensor  # (n,) bool
    weight: Tensor | None  # (n,) of the positives
    first: int  # row
    rows: int  # number of them

    def table(self, scores: Tensor) -> tuple[Tensor, Relation]:
        """Scores (n,) as a table (Q, C), padded to the longest row, and the relation in it."""
        row = self.row - self.first
        count = row.bincount(minlength=self.rows)
        place = place_in_row(row, count)
        shape = self.rows, int(count.max()) if self.rows else 0

        def placed(values: Tensor) -> Tensor:
            return values.new_zeros(shape).index_put((row, place), values)

        candidates = placed(torch.ones_like(self.positive))
        weight = None if self.weight is None else placed(self.weight)
        return placed(scores), Relation(placed(self.positive), candidates, weight)


@torch.no_grad()
def choose_pairs(
    queries: Tensor,
    keys: Tensor,
    relation: BlockRelation,
    settings: FusionLossSettings,
    generator: torch.Generator,
    pairs: slice = WHOLE,
    strip_logits: int = STRIP_LOGITS,
) -> ChosenPairs:
    """The positives of each row and at most `settings.candidates` of its negatives.

    Args:
        queries, keys: (B, D) features of the towers, whose similarity determines the hard negatives.
        generator: on the CPU, in the same state on every rank.
        pairs: those whose rows are chosen.
        strip_logits: similarities in memory at a time.
    """
    most = min(settings.candidates, len(keys))
    hard = {"hardest": most, "random": 0, "mix": (most + 1) // 2}[settings.choice]
    drawn = random_order(generator, (len(queries), 1), (len(keys), 1), queries.device)
    row, column, positive, weight = [], [], [], []
    for rows in blocks_of(pairs, len(queries), max(1, strip_logits // max(1, len(keys)))):
        related = relation(rows, WHOLE)
        cosines = queries[rows] @ keys.T
        hardest = highest(cosines, related.negatives, hard)
        others = related.negatives & ~hardest
        others = highest(drawn(rows, cosines), others, most - hard)
        places = (related.positives | hardest | others).nonzero(as_tuple=True)
        row.append(places[0] + rows.start)
        column.append(places[1])
        positive.append(related.positives[places])
        weight += [] if related.weight is None else [related.weight[places]]
    first, last, _ = pairs.indices(len(queries))
    joined = torch.cat(row), torch.cat(column), torch.cat(positive)
    return ChosenPairs(*joined, torch.cat(weight) if weight else None, first, last - first)
