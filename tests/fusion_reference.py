"""Slow loops of the fusion: one pair, one state and one head at a time, with lists of the states that exist."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm

import geometry_reference
import metric_reference
import relation_reference
from spanbox.models.fusion import LONGEST_WAVE, ConditionedPooling, Fusion, PairFusion
from spanbox.models.fusion_layers import Attention, ContentAttention, CrossLayer, QueryPooling, SelfLayer
from spanbox.structures import Batch, Features


def mean(values: list[Tensor]) -> Tensor:
    return sum(values[1:], start=values[0]) / len(values)


def attend(module: Attention, place: int, states: list[Tensor]) -> Tensor:
    """What a state takes over from the states; if the module is directed, from those before it, or those after it."""
    query, size = module.query(states[place]), len(states[place]) // module.heads
    heads = []
    for head in range(module.heads):
        seen = states
        if module.directed and module.heads > 1:
            seen = states[place:] if head % 2 else states[: place + 1]
        part = slice(head * size, (head + 1) * size)
        logits = [sum(query[part] * module.key(other)[part]) / math.sqrt(size) for other in seen]
        heads.append(weighted(logits, [module.value(other)[part] for other in seen]))
    return module.out(torch.cat(heads))


def own_layer(module: SelfLayer, states: list[Tensor]) -> list[Tensor]:
    normed = [module.norms[0](state) for state in states]
    states = [state + attend(module.to_own, place, normed) for place, state in enumerate(states)]
    return [state + module.feed_forward(module.norms[1](state)) for state in states]


def states_of_text(fusion: Fusion, features: list[Tensor]) -> list[Tensor]:
    """States of the tokens of a text, without padding."""
    width = fusion.settings.width
    rates = [LONGEST_WAVE ** -(k / max(1, (width + 1) // 2 - 1)) for k in range((width + 1) // 2)]
    states = []
    for place, feature in enumerate(features):
        wave = [math.sin(place * rate) for rate in rates] + [math.cos(place * rate) for rate in rates]
        states.append(fusion.context_projection(feature) + torch.tensor(wave[:width], dtype=feature.dtype))
    for layer in fusion.context:
        states = own_layer(layer, states)
    contents = [fusion.content_projection(feature) for feature in features]
    return [torch.cat([a, fusion.token_projection(b)]) for a, b in zip(contents, states, strict=True)]


def look(module: ContentAttention, state: Tensor, memory: list[Tensor]) -> Tensor:
    query, sharpness = module.query(state[: module.content]), module.log_sharpness.exp()
    keys = [module.key(other[: module.content]) for other in memory]
    logits = [sharpness * cosine_similarity(query, key, dim=0) for key in keys]
    return weighted(logits, [module.value(other) for other in memory])


def weighted(logits: list[Tensor], values: list[Tensor]) -> Tensor:
    exponentials = [torch.exp(logit) for logit in logits]
    return sum(one * value for one, value in zip(exponentials, values, strict=True)) / sum(exponentials)


def layer(module: Any, states: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
    if isinstance(module, CrossLayer):
        normed = [module.norms[0](state) for state in states]
        states = [state + attend(module.to_own, place, normed) for place, state in enumerate(states)]
        states = [state + look(module.to_memory, module.norms[1](state), memory) for state in states]
        return [state + module.feed_forward(module.norms[2](state)) for state in states]
    mixed = []
    for state in states:
        attended = look(module.to_memory, module.norms[0](state), memory)
        gate = torch.sigmoid(module.gate(torch.cat([state, attended])))
        mixed.append(gate * attended + (1 - gate) * state)
    return [state + module.feed_forward(module.norms[1](state)) for state in mixed]


def stack(module: Any, states: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
    for one in module.layers:
        states = layer(one, states, memory)
    return [layer_norm(state, state.shape, module.norm.weight, module.norm.bias) for state in states]


def tokens_of(features: Features, batch: Batch, pair: int) -> list[Tensor]:
    return [token for token, real in zip(features.tokens[pair], batch.token_mask[pair].tolist(), strict=True) if real]


def patches_of(features: Features, batch: Batch, image: int) -> list[Tensor]:
    """The patches of 8 pixels that show a part of the picture."""
    patches = list(features.patches[image])
    if batch.content is None:
        return patches
    width, height = batch.content[image].tolist()
    side = math.isqrt(len(patches))
    return [one for place, one in enumerate(patches) if place // side * 8 < height and place % side * 8 < width]


def pooled(module: QueryPooling, query: Tensor, states: list[Tensor]) -> Tensor:
    asked, size = module.query(query), len(module.query.bias) // module.heads
    heads = []
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        exponentials = [torch.exp(sum(asked[part] * module.key(one)[part]) / math.sqrt(size)) for one in states]
        values = [module.value(one)[part] * each for one, each in zip(states, exponentials, strict=True)]
        heads.append(sum(values) / sum(exponentials))
    return module.out(torch.cat(heads))


def pair_score(fusion: Any, features: Features, batch: Batch, sentence: int, image: int) -> Tensor:
    tokens, patches = tokens_of(features, batch, sentence), patches_of(features, batch, image)
    if isinstance(fusion, ConditionedPooling):
        text, shown = features.text[sentence], features.image[image]
        of_text = cosine_similarity(text, pooled(fusion.over_patches, text, patches), dim=0)
        return (of_text + cosine_similarity(shown, pooled(fusion.over_tokens, shown, tokens), dim=0)) / 2
    assert isinstance(fusion, PairFusion)
    seen = stack(fusion.tokens, tokens, patches)
    said = [fusion.own_projection(token) for token in tokens]
    of_tokens = mean([cosine_similarity(fusion.head(a), b, dim=0) for a, b in zip(seen, said, strict=True)])
    return (metric_reference.dot(features.text[sentence], features.image[image]) + of_tokens) / 2


def beside(own: Tensor, seen: Tensor) -> Tensor:
    """Of unit length; the cosine of two is the mean of both cosines."""
    return torch.cat([own.detach(), seen / seen.norm()]) / math.sqrt(2)


def in_context(fusion: PairFusion, features: Features, batch: Batch, pair: int) -> tuple[list[Any], list[Any]]:
    """Spans and regions of a pair; None where there is none."""
    tokens, patches = tokens_of(features, batch, pair), patches_of(features, batch, pair)
    seen = stack(fusion.tokens, tokens, patches)
    spans: list[Any] = []
    for place, members in enumerate(batch.span_tokens[pair]):
        own = [state for state, member in zip(seen, members[batch.token_mask[pair]].tolist(), strict=True) if member]
        there = own and batch.span_valid[pair, place]
        spans.append(beside(features.spans[pair, place], fusion.span_projection(mean(own))) if there else None)
    side = math.isqrt(len(features.patches[pair]))
    grid = features.patches[pair].reshape(1, side, side, -1)
    boxes = geometry_reference.roi_align(grid, batch.regions[pair : pair + 1], 2, 2)[0].mean(dim=(1, 2))
    real = batch.region_valid[pair].tolist()
    states = [box for box, valid in zip(boxes, real, strict=True) if valid]
    projected = iter([fusion.region_projection(one) for one in stack(fusion.regions, states, tokens)] if states else [])
    alone = features.regions[pair]
    regions = [beside(own, next(projected)) if valid else None for own, valid in zip(alone, real, strict=True)]
    return spans, regions


def contrast(scores: list[Tensor], positives: list[bool], scale: Tensor) -> Tensor | None:
    """InfoNCE of one row over its candidates; None without a positive."""
    if not any(positives):
        return None
    exponentials = [torch.exp(scale * score) for score in scores]
    return -torch.log(sum(e for e, p in zip(exponentials, positives, strict=True) if p) / sum(exponentials))


def mean_of(rows: list[Tensor | None]) -> Tensor:
    counted = [row for row in rows if row is not None]
    return mean(counted) if counted else torch.zeros((), dtype=torch.float64)


def chosen(similarity: list[float], positives: list[bool], candidates: list[bool], most: int) -> list[int]:
    """Columns of the positives and of the `most` most similar negatives."""
    negatives = [c for c in range(len(similarity)) if candidates[c] and not positives[c]]
    hardest = sorted(negatives, key=lambda c: -similarity[c])[:most]
    return [c for c in range(len(similarity)) if positives[c] or c in hardest]


def pair_loss(fusion: Any, features: Features, batch: Batch, scale: Tensor, most: int) -> Tensor:
    """The loss of the hardest pairs, mean of both directions."""
    positives, candidates = (torch.tensor(mask) for mask in relation_reference.sentence_image_masks(batch))
    means = []
    for flipped in (False, True):
        rows: list[Tensor | None] = []
        for query in range(len(batch)):
            own, others = (features.image, features.text) if flipped else (features.text, features.image)
            right, allowed = ((mask.T if flipped else mask)[query].tolist() for mask in (positives, candidates))
            columns = chosen([metric_reference.dot(own[query], other) for other in others], right, allowed, most)
            pairs = [(column, query) if flipped else (query, column) for column in columns]
            scores = [pair_score(fusion, features, batch, *pair) for pair in pairs]
            rows.append(contrast(scores, [right[column] for column in columns], scale))
        means.append(mean_of(rows))
    return (means[0] + means[1]) / 2


def context_loss(fusion: PairFusion, features: Features, batch: Batch, scale: Tensor) -> Tensor:
    pairs, spans, regions = batch.links.shape
    masks = [
        torch.tensor(mask).reshape(pairs, spans, pairs, regions) for mask in relation_reference.span_region_masks(batch)
    ]
    forward: list[Tensor | None] = []
    backward: list[Tensor | None] = []
    for pair in range(pairs):
        own_spans, own_regions = in_context(fusion, features, batch, pair)
        positives, candidates = (mask[pair, :, pair].tolist() for mask in masks)

        def score(k: int, r: int, spans: Any = own_spans, regions: Any = own_regions) -> Tensor:
            return cosine_similarity(spans[k], regions[r], dim=0)

        for k in range(spans):
            columns = [r for r in range(regions) if candidates[k][r]]
            forward.append(contrast([score(k, r) for r in columns], [positives[k][r] for r in columns], scale))
        for r in range(regions):
            columns = [k for k in range(spans) if candidates[k][r]]
            backward.append(contrast([score(k, r) for k in columns], [positives[k][r] for k in columns], scale))
    return (mean_of(forward) + mean_of(backward)) / 2


def part_masks(batch: Batch) -> dict[str, tuple[list[list[bool]], list[list[bool]]]]:
    """Positives and candidates of every span against every image, and of every region against every sentence."""
    pairs, spans, regions = batch.links.shape
    right = torch.tensor(relation_reference.span_region_masks(batch)[0]).reshape(pairs, spans, pairs, regions).tolist()
    identity, group = batch.span_identity.tolist(), batch.group.tolist()
    links, valid = batch.links.tolist(), batch.region_valid.tolist()
    span_rows: Any = ([], [])
    for p in range(pairs):
        for k in range(spans):
            positive = [any(right[p][k][q]) for q in range(pairs)]
            negative = [
                identity[p][k] != -1 and group[p] != group[q] and identity[p][k] not in identity[q]
                for q in range(pairs)
            ]
            span_rows[0].append(positive)
            span_rows[1].append([a or b for a, b in zip(positive, negative, strict=True)])
    region_rows: Any = ([], [])
    for q in range(pairs):
        for r in range(regions):
            positive = [any(right[p][k][q][r] for k in range(spans)) for p in range(pairs)]
            shown = {identity[q][k] for k in range(spans) if links[q][k][r] and identity[q][k] != -1}
            negative = [valid[q][r] and group[p] != group[q] and not shown & set(identity[p]) for p in range(pairs)]
            region_rows[0].append(positive)
            region_rows[1].append([a or b for a, b in zip(positive, negative, strict=True)])
    return {"spans": span_rows, "regions": region_rows}


def matrix_loss(scores: list[list[Tensor]], positives: Any, candidates: Any, scale: Tensor) -> Tensor:
    """InfoNCE of rows and columns of a matrix."""
    means = []
    for flipped in (False, True):
        rows: list[Tensor | None] = []
        for row in range(len(scores[0]) if flipped else len(scores)):
            cells = [
                (other, row) if flipped else (row, other) for other in range(len(scores if flipped else scores[0]))
            ]
            cells = [(i, j) for i, j in cells if candidates[i][j]]
            rows.append(contrast([scores[i][j] for i, j in cells], [positives[i][j] for i, j in cells], scale))
        means.append(mean_of(rows))
    return (means[0] + means[1]) / 2


def pooling_losses(fusion: ConditionedPooling, features: Features, batch: Batch, scales: tuple[Tensor, Tensor]) -> Any:
    """The losses of sentences and images, and of spans and regions."""
    pairs = range(len(batch))
    scores = [[pair_score(fusion, features, batch, i, j) for j in pairs] for i in pairs]
    of_pairs = matrix_loss(scores, *relation_reference.sentence_image_masks(batch), scales[0])
    masks = part_masks(batch)
    of_spans = [
        [cosine_similarity(span, pooled(fusion.over_patches, span, list(features.patches[j])), dim=0) for j in pairs]
        for span in features.spans.flatten(0, 1)
    ]
    of_regions = [
        [
            cosine_similarity(region, pooled(fusion.over_tokens, region, tokens_of(features, batch, i)), dim=0)
            for i in pairs
        ]
        for region in features.regions.flatten(0, 1)
    ]
    spans = matrix_loss(of_spans, *masks["spans"], scales[1])
    regions = matrix_loss(of_regions, *masks["regions"], scales[1])
    return of_pairs, (spans + regions) / 2
