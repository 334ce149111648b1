"""Slow loops over what is positive and what is contrasted: every row against every column of a batch."""

import itertools

from torch import Tensor

from geometry_reference import box_iou
from spanbox.structures import Batch, Features


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
