"""Naming scheme of the metrics, shared by audit, evaluation and report.

Names are flat and dotted. NAME.low, .high, .chance, .baseline and .count annotate the metric NAME.
"""

from math import inf
from typing import Literal

ANNOTATIONS = ("low", "high", "chance", "baseline", "count")
"""Last name parts of the annotations, which are columns and not rows of tables."""

WITHIN = "matching.within_image"
"""Entity-object matching within the image, the metric with breakdowns."""

BREAKDOWNS = ("type", "size", "candidates", "links")
"""Kinds of breakdown: `matching.within_image.KIND.GROUP` is the metric of one group of queries."""

SIZES = {"small": (0.0, 1 / 300), "medium": (1 / 300, 3 / 100), "large": (3 / 100, inf)}
"""Groups of boxes by the share of their image that they take: from, to below.

COCO's bounds, 32^2 and 96^2 pixels, on an image of 640x480, where most of COCO's are of about that size.
"""

COUNTED = frozenset({"median_rank", "mean_rank", "mean_candidates", "count"})
"""Last name parts of counts and ranks."""

SCORES = frozenset({"threshold", "object", "elsewhere"})
"""Last name parts of similarities and of their differences (`occlusion.*`)."""

_SMALLER_IS_BETTER = ("median_rank", "mean_rank", "alignment", "uniformity")
_NO_DIRECTION = ("mean_candidates", "count", "threshold", "trivial", "elsewhere", "modality_gap")


def is_part(name: str) -> bool:
    """Whether a metric belongs to a group of a breakdown."""
    return any(name.startswith(f"{WITHIN}.{kind}.") for kind in BREAKDOWNS)


def is_rate(name: str) -> bool:
    """Whether a metric is in [0, 1] and shown in percent."""
    if is_part(name):
        return True  # for any name of the group
    return not name.startswith("embedding.") and name.rpartition(".")[2] not in COUNTED | SCORES


def better_direction(name: str) -> Literal[-1, 0, 1]:
    """1 for a metric whose larger values are better, -1 for one whose smaller values are, 0 for one without."""
    parts = [] if is_part(name) else name.split(".")
    if any(part in _NO_DIRECTION for part in parts):
        return 0
    return -1 if any(part in _SMALLER_IS_BETTER for part in parts) else 1
