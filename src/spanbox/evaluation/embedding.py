"""Geometry of the features on the unit sphere: alignment, uniformity, modality gap.

Alignment and uniformity: Wang & Isola, Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere, 2020, with the exponents of their code, alpha = 2 and t = 2. Modality gap: Liang et al.,
Mind the Gap, 2022. Smaller is better for the first two; the third is descriptive. Each for both levels: sentences and
images, spans and regions. A level with features that are not finite is left out.

    N features    I images    D width of a feature
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import Figure, Outcome
from spanbox.evaluation.retrieval import first_of_each_group
from spanbox.intervals import FloatArray, IntArray, bootstrap_statistic, percentile_interval, resamples

SAMPLE = 2048
"""Maximum number of features of a kind for uniformity; a random sample if there are more."""
EXPONENT = 2.0
"""t in the kernel exp(-t d^2)."""


class Kind(NamedTuple):
    """Features of one kind: of sentences, images, spans or regions."""

    features: Tensor  # (N, D)
    image: Tensor  # (N,) int64


def alignment_outcomes(bank: FeatureBank) -> dict[str, Outcome]:
    """Squared distance of positives: `embedding.coarse.alignment` of a sentence and its image,
    `embedding.fine.alignment` of a span and a linked region. Chance: of two random features of the set."""
    outcomes = {}
    if _finite(bank.text, bank.image):
        outcomes["embedding.coarse.alignment"] = _alignment(bank.text, bank.image, bank.group)
    span, region = bank.links.unbind(dim=1)
    if len(bank.links) and _finite(bank.spans, bank.regions):
        image = bank.group[bank.span_pair[span]]
        outcomes["embedding.fine.alignment"] = _alignment(bank.spans[span], bank.regions[region], image)
    return outcomes


def embedding_figures(bank: FeatureBank, *, intervals: bool = True) -> dict[str, Figure]:
    """Under `embedding.coarse` and, where spans are linked to regions, `embedding.fine`:

    `.uniformity.sentences` `.uniformity.images` (`.spans`, `.regions`): log of the mean of exp(-2 d^2) over the pairs
    of features of different images; 0 if all features are equal, about -4 if they are spread over the sphere. Absent
    for a single image.
    `.modality_gap`: distance between the mean of the sentences and that of the images (of spans and regions).
    """
    first = first_of_each_group(bank.group)
    levels = {
        "coarse": {"sentences": Kind(bank.text, bank.group), "images": Kind(bank.image[first], bank.group[first])}
    }
    if len(bank.links):
        levels["fine"] = {
            "spans": Kind(bank.spans, bank.group[bank.span_pair]),
            "regions": Kind(bank.regions, bank.group[bank.region_pair]),
        }
    figures = {}
    for level, kinds in levels.items():
        if not _finite(*(kind.features for kind in kinds.values())):
            continue
        for name, kind in kinds.items():
            sampled = _sample(kind)
            if bool((sampled.image != sampled.image[0]).any()):
                figures[f"embedding.{level}.uniformity.{name}"] = uniformity(sampled, intervals=intervals)
        figures[f"embedding.{level}.modality_gap"] = modality_gap(*kinds.values(), intervals=intervals)
    return figures


def uniformity(kind: Kind, *, intervals: bool = True) -> Figure:
    """Uniformity of features of at least two images, over pairs of different images.

    In the bootstrap, an image that is drawn twice forms no pairs with itself.
    """
    images, image_N = np.unique(kind.image.numpy(), return_inverse=True)
    features = kind.features.double()
    of_image = np.zeros((len(images), len(features)))
    of_image[image_N, np.arange(len(features))] = 1.0
    kernel = (-EXPONENT * torch.cdist(features, features).square()).exp().numpy()
    kernel_II, pairs_II = of_image @ kernel @ of_image.T, np.outer(of_image.sum(axis=1), of_image.sum(axis=1))
    for matrix in (kernel_II, pairs_II):
        np.fill_diagonal(matrix, 0.0)

    def measure(counts: FloatArray) -> FloatArray:
        """Uniformity (rounds,) with the weights (rounds, I) of the images; NaN for draws of a single image."""
        with np.errstate(invalid="ignore"):
            mean = ((counts @ kernel_II) * counts).sum(axis=1) / ((counts @ pairs_II) * counts).sum(axis=1)
            return np.asarray(np.log(mean))

    interval = None
    if intervals:
        drawn = [measure(counts.astype(np.float64)) for counts in resamples(len(images))]
        interval = percentile_interval(np.concatenate(drawn))
    return Figure(float(measure(np.ones((1, len(images))))[0]), len(features), interval)


def modality_gap(first: Kind, second: Kind, *, intervals: bool = True) -> Figure:
    """Distance between the means of two kinds of features.

    The interval is that of the distance along the line through both means, because the norm of the difference of
    resampled means is biased upwards.
    """
    between = first.features.double().mean(dim=0) - second.features.double().mean(dim=0)
    gap = between.norm()
    place = (torch.cat([first.features, second.features]).double() @ (between / gap.clamp(min=1e-12))).numpy()
    is_first = np.arange(len(place)) < len(first.features)

    def along_the_line(counts: IntArray) -> float:
        with np.errstate(invalid="ignore"):  # a draw without features of one kind
            ends = [np.float64(counts[kind] @ place[kind]) / counts[kind].sum() for kind in (is_first, ~is_first)]
        return float(ends[0] - ends[1])

    image = torch.cat([first.image, second.image]).numpy()
    return Figure(float(gap), len(place), bootstrap_statistic(along_the_line, image) if intervals else None)


def _alignment(first: Tensor, second: Tensor, image: Tensor) -> Outcome:
    first, second = first.double(), second.double()
    together = (first - second).square().sum(dim=1)
    by_chance = first.square().sum(dim=1).mean() + second.square().sum(dim=1).mean()
    by_chance -= 2 * first.mean(dim=0) @ second.mean(dim=0)
    return Outcome.of(together, image, by_chance.expand(len(together)))


def _sample(kind: Kind) -> Kind:
    chosen = torch.randperm(len(kind.image), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values
    return Kind(kind.features[chosen], kind.image[chosen])


def _finite(*features: Tensor) -> bool:
    return all(bool(kind.isfinite().all()) for kind in features)
