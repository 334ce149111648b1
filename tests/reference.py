"""Slow loops: what the fast code must agree with, written so plainly that they can be checked by eye."""

import itertools
import math
import statistics
import unicodedata
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.spans import Piece
from spanbox.structures import Batch, Features


def rank_of_best_positive(scores: list[float], positives: list[bool]) -> int:
    """Rank of the best positive among all scores, ties against it, NaN last; 0 without a positive."""
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    right = [score for score, positive in zip(scores, positives, strict=True) if positive]
    wrong = [score for score, positive in zip(scores, positives, strict=True) if not positive]
    return 1 + sum(score >= max(right) for score in wrong) if right else 0


def dot(first: Tensor, second: Tensor) -> float:
    return sum(x * y for x, y in zip(first.tolist(), second.tolist(), strict=True))


def average_precision(scores: list[float], positives: list[bool]) -> float:
    """Mean over the positives, best first, of the share of positives down to each, wrong ones first among equals."""
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], positives[i]))
    # A positive shares its place with the equal ones: what counts as wrong is what stands before the first of them.
    precisions = []
    for i in order:
        if positives[i]:
            wrong = sum(scores[j] >= scores[i] and not positives[j] for j in order)
            precisions.append((len(precisions) + 1) / (len(precisions) + 1 + wrong))
    return statistics.fmean(precisions)


def chance_within(depth: int, right: int, candidates: int) -> float:
    depth = min(depth, candidates)
    return 1 - math.comb(candidates - right, depth) / math.comb(candidates, depth)


def chance_average_precision(right: int, candidates: int) -> float:
    others = (right - 1) / (candidates - 1) if candidates > 1 else 0.0
    return statistics.fmean((1 + (place - 1) * others) / place for place in range(1, candidates + 1))


Query = tuple[list[float], list[bool]]


def ranking_summary(
    prefix: str, queries: list[Query], baseline: dict[int, list[float]] | None = None
) -> dict[str, float]:
    """Metrics of the (scores, positives) of each query; nothing where no query has a positive."""
    counted = [any(positives) for _, positives in queries]
    baseline = {k: list(itertools.compress(found, counted)) for k, found in (baseline or {}).items()}
    queries = list(itertools.compress(queries, counted))
    if not queries:
        return {}
    ranks = [rank_of_best_positive(*query) for query in queries]
    sizes = [(sum(positives), len(positives)) for _, positives in queries]
    metrics = {
        f"{prefix}.median_rank": statistics.median(ranks),
        f"{prefix}.mean_rank": statistics.fmean(ranks),
        f"{prefix}.mean_rank.chance": statistics.fmean((n + 1) / (m + 1) for m, n in sizes),
        f"{prefix}.map": statistics.fmean(average_precision(*query) for query in queries),
        f"{prefix}.map.chance": statistics.fmean(chance_average_precision(*size) for size in sizes),
    }
    for k in (1, 5, 10):
        metrics[f"{prefix}.r{k}"] = statistics.fmean(rank <= k for rank in ranks)
        metrics[f"{prefix}.r{k}.chance"] = statistics.fmean(chance_within(k, *size) for size in sizes)
        if k in baseline:
            metrics[f"{prefix}.r{k}.baseline"] = statistics.fmean(baseline[k])
    return metrics | {
        f"{prefix}.{key}.count": len(ranks) for key in ("r1", "r5", "r10", "median_rank", "mean_rank", "map")
    }


def retrieval_metrics(bank: FeatureBank) -> dict[str, float]:
    group = bank.group.tolist()
    images = [pair for pair in range(len(group)) if group[pair] not in group[:pair]]
    to_text = [
        ([dot(bank.image[i], text) for text in bank.text], [group[i] == other for other in group]) for i in images
    ]
    to_image = [
        ([dot(text, bank.image[i]) for i in images], [group[pair] == group[i] for i in images])
        for pair, text in enumerate(bank.text)
    ]
    sentences = [group.count(group[i]) for i in images]
    baseline = {}
    if len(set(sentences)) > 1:
        for k in (1, 5, 10):
            before = [sum(other > group.count(own) for other in sentences) for own in group]
            equal = [sentences.count(group.count(own)) for own in group]
            baseline[k] = [min(max((k - b) / e, 0.0), 1.0) for b, e in zip(before, equal, strict=True)]
    return ranking_summary("retrieval.i2t", to_text) | ranking_summary("retrieval.t2i", to_image, baseline)


