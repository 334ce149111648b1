"""A model for grounded multimodal named-entity recognition: heads on a dual encoder.

From the token states of a sentence the tagger finds spans and types (BIO tags, `crf.py`). Then each span chooses a
region: the logit of a candidate is the cosine of the encoder's own span and region features times a learned scale, so
that both pretrained features are used unchanged; "none" has a separate logit, a linear function of the span.

    B pairs    K spans    R candidate regions    T tokens    M rows    H width of the text tower    D features
    L tags
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbox.models.crf import LinearChainCrf
from spanbox.models.dual_encoder import DualEncoder, ImageStates, TextStates
from spanbox.models.fusion_settings import FusionSettings
from spanbox.models.inputs import Images, Places, Texts
from spanbox.models.pooling import pool_spans
from spanbox.structures import Batch, TensorBundle
from spanbox.tags import may_follow, may_start, tag_count

LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class TokenRows(TensorBundle):
    """States of M texts, with those of their tokens."""

    pooled: Tensor  # (M, P)
    spans: Tensor  # (M, K, H)
    tokens: Tensor  # (M, T, H), zeros behind the longest text of the chunk


@dataclass(frozen=True)
class GmnerFeatures(TensorBundle):
    """What the losses of a pair are computed from."""

    emissions: Tensor  # (B, T, L): scores of the tags
    regions: Tensor | None = None  # (B, K, R): logits of the candidates; None: no regions are chosen
    none: Tensor | None = None  # (B, K): logits of "the image does not show it"


class Tagger(nn.Module):
    """Scores of BIO tags from token states, and the CRF over them."""

    def __init__(self, width: int, types: int) -> None:
        super().__init__()
        self.emissions = nn.Linear(width, tag_count(types))
        self.crf = LinearChainCrf(may_start(types), may_follow(types))


class RegionChoice(nn.Module):
    """Logits of the candidates of a span, and of none.

    Args:
        scale: the initial factor of the cosine, 1 / temperature.
    """

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.none = nn.Linear(dim, 1)
        nn.init.zeros_(self.none.weight)
        nn.init.zeros_(self.none.bias)

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def forward(self, spans: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, R) and (B, K), from unit features (B, K, D) and (B, R, D)."""
        with torch.autocast(spans.device.type, enabled=False):  # bfloat16 would make ties of overlapping candidates
            return self.scale * (spans @ regions.mT), self.scale * self.none(spans)[..., 0]

    def clamp_scale(self) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


class GmnerModel(nn.Module):
    """Finds the entities of a sentence and the region of the image that shows each.

    Args:
        encoder: towers and projections, pretrained or not.
        types: names of the entity types, in the order of their tags.
        scale: initial factor of the cosine of span and region.
        grounds: whether regions are chosen; else images are not looked at.
    """

    def __init__(self, encoder: DualEncoder, types: Sequence[str], *, scale: float, grounds: bool) -> None:
        super().__init__()
        self.types = tuple(types)
        self.grounds = grounds
        self.encoder = encoder
        encoder.fusion = None  # scores whole pairs, which nothing here needs
        encoder.settings = encoder.settings.model_copy(update={"fusion": FusionSettings()})
        self.tagger = Tagger(encoder.text.width, len(types))
        self.choice = RegionChoice(encoder.settings.dim, scale) if grounds else None
        for unused in self._unused():
            unused.requires_grad_(False)  # kept as they are; without a gradient, weight decay would shrink them

    def _unused(self) -> list[nn.Module]:
        encoder = self.encoder
        if self.choice is None:
            projections = {encoder.projection_of(part) for part in ("text", "image", "spans", "regions")}
            return [encoder.vision, *projections]
        used = {encoder.projection_of("spans"), encoder.projection_of("regions")}
        return [one for one in (encoder.text_projection, encoder.image_projection) if one not in used]

    def encode_text(self, texts: Texts) -> TokenRows:
        """States of texts, from any device, of their spans and of their tokens."""
        encoder, length = self.encoder, texts.token_ids.shape[1]
        texts = texts.trimmed().to(encoder.device, non_blocking=True)
        states = encoder.text(texts.token_ids, texts.token_mask)
        tokens = F.pad(states.tokens, (0, 0, 0, length - states.tokens.shape[1]))  # chunks differ in their padding
        spans = pool_spans(states.tokens, texts.span_tokens, encoder.settings.spans.pool)
        return TokenRows(states.pooled, spans, tokens)

    def features(self, texts: Sequence[TokenRows], images: Sequence[ImageStates], places: Places) -> GmnerFeatures:
        """Features of a batch from the states of its rows, in the order of `TowerInputs`; without images, of the tags
        alone."""
        rows = places.text.to(texts[0].tokens.device, non_blocking=True)
        emissions = self.tagger.emissions(texts[0].tokens[rows])
        if self.choice is None:
            return GmnerFeatures(emissions)
        whole = self.encoder.features([TextStates(one.pooled, one.spans) for one in texts], images, places)
        regions, none = self.choice(whole.spans, whole.regions)
        return GmnerFeatures(emissions, regions, none)

    def tag(self, texts: Texts, tagged: Tensor) -> list[list[int]]:
        """The most probable tags of each text's tagged tokens (M, T)."""
        emissions = self.tagger.emissions(self.encode_text(texts).tokens)
        return self.tagger.crf.best_tags(emissions, tagged.to(emissions.device))

    def choose_regions(self, batch: Batch) -> Tensor:
        """For each span of a batch the column (B, K) of the chosen region; -1: none. Undefined for padding."""
        assert self.choice is not None
        features = self.encoder(batch)
        regions, none = self.choice(features.spans, features.regions)
        valid = batch.region_valid.to(regions.device)[:, None]
        logits = torch.cat([none[..., None], regions.masked_fill(~valid, -torch.inf)], dim=2)
        return logits.argmax(dim=2) - 1

    def encode_images(self, images: Images) -> ImageStates:
        """States of images, from any device, and of their regions."""
        return self.encoder.encode_images(images)
