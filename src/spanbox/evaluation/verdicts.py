"""Verdicts on pairs and links from the scores of models that were not trained on them.

The scores of each fold become p-values against its own wrong items (`agreement`); the p-values of all folds together
give the probabilities (`mixture`). A pair, a box or a proposal is taken for right where that is more probable than not.

    N pairs    L links: a span with one box, or with none    R other regions of its image, padded
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spanbox.data.cleaning import LIKELY, JudgedLink, JudgedPair
from spanbox.data.manifest import Box
from spanbox.evaluation.agreement import Floats, link_evidence, pair_evidence
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.mixture import Mixture, choose, fit_mixture, p_values
from spanbox.geometry import SAME_OBJECT_IOU, box_iou
from spanbox.structures import NAMED_ONLY, SHOWN

Integers = NDArray[np.int64]


class FoldScores(NamedTuple):
    """P-values of a fold: small where given items score higher than wrong ones."""

    pair_place: Integers  # (N,)
    pair_fine: NDArray[np.bool_]  # (N,): whether the fine level was scored too
    pair_p: Floats  # (N,)
    link_place: Integers  # (L,)
    link_entity: Integers  # (L,)
    link_p: Floats  # (L,), NaN without a box
    link_box: Floats  # (L, 4), normalised; NaN without a box
    other_p: Floats  # (L, R), NaN on padding
    other_box: Floats  # (L, R, 4)


class Verdicts(NamedTuple):
    """All verdicts, and the shares of wrong items that they rest on."""

    pairs: list[JudgedPair]
    links: list[JudgedLink]
    wrong_pairs: float
    wrong_links: float


def score_fold(bank: FeatureBank, seed: int) -> FoldScores:
    """P-values of the pairs and links of a bank, whose model was not trained on them."""
    place, fine, p = [], [], []
    for kind, (index, evidence) in pair_evidence(bank, seed).items():
        place.append(bank.place.numpy()[index])
        fine.append(np.full(len(index), kind))
        p.append(p_values(evidence.given, evidence.wrong))
    pair_place, pair_fine, pair_p = np.concatenate(place), np.concatenate(fine), np.concatenate(p)
    if not (len(bank.spans) and len(bank.regions)):
        return FoldScores(pair_place, pair_fine, pair_p, *_no_links())
    links = link_evidence(bank, seed)
    own = links.own
    p_SR = p_values(links.scores_SR.ravel(), links.wrong).reshape(links.scores_SR.shape)
    boxes_SR4, linked_SR = own.boxes_SR4.double().numpy(), own.linked_SR.numpy()
    free_SR = own.candidates_SR.numpy() & ~linked_SR
    shown, places = bank.span_shown.numpy(), bank.place[bank.span_pair].numpy()
    rows, columns = np.nonzero(linked_SR & (shown == SHOWN)[:, None])
    bare = np.flatnonzero(shown == NAMED_ONLY)
    span = np.r_[rows, bare]
    link_p = np.r_[p_SR[rows, columns], np.full(len(bare), np.nan)]
    link_box = np.concatenate([boxes_SR4[rows, columns], np.full((len(bare), 4), np.nan)])
    free = free_SR[span]
    free[: len(rows)] &= ~_same_object(boxes_SR4[rows], link_box[: len(rows)])
    return FoldScores(
        pair_place,
        pair_fine,
        pair_p,
        places[span],
        bank.span_entity.numpy()[span],
        link_p,
        link_box,
        np.where(free, p_SR[span], np.nan),
        boxes_SR4[span],
    )


def judge(folds: Sequence[FoldScores]) -> Verdicts:
    """The verdicts on all pairs and links of some folds.

    Links of pairs that do not belong together are left out: their boxes are of another image.
    """
    place, fine, p = (
        np.concatenate([getattr(fold, f"pair_{name}") for fold in folds]) for name in ("place", "fine", "p")
    )
    right, wrong = np.empty(len(p)), 0.0
    for kind in (False, True):
        chosen = fine == kind
        mixture = fit_mixture(p[chosen])
        right[chosen] = mixture.right(p[chosen])
        wrong += mixture.wrong * float(chosen.mean()) if len(p) else 0.0
    pairs = [JudgedPair(int(i), float(value)) for i, value in zip(place, right, strict=True)]
    believed = set(place[right >= LIKELY].tolist())
    links, mixture = _judge_links([_of_pairs(fold, believed) for fold in folds])
    return Verdicts(
        sorted(pairs, key=lambda verdict: verdict.place),
        sorted(links, key=lambda verdict: (verdict.place, verdict.entity)),
        wrong,
        mixture.wrong,
    )


def _judge_links(folds: Sequence[FoldScores]) -> tuple[list[JudgedLink], Mixture]:
    link_p = np.concatenate([fold.link_p for fold in folds])
    mixture = fit_mixture(link_p[np.isfinite(link_p)])
    width = max((fold.other_p.shape[1] for fold in folds), default=0)
    other_p = np.concatenate([_widened(fold.other_p, width) for fold in folds])
    other_box = np.concatenate([_widened(fold.other_box, width) for fold in folds])
    candidates = np.isfinite(other_p)
    ratio = mixture.likelihood_ratio(np.nan_to_num(other_p, nan=1.0))
    verdicts = []
    for has_box in (True, False):
        rows = np.flatnonzero(np.isfinite(link_p) == has_box)
        present = mixture.likelihood_ratio(link_p[rows]) if has_box else None
        choice = choose(present, ratio[rows], candidates[rows])
        best = choice.others.argmax(axis=1) if width else np.zeros(len(rows), dtype=np.int64)
        for position, row in enumerate(rows.tolist()):
            fold, own = _fold_of(folds, row)
            other = bool(candidates[row].any())
            verdicts.append(
                JudgedLink(
                    int(fold.link_place[own]),
                    int(fold.link_entity[own]),
                    _box(fold.link_box[own]) if has_box else None,
                    float(choice.present[position]) if has_box else 0.0,
                    _box(other_box[row, best[position]]) if other else None,
                    float(choice.others[position, best[position]]) if other else 0.0,
                )
            )
    return verdicts, mixture


def _of_pairs(fold: FoldScores, places: set[int]) -> FoldScores:
    kept = np.array([place in places for place in fold.link_place.tolist()], dtype=bool)
    return fold._replace(
        **{name: getattr(fold, name)[kept] for name in fold._fields if name.startswith(("link", "other"))}
    )


def _fold_of(folds: Sequence[FoldScores], row: int) -> tuple[FoldScores, int]:
    for fold in folds:
        if row < len(fold.link_p):
            return fold, row
        row -= len(fold.link_p)
    raise IndexError(row)


def _no_links() -> tuple[Integers, Integers, Floats, Floats, Floats, Floats]:
    none = np.empty(0, dtype=np.int64)
    return none, none, np.empty(0), np.empty((0, 4)), np.empty((0, 0)), np.empty((0, 0, 4))


def _widened(values: Floats, width: int) -> Floats:
    """(L, R, ...) padded with NaN to `width` regions."""
    padding = [(0, 0), (0, width - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, padding, constant_values=np.nan)


def _same_object(boxes_LR4: Floats, box_L4: Floats) -> NDArray[np.bool_]:
    """(L, R): whether a region overlaps a box so much that both show the same object."""
    overlap = torch.vmap(box_iou)(torch.from_numpy(boxes_LR4).float(), torch.from_numpy(box_L4[:, None]).float())
    same: NDArray[np.bool_] = (overlap[:, :, 0] >= SAME_OBJECT_IOU).numpy()
    return same


def _box(values: Floats) -> Box:
    x0, y0, x1, y1 = values.tolist()
    return x0, y0, x1, y1
