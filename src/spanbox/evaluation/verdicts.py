"""Verdicts on pairs and links from the scores of models that were not trained on them.

The scores of each fold become p-values against its own wrong items (`agreement`); the p-values of all folds together
give the probabilities (`mixture`). A pair, a box or a proposal counts as right if that is more probable than not. Links
are compared within their images, with the other regions of those whose given box scores highest.

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
from spanbox.evaluation.mixture import Choice, choose, fit_mixture, p_values
from spanbox.geometry import SAME_OBJECT_IOU, box_iou
from spanbox.structures import NAMED_ONLY, SHOWN

Integers = NDArray[np.int64]
FEWEST_WRONG = 100  # other regions of the own images that suffice as wrong links; else those of other images
OTHERS = ("other_score", "other_p", "other_box")
"""Fields of the other regions, padded to the largest number of them."""


class PairScores(NamedTuple):
    """P-values of pairs, small where given ones score higher than wrong ones."""

    place: Integers  # (N,)
    fine: NDArray[np.bool_]  # (N,): whether the fine level was scored too
    p: Floats  # (N,)

    @classmethod
    def cat(cls, parts: Sequence["PairScores"]) -> "PairScores":
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


class LinkScores(NamedTuple):
    """Scores and p-values of links, and of the other regions of the image in their place."""

    place: Integers  # (L,)
    entity: Integers  # (L,)
    score: Floats  # (L,), within the pair; NaN without a box
    p: Floats  # (L,), against regions of other images
    box: Floats  # (L, 4), normalised; NaN without a box
    other_score: Floats  # (L, R), within the pair; NaN on padding
    other_p: Floats  # (L, R)
    other_box: Floats  # (L, R, 4)

    @classmethod
    def none(cls) -> "LinkScores":
        places, values = np.empty(0, dtype=np.int64), np.empty(0)
        matrix = np.empty((0, 0))
        return cls(places, places, values, values, np.empty((0, 4)), matrix, matrix, np.empty((0, 0, 4)))

    @classmethod
    def cat(cls, parts: Sequence["LinkScores"]) -> "LinkScores":
        width = max((part.other_score.shape[1] for part in parts), default=0)
        columns = zip(cls._fields, zip(*parts, strict=True), strict=True)
        return cls(
            *(
                np.concatenate([_widened(values, width) if name in OTHERS else values for values in column])
                for name, column in columns
            )
        )

    def of_pairs(self, places: set[int]) -> "LinkScores":
        kept = np.array([place in places for place in self.place.tolist()], dtype=bool)
        return LinkScores(*(values[kept] for values in self))

    @property
    def has_box(self) -> NDArray[np.bool_]:
        return np.isfinite(self.score)

    def wrong_scores(self) -> Floats:
        """Scores (m,) of the other regions, of links whose own box scores above them: hardly one of these is right."""
        best = np.fmax.reduce(self.other_score, axis=1, initial=-np.inf)  # without NaN
        beside = self.other_score[self.score > best]
        found: Floats = beside[np.isfinite(beside)]
        return found

    def probabilities(self, p: Floats, other_p: Floats) -> Choice:
        """Probabilities that the present box, each other region, or none of them is right."""
        has_box, candidates = self.has_box, np.isfinite(self.other_score)
        mixture = fit_mixture(p[has_box])
        ratio = mixture.likelihood_ratio(np.where(candidates, other_p, 1.0))
        result = Choice(np.zeros(len(p)), np.zeros(other_p.shape), np.zeros(len(p)))
        for rows, present in ((has_box, mixture.likelihood_ratio(p[has_box])), (~has_box, None)):
            found = choose(present, ratio[rows], candidates[rows])
            for whole, part in zip(result, found, strict=True):
                whole[rows] = part
        return result

    def verdicts(self, choice: Choice) -> list[JudgedLink]:
        has_box = self.has_box
        best = choice.others.argmax(axis=1) if choice.others.size else np.zeros(len(self.place), dtype=np.int64)
        found = []
        for row in range(len(self.place)):
            column = int(best[row])
            other = bool(np.isfinite(self.other_score[row]).any())
            found.append(
                JudgedLink(
                    int(self.place[row]),
                    int(self.entity[row]),
                    _box(self.box[row]) if has_box[row] else None,
                    float(choice.present[row]) if has_box[row] else 0.0,
                    _box(self.other_box[row, column]) if other else None,
                    float(choice.others[row, column]) if other else 0.0,
                )
            )
        return found


class FoldScores(NamedTuple):
    """Scores of the pairs and links of a fold."""

    pairs: PairScores
    links: LinkScores

    def at(self, places: Integers) -> "FoldScores":
        """The same scores, with the places of the pairs in another manifest."""
        return FoldScores(
            self.pairs._replace(place=places[self.pairs.place]), self.links._replace(place=places[self.links.place])
        )


class Verdicts(NamedTuple):
    """All verdicts, and the shares of wrong items that they rest on; None where nothing was judged."""

    pairs: list[JudgedPair]
    links: list[JudgedLink]
    wrong_pairs: float | None
    wrong_links: float | None


def score_fold(bank: FeatureBank, seed: int, *, fine: bool = True) -> FoldScores:
    """P-values of the pairs and links of a bank, whose model was not trained on them.

    Those without wrong ones to compare them with have none: pairs that are all of one group, links that are all of one
    identity.

    Args:
        bank: features of the pairs.
        seed: of the wrong ones.
        fine: whether the features of spans and regions were trained; else there are no links, and pairs have scores of
            the coarse level alone.
    """
    pairs = [PairScores(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_), np.empty(0))]
    for kind, (index, evidence) in pair_evidence(bank, seed, fine=fine).items():
        p = p_values(evidence.given, evidence.wrong)
        pairs.append(PairScores(bank.place.numpy()[index], np.full(len(index), kind), p))
    has_links = fine and len(bank.spans) and len(bank.regions)
    return FoldScores(PairScores.cat(pairs), _score_links(bank, seed) if has_links else LinkScores.none())


def _score_links(bank: FeatureBank, seed: int) -> LinkScores:
    links = link_evidence(bank, seed)
    if not len(links.wrong):
        return LinkScores.none()
    own = links.own
    boxes_SR4, linked_SR = own.boxes_SR4.double().numpy(), own.linked_SR.numpy()
    free_SR = own.candidates_SR.numpy() & ~linked_SR
    shown, places = bank.span_shown.numpy(), bank.place[bank.span_pair].numpy()
    rows, columns = np.nonzero(linked_SR & (shown == SHOWN)[:, None])
    bare = np.flatnonzero(shown == NAMED_ONLY)
    span = np.r_[rows, bare]
    p_SR = p_values(links.scores_SR, links.wrong)
    link_score, link_p = (
        np.r_[values_SR[rows, columns], np.full(len(bare), np.nan)] for values_SR in (links.within_SR, p_SR)
    )
    link_box = np.concatenate([boxes_SR4[rows, columns], np.full((len(bare), 4), np.nan)])
    free = free_SR[span]
    free[: len(rows)] &= ~_same_object(boxes_SR4[rows], link_box[: len(rows)])
    return LinkScores(
        places[span],
        bank.span_entity.numpy()[span],
        link_score,
        link_p,
        link_box,
        np.where(free, links.within_SR[span], np.nan),
        p_SR[span],
        boxes_SR4[span],
    )


def judge(folds: Sequence[FoldScores]) -> Verdicts:
    """The verdicts on all pairs and links of some folds.

    Links of pairs that do not belong together are left out: their boxes are of another image.
    """
    place, fine, p = PairScores.cat([fold.pairs for fold in folds])
    right, wrong = np.empty(len(p)), 0.0
    for kind in (False, True):
        chosen = fine == kind
        mixture = fit_mixture(p[chosen])
        right[chosen] = mixture.right(p[chosen])
        wrong += mixture.wrong * float(chosen.sum()) / max(len(p), 1)
    pairs = [JudgedPair(int(i), float(value)) for i, value in zip(place, right, strict=True)]
    believed = set(place[right >= LIKELY].tolist())
    links, wrong_links = _judge_links(LinkScores.cat([fold.links for fold in folds]).of_pairs(believed))
    return Verdicts(
        sorted(pairs, key=lambda verdict: verdict.place),
        sorted(links, key=lambda verdict: (verdict.place, verdict.entity)),
        wrong if len(p) else None,
        wrong_links,
    )


def _judge_links(links: LinkScores) -> tuple[list[JudgedLink], float | None]:
    """Verdicts on all links, and the estimated share of wrong boxes; None without a box."""
    wrong = links.wrong_scores()
    p, other_p = links.p, links.other_p
    if len(wrong) >= FEWEST_WRONG:
        p, other_p = (p_values(score, wrong) for score in (links.score, links.other_score))
    choice = links.probabilities(p, other_p)
    return links.verdicts(choice), 1 - float(choice.present[links.has_box].mean()) if links.has_box.any() else None


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