def matching_metrics(
    bank: FeatureBank, types: list[str | None] | None = None, threshold: float | None = None
) -> dict[str, float]:
    """All that is asked of spans and regions but for `embedding`; empty without a link."""
    links = {(span, region) for span, region in bank.links.tolist()}
    if not links:
        return {}
    span_pair, region_pair = bank.span_pair.tolist(), bank.region_pair.tolist()
    group, identity = bank.group.tolist(), bank.span_identity.tolist()
    asks = [span for span in range(len(span_pair)) if any(span == asking for asking, _ in links)]
    right_for = {span: {region for other, region in links if identity[other] == identity[span]} for span in asks}
    most = max(range(len(region_pair)), key=lambda region: sum(region in right for right in right_for.values()))
    across, within, best, groups = [], {}, {}, dict[str, list[int]]()
    for span, pair in enumerate(span_pair):
        own = [region for region, other in enumerate(region_pair) if other == pair]
        scores = [dot(bank.spans[span], bank.regions[region]) for region in own]
        best[span] = max((score for score in scores if not math.isnan(score)), default=-math.inf)
        if span not in asks:
            continue
        right = [(span, region) in links for region in own]
        boxes = [bank.region_box[region].tolist() for region in own]
        own_boxes = list(itertools.compress(boxes, right))
        within[span] = (scores, right, boxes)
        areas = [area(*box) for box in boxes]
        largest = max(itertools.compress(areas, right))
        names = ["all", *(["hard"] if not all(right) else [])]
        names += [f"size.{'small' if largest < 1 / 300 else 'medium' if largest < 0.03 else 'large'}"]
        names += [f"candidates.{'2' if len(own) == 2 else '3-5' if len(own) <= 5 else '6+'}"] if len(own) > 1 else []
        names += [f"type.{types[span]}"] if types and types[span] else []
        for name in names:
            groups.setdefault(name, []).append(span)
        candidates = [
            region
            for region, other in enumerate(region_pair)
            if region in right_for[span] or other == pair or group[other] != group[pair]
        ]
        scores = [dot(bank.spans[span], bank.regions[region]) for region in candidates]
        across.append((scores, [region in right_for[span] for region in candidates]))
    prefix = "matching.within_image"
    metrics = within_image_summary(f"{prefix}.r5", [within[span] for span in asks], 5)
    for name, spans in groups.items():
        key = prefix if name == "all" else f"{prefix}.{name}"
        metrics |= within_image_summary(key, [within[span] for span in spans])
    metrics[f"{prefix}.mean_candidates"] = statistics.fmean(len(right) for _, right, _ in within.values())
    metrics[f"{prefix}.trivial"] = statistics.fmean(all(right) for _, right, _ in within.values())
    for name, lies_over in (("accuracy", overlaps), ("pointing", has_centre_in)):
        near = []
        for scores, right, boxes in within.values():
            own_boxes = list(itertools.compress(boxes, right))
            hits = [r or any(lies_over(box, own) for own in own_boxes) for r, box in zip(right, boxes, strict=True)]
            near.append((scores, hits, boxes))
        metrics |= within_image_summary(f"grounding.{name}", near)
    constant = [float(most in right_for[span]) for span in asks]
    return (
        metrics
        | ranking_summary("matching.across_set", across, {1: constant})
        | presence(bank, best, set(asks), threshold)
    )


def within_image_summary(
    name: str, queries: list[tuple[list[float], list[bool], list[list[float]]]], k: int = 1
) -> dict[str, float]:
    """Of the scores, right ones and boxes of each query."""
    return {
        name: statistics.fmean(rank_of_best_positive(scores, right) <= k for scores, right, _ in queries),
        f"{name}.chance": statistics.fmean(chance_within(k, sum(right), len(right)) for _, right, _ in queries),
        f"{name}.baseline": statistics.fmean(
            rank_of_best_positive([area(*box) for box in boxes], right) <= k for _, right, boxes in queries
        ),
        f"{name}.count": len(queries),
    }


