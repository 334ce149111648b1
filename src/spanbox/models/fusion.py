"""Fusion: scores of a sentence and an image by attention between them; a score depends on its own pair alone.

A fused score belongs to a pair. It is computed in the same way for every pair that is compared, matching or not, from
the tokens of the sentence and the patches of the image alone. So it holds no trace of which pairs belong together, of
the rest of the batch, or of the block that it was computed in. docs/fusion.md explains the forms.

Tokens and patches carry features of the space in which spans are compared with regions, and patches their place in the
grid. So a token finds its object as soon as the fine level has learned it, and the fusion only has to learn the
object's place and look as the sentence states them. Tokens and patches are projected while a tower encodes its rows
(`DualEncoder.encode_text`, `encode_images`), so that the states that the large-batch step caches are narrow. Scores are
computed in blocks of pairs, which the backward pass computes again, with the same dropout.

    B pairs    K spans    R regions    T tokens    P patches    F width of the fusion    D features    n scored pairs
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spanbox.errors import ConfigError
from spanbox.geometry import picture_cells, roi_align
from spanbox.models.fusion_layers import QueryPooling, Seen, SelfLayer, Stack, never_empty
from spanbox.models.fusion_settings import FusionSettings
from spanbox.models.pooling import pool_regions, pool_spans
from spanbox.structures import Features, Targets

STATES_AT_ONCE = 2**14
"""Tokens and patches of the pairs in a block: with width 128 some 150 MiB of activations."""

LONGEST_WAVE = 100.0
"""The slowest wave of a position encoding takes so many positions for a radian, the fastest takes one."""

BlockOfScores = Callable[[slice, slice], Tensor]
"""Maps the pairs of the rows and those of the columns to scores."""


class Fusion(nn.Module, ABC):
    """Base class of the forms: the states of tokens and patches, and scores in blocks of pairs.

    A state has two halves. The first is its content, from the features of spans and regions by one linear map, so that
    a token and the patch that shows it are alike. The second is its context: of a token the other tokens of
    its text, by `context`, once for all images; of a patch the state of its vision tower and its place in the grid.

    Args:
        patch_width: of the states of the vision tower.
        patch: side of a patch in pixels.
        dim: of the features of spans and regions.
    """

    def __init__(self, settings: FusionSettings, patch_width: int, patch: int, dim: int) -> None:
        super().__init__()
        self.settings = settings
        self.patch = patch
        width, content = settings.width, settings.content
        same_angles = nn.Linear(dim, content)
        nn.init.orthogonal_(same_angles.weight)
        self.content_projection = nn.Sequential(same_angles, nn.LayerNorm(content))
        self.patch_projection = _projection(patch_width, width - content)
        self.context_projection = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.context = nn.ModuleList(SelfLayer(settings) for _ in range(settings.token_layers))
        self.token_projection = nn.Linear(width, width - content)

    def states_of_tokens(self, features: Tensor, mask: Tensor) -> Tensor:
        """States (M, T, F) of texts, 0 on padding.

        Args:
            features: (M, T, D), of the tokens, as of spans.
            mask: (M, T) bool, False on padding.
        """
        states = self.context_projection(features)
        states = states + waves(states.shape[1], states.shape[2], like=states)
        there = never_empty(mask)
        for layer in self.context:
            states = layer(states, there)
        own = self.token_projection(states)
        return torch.cat([self.content_projection(features), own], dim=-1).where(mask[:, :, None], 0.0)

    def states_of_patches(self, grid: Tensor, features: Tensor) -> Tensor:
        """States (M, g*g, F) from the grid (M, g, g, H) of a vision tower and its features (M, g, g, D), as of
        regions."""
        own = self.patch_projection(grid)
        own = own + grid_waves(grid.shape[1], own.shape[-1], like=own)
        return torch.cat([self.content_projection(features), own], dim=-1).flatten(1, 2)

    def pair_scores(self, features: Features, targets: Targets, sentences: Tensor, images: Tensor) -> Tensor:
        """Scores (n,) in [-1, 1] of n pairs of a sentence and an image.

        Args:
            features: with tokens and patches.
            targets: with the mask of the tokens.
            sentences, images: (n,) int64, the places of both in the features.
        """
        size = pairs_at_once(features)
        blocks = zip(torch.split(sentences, size), torch.split(images, size), strict=True)
        return torch.cat([again(self._scores, features, targets, *block) for block in blocks])

    def _scores(self, features: Features, targets: Targets, sentences: Tensor, images: Tensor) -> Tensor:
        tokens, patches = tokens_and_patches(features)
        content = targets.content
        return self.scores(
            features.text[sentences],
            tokens[sentences],
            token_mask(targets)[sentences],
            features.image[images],
            patches[images],
            None if content is None else content[images],
        )

    @abstractmethod
    def scores(
        self, text: Tensor, tokens: Tensor, mask: Tensor, image: Tensor, patches: Tensor, content: Tensor | None = None
    ) -> Tensor:
        """Scores (n,) of sentences and images, row by row.

        Args:
            text, image: (n, D), features of the towers.
            tokens: (n, T, F).
            mask: (n, T) bool, False on padding.
            patches: (n, P, F).
            content: (n, 2) int64, width and height in pixels of the pictures, if the rest is padding.
        """

    def patch_mask(self, content: Tensor | None, patches: Tensor) -> Tensor | None:
        """Mask (n, P) of the patches (n, P, F) that show the picture; None: all do."""
        if content is None:
            return None
        return picture_cells(content, self.patch, math.isqrt(patches.shape[1])).flatten(1)


class PairFusion(Fusion):
    """`gated` and `cross_attention`: tokens attend to the patches in several layers; the score compares each token
    after attention with the same token before.

    A score of the pooled tokens alone learns several times as slowly (docs/fusion.md). Half of the score is that of the
    towers, so the fusion need not learn again to find the objects.

    The regions of an image attend to the tokens of a sentence in separate layers (`in_context`).
    """

    def __init__(self, settings: FusionSettings, patch_width: int, patch: int, dim: int) -> None:
        super().__init__(settings, patch_width, patch, dim)
        self.tokens = Stack(settings)
        self.regions = Stack(settings)
        width = settings.width
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.own_projection = nn.Linear(width, width)
        self.span_projection = nn.Linear(width, width)
        self.region_projection = nn.Linear(width, width)

    def scores(
        self, text: Tensor, tokens: Tensor, mask: Tensor, image: Tensor, patches: Tensor, content: Tensor | None = None
    ) -> Tensor:
        """The mean of two cosines: of the towers' features, and of tokens before and after attention (their mean).

        The towers' part has no gradient here: towers have their own losses, and the fusion learns the remainder.
        """
        seen = self.head(self.tokens(tokens, mask, patches, self.patch_mask(content, patches)))
        cosines = F.cosine_similarity(seen, self.own_projection(tokens), dim=2)
        of_tokens = torch.where(mask, cosines, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return ((text * image).sum(dim=1).detach() + of_tokens) / 2

    def in_context(self, features: Features, targets: Targets) -> tuple[Tensor, Tensor]:
        """Features of the spans (B, K, D + F) and regions (B, R, D + F) after attention within their pair.

        They are of unit length, and the cosine of a span and a region is the mean of two: of the towers' features,
        which have no gradient here, and of the features after attention. Spans are the mean of tokens that attended to
        the patches of their own pair; regions are pooled from the patches and attended to the tokens of their pair.
        Undefined where there is no span or region.
        """
        size = pairs_at_once(features)
        blocks = zip(features.split(size), targets.split(size), strict=True)
        parts = [again(self._in_context, *block) for block in blocks]
        spans, regions = (torch.cat(side) for side in zip(*parts, strict=True))
        return spans, regions

    def _in_context(self, features: Features, targets: Targets) -> tuple[Tensor, Tensor]:
        tokens, patches = tokens_and_patches(features)
        mask = token_mask(targets)
        assert targets.span_tokens is not None
        states = self.tokens(tokens, mask, patches, self.patch_mask(targets.content, patches))
        spans = self.span_projection(pool_spans(states, targets.span_tokens, "mean"))
        boxes = self._boxes(patches, targets)
        regions = boxes
        if boxes.shape[1]:
            regions = self.regions(boxes, targets.region_valid, tokens, mask)
        return beside(features.spans, spans), beside(features.regions, self.region_projection(regions))

    @torch.no_grad()
    def seen(self, features: Features, targets: Targets) -> list[Seen]:
        """What the tokens of each pair (B) attend to in the patches of its image, layer by layer."""
        tokens, patches = tokens_and_patches(features)
        return self.tokens.seen(tokens, token_mask(targets), patches, self.patch_mask(targets.content, patches))

    @torch.no_grad()
    def seen_by_regions(self, features: Features, targets: Targets) -> list[Seen]:
        """What the regions of each pair (B) attend to in the tokens of its sentence, layer by layer."""
        tokens, patches = tokens_and_patches(features)
        boxes = self._boxes(patches, targets)
        return self.regions.seen(boxes, targets.region_valid, tokens, token_mask(targets))

    def _boxes(self, patches: Tensor, targets: Targets) -> Tensor:
        """Regions (B, R, F) pooled from patches (B, P, F)."""
        return pool_regions(roi_align(as_grid(patches), targets.regions, 2, 2), "mean")


class ConditionedPooling(Fusion):
    """`conditioned_pooling`: a text is the query that pools patches, an image or a region the one that pools tokens.

    The score of a pair is the mean of two cosines: of the sentence with the patches that it pools, and of the image
    with the tokens that it pools.
    """

    def __init__(self, settings: FusionSettings, patch_width: int, patch: int, dim: int) -> None:
        super().__init__(settings, patch_width, patch, dim)
        self.over_patches = QueryPooling(dim, settings)
        self.over_tokens = QueryPooling(dim, settings)

    def scores(
        self, text: Tensor, tokens: Tensor, mask: Tensor, image: Tensor, patches: Tensor, content: Tensor | None = None
    ) -> Tensor:
        of_text = self.over_patches.own_cosines(text, patches, self.patch_mask(content, patches))
        of_image = self.over_tokens.own_cosines(image, tokens, mask)
        return (of_text + of_image) / 2

    def matrices(self, features: Features, targets: Targets) -> dict[str, BlockOfScores]:
        """Scores of blocks: the rows of some pairs against the columns of others.

        - `sentence_image`: (b, c), the scores of pairs.
        - `span_image`: (b*K, c), cosines of spans with the patches that they pool.
        - `region_sentence`: (b*R, c), cosines of regions with the tokens that they pool.

        The keys and values of all tokens and patches are computed once, here.
        """
        tokens, patches = tokens_and_patches(features)
        mask, shown = token_mask(targets), self.patch_mask(targets.content, patches)
        of_patches, of_tokens = self.over_patches.keys_values(patches), self.over_tokens.keys_values(tokens)

        def over_patches(queries: Tensor, images: slice) -> Tensor:
            keys, values = (states[images] for states in of_patches)
            return self.over_patches.cosines(queries, keys, values, None if shown is None else shown[images])

        def over_tokens(queries: Tensor, sentences: slice) -> Tensor:
            keys, values = (states[sentences] for states in of_tokens)
            return self.over_tokens.cosines(queries, keys, values, mask[sentences])

        def sentence_image(rows: slice, columns: slice) -> Tensor:
            return (over_patches(features.text[rows], columns) + over_tokens(features.image[columns], rows).T) / 2

        def span_image(rows: slice, columns: slice) -> Tensor:
            return over_patches(features.spans[rows].flatten(0, 1), columns)

        def region_sentence(rows: slice, columns: slice) -> Tensor:
            return over_tokens(features.regions[rows].flatten(0, 1), columns)

        return {"sentence_image": sentence_image, "span_image": span_image, "region_sentence": region_sentence}

    @torch.no_grad()
    def seen(self, queries: Tensor, patches: Tensor, content: Tensor | None = None) -> Tensor:
        """Attention (q, P), mean over the heads, of queries (q, D) over the patches (P, F) of one image.

        `content` (2,) is as in `scores`.
        """
        keys, _ = self.over_patches.keys_values(patches[None])
        mask = self.patch_mask(None if content is None else content[None], patches[None])
        return self.over_patches.weights(queries, keys, mask).mean(dim=1)[:, 0]

    @torch.no_grad()
    def seen_by_regions(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Attention (q, T), mean over the heads, of queries (q, D) over the tokens (T, F) of one sentence.

        `mask` (T,) is False on padding.
        """
        keys, _ = self.over_tokens.keys_values(tokens[None])
        return self.over_tokens.weights(queries, keys, mask[None]).mean(dim=1)[:, 0]


