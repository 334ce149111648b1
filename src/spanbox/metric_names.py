"""What the name of a metric says of it: evaluation writes names, the report reads them, and neither knows the other.

Names are flat and dotted. NAME.low, .high, .chance, .baseline and .count stand beside NAME.
"""

ANNOTATIONS = ("low", "high", "chance", "baseline", "count")
"""Last parts of the names that belong beside another metric, not in a row of their own."""

WITHIN = "matching.within_image"
"""Entity-object matching within the image, the metric that is broken down."""

BREAKDOWNS = ("type", "size", "candidates")
"""Parts `matching.within_image.KIND.GROUP` of the queries, each with a metric of its own."""

COUNTED = frozenset({"median_rank", "mean_rank", "mean_candidates", "candidates", "count"})
"""Last parts of the names of metrics that are counts and ranks; `candidates` alone is of older versions."""

SCORES = frozenset({"threshold", "object", "elsewhere"})
"""Last parts of the names of similarities and of differences between them (`occlusion.*`)."""


def is_part(name: str) -> bool:
    """Whether a metric is of a group of queries, and so has its place in a breakdown."""
    return any(name.startswith(f"{WITHIN}.{kind}.") for kind in BREAKDOWNS)


def is_rate(name: str) -> bool:
    """Whether a metric lies in [0, 1] and reads best in percent."""
    if is_part(name):
        return True  # whatever the group is called
    return not name.startswith("embedding.") and name.rpartition(".")[2] not in COUNTED | SCORES