def presence(bank: FeatureBank, best: dict[int, float], has_box: set[int], threshold: float | None) -> dict[str, float]:
    pairs_with_regions = set(bank.region_pair.tolist())
    scored = [span for span, pair in enumerate(bank.span_pair.tolist()) if pair in pairs_with_regions]
    positive, negative = ([best[i] for i in scored if (i in has_box) == kind] for kind in (True, False))
    name = "matching.presence"
    if not 0 < len(has_box) < len(best):
        return {}
    metrics: dict[str, float] = {f"{name}.count": len(best) - len(has_box)}
    if positive and negative:
        metrics |= {f"{name}.auc": auc(positive, negative), f"{name}.auc.chance": 0.5, f"{name}.auc.count": len(scored)}
    if threshold is not None:
        metrics |= {
            f"{name}.f1": f1([score >= threshold for score in best.values()], [span in has_box for span in best]),
            f"{name}.f1.baseline": f1([True] * len(best), [span in has_box for span in best]),
            f"{name}.f1.count": len(best),
            f"{name}.threshold": threshold,
        }
    return metrics


def f1(decided: list[bool], truth: list[bool]) -> float:
    right = sum(d and t for d, t in zip(decided, truth, strict=True))
    precision, recall = right / sum(decided) if any(decided) else 0.0, right / sum(truth)
    return 2 * precision * recall / (precision + recall) if right else 0.0


def embedding_metrics(bank: FeatureBank) -> dict[str, float]:
    group = bank.group.tolist()
    first = [pair for pair in range(len(group)) if group[pair] not in group[:pair]]
    coarse = {"sentences": (bank.text, group), "images": (bank.image[first], [group[pair] for pair in first])}
    metrics = embedding_level("coarse", coarse, list(zip(bank.text, bank.image, strict=True)))
    if not len(bank.links):
        return metrics
    fine = {
        "spans": (bank.spans, [group[pair] for pair in bank.span_pair]),
        "regions": (bank.regions, [group[pair] for pair in bank.region_pair]),
    }
    together = [(bank.spans[span], bank.regions[region]) for span, region in bank.links.tolist()]
    return metrics | embedding_level("fine", fine, together)


