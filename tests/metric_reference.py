"""Slow loops of the figures: ranks, matches, presence, embeddings and mined pairs, query by query."""

import itertools
import math
import statistics

from torch import Tensor

from geometry_reference import area, has_centre_in, overlaps
from spanbox.evaluation.extract import FeatureBank


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
                or (margin is not None and best_positive > 0 and score > margin * best_positive)
            )
            if not may_be_right:
                wrong[own][other] = max(score, wrong[own].get(other, -math.inf))
    return wrong
