"""`evaluation/examples.json` as it was written: pairs, by their ids in the manifest, that are worth looking at.

Boxes are fractions of the image as shown, x0 y0 x1 y1. `entity` is an index of a record's entities.
"""

import msgspec

Box = tuple[float, float, float, float]


class Scored(msgspec.Struct, frozen=True):
    """A pair with its score for a query."""

    id: str
    score: float
    right: bool = True


class Retrieval(msgspec.Struct, frozen=True):
    """A query, what it found first, and the rank of the first right answer."""

    kind: str  # best, median, worst
    query: str
    rank: int
    found: list[Scored]  # best first
    right: Scored | None = None


class Candidate(msgspec.Struct, frozen=True):
    """A region of the image with its score for an entity."""

    box: Box
    score: float
    linked: bool  # it shows the entity


class Match(msgspec.Struct, frozen=True):
    """An entity among the regions of its image."""

    id: str
    entity: int
    right: bool
    candidates: list[Candidate]


class EntityOf(msgspec.Struct, frozen=True):
    id: str
    entity: int


class RegionOf(msgspec.Struct, frozen=True):
    id: str
    box: Box


class CoarseSimilarity(msgspec.Struct, frozen=True):
    """Sentences (rows) against images (columns) of the same pairs."""

    ids: list[str]
    matrix: list[list[float]]


class FineSimilarity(msgspec.Struct, frozen=True):
    """Spans (rows) against regions (columns)."""

    spans: list[EntityOf]
    regions: list[RegionOf]
    matrix: list[list[float]]
    linked: list[list[bool]]


class Similarity(msgspec.Struct, frozen=True):
    coarse: CoarseSimilarity | None = None
    fine: FineSimilarity | None = None


class HeatmapExample(msgspec.Struct, frozen=True):
    """Heatmaps of one entity over its image: key of `heatmaps.npz` by the way each was made."""

    id: str
    entity: int
    maps: dict[str, str]


class Examples(msgspec.Struct, frozen=True):
    """What `spanbox evaluate` picked; parts that the data does not allow are empty."""

    manifest: str
    retrieval: dict[str, list[Retrieval]] = {}  # by direction: i2t, t2i
    matching: list[Match] = []
    similarity: Similarity | None = None
    heatmaps: list[HeatmapExample] = []
