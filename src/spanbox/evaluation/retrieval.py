"""Retrieval between sentences and images, in both directions, over the whole set.

Pairs of one group show one image, which is a candidate once, with the features of its first pair. All sentences of an
image are right for it. Rules for ties: `ranking`.

Suffixes of names:  N pairs    G images, one per group    D features
"""

from functools import partial

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import Outcome, ranking_outcomes
from spanbox.evaluation.ranking import BLOCK_ELEMENTS, RECALL_DEPTHS, rank_in_blocks, same_id
from spanbox.progress import StartProgress, hidden


def retrieval_outcomes(
    bank: FeatureBank,
    *,
    device: torch.device | str = "cpu",
    block_elements: int = BLOCK_ELEMENTS,
    progress: StartProgress = hidden,
) -> dict[str, Outcome]:
    """Outcomes from images to sentences (`retrieval.i2t`) and from sentences to images (`retrieval.t2i`).

    Keys of each direction: `.r1 .r5 .r10 .median_rank .mean_rank .map`. The baseline of the recalls of `t2i` ranks
    the images by their number of sentences; there is none if all have the same number.
    """
    first_G = first_of_each_group(bank.group)
    images_GD, group_G = bank.image[first_G], bank.group[first_G]
    group_on_device_N, group_on_device_G = bank.group.to(device), group_G.to(device)
    rank = partial(rank_in_blocks, device=device, block_elements=block_elements, progress=progress)
    own_text, own_image = same_id(group_on_device_G, group_on_device_N), same_id(group_on_device_N, group_on_device_G)
    to_text = rank(images_GD, bank.text, own_text, label="image to sentence")
    to_image = rank(bank.text, images_GD, own_image, label="sentence to image")
    return ranking_outcomes("retrieval.i2t", to_text, group_G) | ranking_outcomes(
        "retrieval.t2i", to_image, bank.group, _most_sentences_first(bank.group)
    )


def first_of_each_group(group_N: Tensor) -> Tensor:
    """Index (G,) of the first pair of each group, in the order of the pairs."""
    # A stable sort keeps the order of the pairs within a group.
    order = group_N.argsort(stable=True)
    starts_run = torch.ones(len(order), dtype=torch.bool)
    starts_run[1:] = group_N[order][1:] != group_N[order][:-1]
    return order[starts_run].sort().values


def _most_sentences_first(group_N: Tensor) -> dict[int, Tensor]:
    """Probability (N,) that the image of each sentence is among the first images ordered by number of sentences.

    Images with the same number are in random order.
    """
    _, image_N, sentences_G = torch.unique(group_N, return_inverse=True, return_counts=True)
    if bool((sentences_G == sentences_G[0]).all()):
        return {}
    ascending_G, own_N = sentences_G.sort().values, sentences_G[image_N]
    before_N = len(ascending_G) - torch.searchsorted(ascending_G, own_N, side="right")
    equal_N = torch.searchsorted(ascending_G, own_N, side="right") - torch.searchsorted(ascending_G, own_N)
    return {depth: ((depth - before_N) / equal_N.double()).clamp(0.0, 1.0) for depth in RECALL_DEPTHS}