def embedding_level(
    level: str, kinds: dict[str, tuple[Tensor, list[int]]], together: list[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    def squared_distance(first: Tensor, second: Tensor) -> float:
        return sum((x - y) ** 2 for x, y in zip(first.tolist(), second.tolist(), strict=True))

    prefix = f"embedding.{level}"
    metrics = {
        f"{prefix}.alignment": statistics.fmean(itertools.starmap(squared_distance, together)),
        f"{prefix}.alignment.chance": statistics.fmean(
            squared_distance(one, other) for one, _ in together for _, other in together
        ),
        f"{prefix}.alignment.count": len(together),
    }
    for name, (features, image) in kinds.items():
        apart = [(i, j) for i, j in itertools.permutations(range(len(image)), 2) if image[i] != image[j]]
        if apart:
            kernel = [math.exp(-2 * squared_distance(features[i], features[j])) for i, j in apart]
            metrics[f"{prefix}.uniformity.{name}"] = math.log(statistics.fmean(kernel))
            metrics[f"{prefix}.uniformity.{name}.count"] = len(image)
    means = [
        [statistics.fmean(column) for column in zip(*features.tolist(), strict=True)] for features, _ in kinds.values()
    ]
    metrics[f"{prefix}.modality_gap"] = math.dist(*means)
    metrics[f"{prefix}.modality_gap.count"] = sum(len(image) for _, image in kinds.values())
    return metrics


def auc(positives: list[float], negatives: list[float]) -> float:
    wins = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    return statistics.fmean(wins)


def area(x0: float, y0: float, x1: float, y1: float) -> float:
    return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)


def iou(a: list[float], b: list[float]) -> float:
    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union > 0 else 0.0


def box_iou(first: Tensor, second: Tensor) -> list[list[float]]:
    return [[iou(a, b) for b in second.tolist()] for a in first.tolist()]


def overlaps(box: list[float], own: list[float]) -> bool:
    return iou(box, own) >= 0.5


def has_centre_in(box: list[float], own: list[float]) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return own[0] <= x <= own[2] and own[1] <= y <= own[3]


def roi_align(features: Tensor, boxes: Tensor, output_size: int, sampling_ratio: int) -> Tensor:
    """(B, R, o, o, C): sample by sample, each from its four neighbours; torchvision's `aligned=True`."""
    height, width = features.shape[1:3]
    out = features.new_zeros(*boxes.shape[:2], output_size, output_size, features.shape[-1])
    for b, r, i, j in itertools.product(*map(range, out.shape[:4])):
        x0, y0, x1, y1 = boxes[b, r].tolist()
        bin_height, bin_width = (y1 - y0) * height / output_size, (x1 - x0) * width / output_size
        for k, m in itertools.product(range(sampling_ratio), repeat=2):
            y = y0 * height - 0.5 + i * bin_height + (k + 0.5) * bin_height / sampling_ratio
            x = x0 * width - 0.5 + j * bin_width + (m + 0.5) * bin_width / sampling_ratio
            out[b, r, i, j] = out[b, r, i, j] + bilinear(features[b], y, x) / sampling_ratio**2
    return out


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """(C,) of a plane (H, W, C) at a point; the centre of the first cell is at 0."""
    height, width = plane.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros_like(plane[0, 0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (
        plane[top, left] * (1 - down) * (1 - across)
        + plane[top, right] * (1 - down) * across
        + plane[bottom, left] * down * (1 - across)
        + plane[bottom, right] * down * across
    )


def span_token_mask(spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[list[bool]]:
    """A token belongs to a span if they have a character in common."""
    return [[bool({*range(*span)} & {*range(*token)}) for token in offsets] for span in spans]


def pool_spans(tokens: Tensor, span_tokens: Tensor, kind: str) -> Tensor:
    def pooled(states: list[Tensor]) -> Tensor:
        if not states:
            return tokens.new_zeros(tokens.shape[-1] * (2 if kind == "both" else 1))
        mean = sum(states[1:], start=states[0]) / len(states)
        largest = torch.stack([max(values, key=Tensor.item) for values in zip(*states, strict=True)])
        return {"mean": mean, "max": largest, "both": torch.cat([mean, largest])}[kind]

    pairs, spans, length = span_tokens.shape
    return torch.stack(
        [
            pooled([tokens[b, t] for t in range(length) if span_tokens[b, k, t]])
            for b, k in itertools.product(range(pairs), range(spans))
        ]
    ).reshape(pairs, spans, -1)


def info_nce(logits: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, one exponential after the other; differentiable. For logits that `exp` can bear."""
    losses, counted = [], []
    for row, positive_row, candidate_row in zip(logits, positives.tolist(), candidates.tolist(), strict=True):
        positive_mass, total_mass = logits.new_zeros(()), logits.new_zeros(())
        for logit, positive, candidate in zip(row, positive_row, candidate_row, strict=True):
            positive_mass = positive_mass + logit.exp() * positive
            total_mass = total_mass + logit.exp() * (positive or candidate)
        counted.append(any(positive_row))
        losses.append(-(positive_mass / total_mass).log() if counted[-1] else row.sum() * 0)
    return torch.stack(losses), torch.tensor(counted)


RowLoss = Callable[[list[Tensor], list[Tensor], list[float]], Tensor | None]
"""From the similarities of the positives and of the negatives of one row, and the relative weights of the positives;
None where the row does not count."""


def row_losses(
    row_loss: RowLoss, cosines: Tensor, positives: Tensor, candidates: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row by row; differentiable. With weights the second are those of the rows, 0 where a row does not count."""
    losses, counted = [], []
    weights = torch.ones(cosines.shape) if weight is None else weight
    for row, *kinds in zip(cosines, positives.tolist(), candidates.tolist(), weights.tolist(), strict=True):
        entries = list(zip(row, *kinds, strict=True))
        right = [(cosine, strength) for cosine, positive, _, strength in entries if positive and strength > 0]
        wrong = [cosine for cosine, positive, candidate, _ in entries if candidate and not positive]
        best = max((strength for _, strength in right), default=0.0)
        relative = [strength / best for _, strength in right]
        loss = row_loss([cosine for cosine, _ in right], wrong, relative) if right else None
        losses.append(row.sum() * 0 if loss is None else loss)
        counted.append((loss is not None) * best)
    stacked = torch.tensor(counted, dtype=cosines.dtype)
    return torch.stack(losses), stacked if weight is not None else stacked > 0


def total(values: Iterable[Tensor]) -> Tensor:
    return sum(values, start=torch.zeros((), dtype=torch.float64))


def weighted(values: Iterable[Tensor], weights: list[float]) -> list[Tensor]:
    return [weight * value for value, weight in zip(values, weights, strict=True)]


def plain_info_nce(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor) -> Tensor:
    masses = weighted([(scale * cosine).exp() for cosine in right], relative)
    return -(total(masses) / total([*masses, *((scale * cosine).exp() for cosine in wrong)])).log()


def sup_con(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor) -> Tensor:
    """The mean over the positives of the cross-entropy of each."""
    masses = weighted([(scale * cosine).exp() for cosine in right], relative)
    everything = total([*masses, *((scale * cosine).exp() for cosine in wrong)])
    return total(weighted([-((scale * cosine).exp() / everything).log() for cosine in right], relative)) / sum(relative)


def decoupled(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor) -> Tensor | None:
    if not wrong:
        return None
    negatives = total((scale * cosine).exp() for cosine in wrong)
    return total(weighted([-((scale * cosine).exp() / negatives).log() for cosine in right], relative)) / sum(relative)


def sigmoid(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor, bias: Tensor) -> Tensor:
    yes = [1 / (1 + (-(scale * cosine + bias)).exp()) for cosine in right]
    no = [1 / (1 + (scale * cosine + bias).exp()) for cosine in wrong]
    return total([*weighted([-probability.log() for probability in yes], relative), *(-one.log() for one in no)])


def arc_face(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor, margin: float) -> Tensor:
    def moved(cosine: Tensor) -> Tensor:
        angle = cosine.acos()
        return (angle + margin).cos() if angle + margin < math.pi else angle.cos() - margin * math.sin(margin)

    return plain_info_nce([moved(cosine) for cosine in right], wrong, relative, scale)


def hardness_weighted(
    right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor, beta: float
) -> Tensor:
    hardness = [(beta * scale * cosine).exp() for cosine in wrong]
    weights = [len(wrong) * one / total(hardness) for one in hardness]
    positives = total(weighted([(scale * cosine).exp() for cosine in right], relative))
    negatives = total(weight * (scale * cosine).exp() for weight, cosine in zip(weights, wrong, strict=True))
    return -(positives / (positives + negatives)).log()


def row_statistics(logits: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row by row: mass of the positives, mass of the negatives, sum and number of the positives; differentiable."""

    def mass(values: list[Tensor]) -> Tensor:
        if not values:
            return logits.new_tensor(torch.finfo(logits.dtype).min)
        return sum((value.exp() for value in values), start=logits.new_zeros(())).log()

    positive_masses, negative_masses, sums, counts = [], [], [], []
    for row, positive_row, candidate_row in zip(logits, positives.tolist(), candidates.tolist(), strict=True):
        right = [logit for logit, positive in zip(row, positive_row, strict=True) if positive]
        kinds = zip(row, positive_row, candidate_row, strict=True)
        wrong = [logit for logit, positive, candidate in kinds if candidate and not positive]
        positive_masses.append(mass(right))
        negative_masses.append(mass(wrong))
        sums.append(sum(right, start=logits.new_zeros(())))
        counts.append(len(right))
    if not counts:
        return logits.new_zeros(0), logits.new_zeros(0), logits.new_zeros(0), torch.zeros(0, dtype=torch.int64)
    return torch.stack(positive_masses), torch.stack(negative_masses), torch.stack(sums), torch.tensor(counts)


def sentence_image_masks(batch: Batch) -> tuple[list[list[bool]], list[list[bool]]]:
    """Positives and candidates of every sentence (rows) against every image (columns)."""
    group, wording = batch.group.tolist(), batch.wording.tolist()
    pairs = range(len(group))
    positives = [[group[text] == group[image] for image in pairs] for text in pairs]
    candidates = [[group[text] == group[image] or wording[text] != wording[image] for image in pairs] for text in pairs]
    return positives, candidates


def span_region_masks(batch: Batch) -> tuple[list[list[bool]], list[list[bool]]]:
    """Positives and candidates of every span (rows, by pair) against every region (columns, by pair)."""
    pairs, spans, regions = batch.links.shape
    identity, valid, group = batch.span_identity.tolist(), batch.region_valid.tolist(), batch.group.tolist()
    links = batch.links.tolist()

    def regions_of(pair: int, span: int) -> list[int]:
        return [r for r in range(regions) if links[pair][span][r] and valid[pair][r]]

    def names_shown(pair: int, region: int) -> set[int]:
        return {identity[pair][k] for k in range(spans) if region in regions_of(pair, k) and identity[pair][k] != -1}

    def shows_the_same(pair: int, region: int, span: int) -> bool:
        overlaps = box_iou(batch.regions[pair], batch.regions[pair])
        return any(overlaps[region][own] >= 0.5 for own in regions_of(pair, span))

    positives, candidates = [], []
    for p, k in itertools.product(range(pairs), range(spans)):
        positive_row, candidate_row = [], []
        for q, r in itertools.product(range(pairs), range(regions)):
            both_real = identity[p][k] != -1 and valid[q][r]
            shows_it = identity[p][k] in names_shown(q, r)
            is_anchor = len(regions_of(p, k)) > 0
            may_contrast = not shows_the_same(p, r, k) if p == q else group[p] != group[q]
            positive_row.append(both_real and shows_it and is_anchor)
            candidate_row.append(both_real and (positive_row[-1] or (not shows_it and may_contrast)))
        positives.append(positive_row)
        candidates.append(candidate_row)
    return positives, candidates


def sentence_image_weights(batch: Batch) -> list[list[float]]:
    """Weight of every sentence (rows) against every image (columns), if it is a positive."""
    relevance = batch.relevance.tolist()
    return [[min(one, other) for other in relevance] for one in relevance]


def span_region_weights(batch: Batch) -> list[list[float]]:
    """Weight of every span (rows, by pair) against every region (columns, by pair), if it is a positive."""
    pairs, spans, regions = batch.links.shape
    identity, links, relevance = batch.span_identity.tolist(), batch.links.tolist(), batch.link_relevance.tolist()

    def weight(p: int, k: int, q: int, r: int) -> float:
        if p == q and links[p][k][r]:
            return relevance[p][k][r]
        showing = [j for j in range(spans) if links[q][j][r] and identity[q][j] == identity[p][k]]
        return max((relevance[q][j][r] for j in showing), default=0.0)

    columns = list(itertools.product(range(pairs), range(regions)))
    return [[weight(p, k, *column) for column in columns] for p, k in itertools.product(range(pairs), range(spans))]


def sentence_view_masks(
    batch: Batch, keeping: bool, hiding: bool
) -> tuple[list[list[bool]], list[list[bool]], list[list[bool]]]:
    """Positives, candidates of the rows and candidates of the columns, of every sentence (rows) against every image and
    its views (columns, by pair). Which kinds of views are used is said."""
    meaning = batch.view_sentence.tolist()
    image_positives, image_candidates = sentence_image_masks(batch)
    positives, of_rows, of_columns = [], [], []
    for p in range(len(meaning)):
        positive_row, row, column = [], [], []
        for q in range(len(meaning)):
            positive_row.append(image_positives[p][q])
            row.append(image_candidates[p][q])
            column.append(image_candidates[p][q])
            for view in meaning[q]:
                keeps, hides = view == 1 and keeping, view == -1 and hiding
                positive_row.append(p == q and keeps)
                row.append(p == q and (keeps or hides))
                elsewhere = image_candidates[p][q] and not image_positives[p][q]
                column.append(row[-1] or (keeps and elsewhere))
        positives.append(positive_row)
        of_rows.append(row)
        of_columns.append(column)
    return positives, of_rows, of_columns


def hidden_from_span(batch: Batch, pair: int, span: int, view: int) -> bool:
    has_region = bool((batch.links[pair, span] & batch.region_valid[pair]).any())
    usable = int(batch.span_identity[pair, span]) != -1 and has_region
    return usable and int(batch.view_spans[pair, view, span]) == -1


def span_view_masks(batch: Batch) -> tuple[list[list[bool]], list[list[bool]]]:
    """Positives and candidates of every span (rows, by pair) against every region and view (columns, by pair)."""
    pairs, spans, regions = batch.links.shape
    views = batch.view_sentence.shape[1]
    region_positives, region_candidates = span_region_masks(batch)
    positives, candidates = [], []
    for row, (p, k) in enumerate(itertools.product(range(pairs), range(spans))):
        positive_row, candidate_row = [], []
        for q in range(pairs):
            own = slice(q * regions, (q + 1) * regions)
            positive_row += region_positives[row][own] + [False] * views
            candidate_row += region_candidates[row][own]
            candidate_row += [p == q and hidden_from_span(batch, p, k, v) for v in range(views)]
        positives.append(positive_row)
        candidates.append(candidate_row)
    return positives, candidates


def view_comparisons(
    features: Features, batch: Batch
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[tuple[Tensor, Tensor, Tensor]]]:
    """Of the sentences and of the spans: (text, similarity to beat, view) of every view that hides what is named."""
    sentences, spans = [], []
    for p, v in itertools.product(range(len(batch)), range(batch.view_sentence.shape[1])):
        text, view = features.text[p], features.views[p, v]
        if int(batch.view_sentence[p, v]) == -1:
            sentences.append((text, text @ features.image[p], view))
        for k in range(batch.links.shape[1]):
            if hidden_from_span(batch, p, k, v):
                own = (batch.links[p, k] & batch.region_valid[p]).nonzero().flatten()
                best = max((features.spans[p, k] @ features.regions[p, r] for r in own), key=Tensor.item)
                spans.append((features.spans[p, k], best, view))
    return sentences, spans


def ranking_loss(
    comparisons: list[tuple[Tensor, Tensor, Tensor]],
    margin: float,
    gate: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean of what each comparison lacks of the margin, gates of (view, text) over their mean; 0 of none."""
    if not comparisons:
        return total([])
    gates = [gate(view.detach(), text.detach()) if gate else torch.ones(()) for text, _, view in comparisons]
    mean = sum(gates) / len(gates)
    lacking = [(margin - best + text @ view).clamp(min=0) for text, best, view in comparisons]
    return total(gate / mean * one for gate, one in zip(gates, lacking, strict=True)) / len(comparisons)


def selected_negatives(
    order: list[float],
    cosines: list[float],
    positives: list[bool],
    candidates: list[bool],
    most: int | None,
    margin: float | None,
) -> list[bool]:
    """The negatives of one row that are left: none that may be a positive, and of these the first by `order`."""
    left = [j for j in range(len(order)) if candidates[j] and not positives[j]]
    best = max((cosines[j] for j in range(len(order)) if positives[j]), default=0.0)
    if margin is not None and best > 0:
        left = [j for j in left if cosines[j] <= margin * best]
    if most is not None:
        left = sorted(left, key=lambda j: order[j], reverse=True)[:most]
    return [j in left for j in range(len(order))]


def box_coverage(boxes: list[tuple[int, int, int, int]], hidden: Tensor, side: int) -> list[list[float]]:
    """Share of each box under hidden cells (V, g, g), pixel by pixel of a square image; boxes in its pixels."""
    grid = hidden.shape[-1]

    def share(mask: Tensor, box: tuple[int, int, int, int]) -> float:
        pixels = list(itertools.product(range(box[1], box[3]), range(box[0], box[2])))
        covered = sum(bool(mask[y * grid // side, x * grid // side]) for y, x in pixels)
        return covered / len(pixels) if pixels else 0.0

    return [[share(mask, box) for box in boxes] for mask in hidden]


def view_meaning(
    coverage: Tensor, areas: list[float], links: Tensor, min_coverage: float, keep_coverage: float
) -> tuple[list[list[int]], list[int]]:
    """What each view says of each entity and of the sentence, entity by entity."""

    def of_entity(shares: list[float], linked: list[bool]) -> int | None:
        boxes = [r for r, link in enumerate(linked) if link]
        total = sum(areas[r] for r in boxes)
        if total == 0:
            return None
        hidden = sum(areas[r] * shares[r] for r in boxes) / total
        return -1 if hidden >= min_coverage else 1 if hidden <= keep_coverage else 0

    spans, sentence = [], []
    for shares in coverage.tolist():
        row = [of_entity(shares, linked) for linked in links.tolist()]
        shown = [meaning for meaning in row if meaning is not None]
        spans.append([meaning or 0 for meaning in row])
        sentence.append(-1 if -1 in shown else 1 if shown and set(shown) == {1} else 0)
    return spans, sentence


def fill_pixels(pixels: Tensor, hidden: Tensor, filling: Tensor) -> Tensor:
    """(V, 3, S, S): pixel by pixel from an image or what stands in for it, both (3, S, S)."""
    side, grid = pixels.shape[-1], hidden.shape[-1]
    views = torch.stack([pixels] * len(hidden))
    for v, y, x in itertools.product(range(len(hidden)), range(side), range(side)):
        if hidden[v, y * grid // side, x * grid // side]:
            views[v, :, y, x] = filling[:, y, x]
    return views


def wrong_pairs(bank: FeatureBank, kind: str, margin: float | None = None) -> list[dict[int, float]]:
    """For each pair the pairs that are wrong, with the best similarity of any of its queries to any of their keys."""
    pairs, span_pair, region_pair = len(bank), bank.span_pair.tolist(), bank.region_pair.tolist()
    links, identity = bank.links.tolist(), bank.span_identity.tolist()
    named = [{name} for name in identity]
    shown = [{identity[span] for span, linked in links if linked == region} for region in range(len(region_pair))]
    everywhere = range(pairs)
    sides = {
        "sentences": (bank.text, everywhere, [set()] * pairs, [(pair, pair) for pair in everywhere]),
        "images": (bank.image, everywhere, [set()] * pairs, [(pair, pair) for pair in everywhere]),
        "spans": (bank.spans, span_pair, named, [(span, region) for span, region in links]),
        "regions": (bank.regions, region_pair, shown, [(region, span) for span, region in links]),
    }
    counterpart = {"sentences": "images", "images": "sentences", "spans": "regions", "regions": "spans"}
    queries, query_pair, query_names, positives = sides[kind]
    keys, key_pair, key_names, _ = sides[counterpart[kind]]
    wrong: list[dict[int, float]] = [{} for _ in everywhere]
    for query in sorted({query for query, _ in positives}):
        best_positive = max(dot(queries[query], keys[key]) for asked, key in positives if asked == query)
        for key, score in enumerate(dot(queries[query], key) for key in keys):
            own, other = query_pair[query], key_pair[key]
            may_be_right = (
                bank.group[own] == bank.group[other]
                or bank.wording[own] == bank.wording[other]
                or query_names[query] & key_names[key]
                or (margin is not None and score > margin * best_positive)
            )
            if not may_be_right:
                wrong[own][other] = max(score, wrong[own].get(other, -math.inf))
    return wrong


def attention_rollout(attentions: list[list[list[list[float]]]]) -> list[list[float]]:
    """How much of each token comes from each of the input; layers, lowest first, are heads x tokens x tokens."""
    tokens = len(attentions[0][0])
    flow = [[float(row == column) for column in range(tokens)] for row in range(tokens)]
    for heads in attentions:
        mixed = [
            [
                0.5 * sum(head[row][column] for head in heads) / len(heads) + 0.5 * (row == column)
                for column in range(tokens)
            ]
            for row in range(tokens)
        ]
        flow = [
            [sum(mixed[row][middle] * flow[middle][column] for middle in range(tokens)) for column in range(tokens)]
            for row in range(tokens)
        ]
    return flow


def mapped_span(text: str, pieces: list[Piece], span: tuple[int, int]) -> tuple[int, int] | None:
    """The place of a span after an edit, character by character; None where it is lost.

    Each new character carries the interval that it comes from: its own place, or all that its piece replaced.
    """
    low, high = span
    changed = [(start, end) for start, end, replacement in pieces if replacement is not None]
    if any(start < high and low < end and not low <= start <= end <= high for start, end in changed):
        return None
    new: list[tuple[str, int, int]] = []
    for start, end, replacement in pieces:
        if replacement is None:
            new += [(text[place], place, place + 1) for place in range(start, end)]
        else:
            new += [(character, start, end) for character in replacement]
    own = [
        index
        for index, (_, start, end) in enumerate(new)
        if (low <= start < end <= high) or (start == end and low < start < high)
    ]
    origins = [new[index][1:] for index in own]
    if not own or own != list(range(own[0], own[-1] + 1)) or origins != sorted(origins):
        return None
    mapped = own[0], own[-1] + 1
    return mapped if "".join(character for character, _, _ in new[mapped[0] : mapped[1]]).strip() else None


def words(text: str) -> list[tuple[int, int]]:
    """Words, character by character: a letter or digit and what belongs to it."""
    found, start = [], None
    for place, character in enumerate(text):
        is_letter = character.isalnum()
        is_mark = unicodedata.category(character)[0] == "M"
        joins = character in "\u200c\u200d'’‐-" and text[place + 1 : place + 2].isalnum()
        if start is None and is_letter:
            start = place
        elif start is not None and not (is_letter or is_mark or joins):
            found.append((start, place))
            start = None
    return [*found, (start, len(text))] if start is not None else found