def build_fusion(
    settings: FusionSettings, *, patch_width: int, patches: int, dim: int, patch: int = 1
) -> PairFusion | ConditionedPooling | None:
    """The fusion of a config; None where it is off.

    Args:
        patch_width: of the states of the vision tower.
        patches: of an image.
        dim: of the features of the towers.
        patch: side of a patch in pixels.

    Raises:
        ConfigError: there are no patches to attend to.
    """
    if not settings.used:
        return None
    if patches < 2:
        raise ConfigError(
            f"model.fusion.kind: {settings.kind} needs the patches of an image, and the vision tower gives "
            f"{'a single one' if patches else 'none'} at this size: raise model.vision.image_size, take a tower with "
            "smaller patches, or set model.fusion.kind=none"
        )
    if settings.kind == "conditioned_pooling":
        return ConditionedPooling(settings, patch_width, patch, dim)
    return PairFusion(settings, patch_width, patch, dim)


def pairs_at_once(features: Features) -> int:
    """Pairs in a block."""
    tokens, patches = tokens_and_patches(features)
    return pairs_of_a_block(tokens.shape[1], patches.shape[1])


def pairs_of_a_block(tokens: int, patches: int) -> int:
    """Pairs of so many tokens and patches in a block."""
    return max(1, STATES_AT_ONCE // (tokens + patches))


def again(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; the backward pass computes its activations again, with the same dropout."""
    return checkpoint(function, *arguments, use_reentrant=False)


def beside(own: Tensor, seen: Tensor) -> Tensor:
    """Unit-length features (..., D + F): the towers' (..., D), without gradient, and the attended states (..., F)."""
    return torch.cat([own.detach(), F.normalize(seen, dim=-1)], dim=-1) / math.sqrt(2)


def as_grid(patches: Tensor) -> Tensor:
    """Patches (B, P, F) of square images as a grid (B, h, w, F)."""
    side = math.isqrt(patches.shape[1])
    assert side * side == patches.shape[1]
    return patches.reshape(len(patches), side, side, -1)


def tokens_and_patches(features: Features) -> tuple[Tensor, Tensor]:
    assert features.tokens is not None, "fusion needs the tokens"
    assert features.patches is not None, "fusion needs the patches"
    return features.tokens, features.patches


def token_mask(targets: Targets) -> Tensor:
    assert targets.token_mask is not None, "fusion needs the mask of the tokens"
    return targets.token_mask


def grid_waves(side: int, width: int, like: Tensor) -> Tensor:
    """Position encodings (side, side, width) of a grid: first how far down, then how far across."""
    half = width // 2
    down = waves(side, half, like)[:, None].expand(-1, side, -1)
    across = waves(side, width - half, like).expand(side, -1, -1)
    return torch.cat([down, across], dim=2)


def waves(positions: int, width: int, like: Tensor) -> Tensor:
    """Position encodings (positions, width): sines, then cosines, from 1 to 1 / LONGEST_WAVE radians a position.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.5.
    """
    exact = torch.promote_types(like.dtype, torch.float32)
    rates = LONGEST_WAVE ** -torch.linspace(0, 1, (width + 1) // 2, device=like.device, dtype=exact)
    angles = torch.arange(positions, device=like.device, dtype=exact)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].to(like.dtype)


def _projection(wide: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(wide, width), nn.LayerNorm(width))
