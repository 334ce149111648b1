"""`evaluation/examples.json`: examples of an evaluation, as ids of pairs of the manifest.

`wiring/artefacts.py` writes what the report reads here. Boxes are fractions of the image as shown, x0 y0 x1 y1.
`entity` is an index of a record's entities. Lists beyond the limits and matrices of a wrong shape are refused.
"""

from typing import Annotated

import msgspec

Box = tuple[float, float, float, float]
Few = msgspec.Meta(max_length=1000)
Rank = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Matrix = list[list[float]]
SIDE = 512  # of a matrix


def _check_box(box: Box) -> None:
    if not all(-1 <= edge <= 2 for edge in box):
        raise ValueError(f"{list(box)} is not a box in fractions of the image")


def _check_shape(matrix: list[list[float]] | list[list[bool]], rows: int, columns: int) -> None:
    if len(matrix) != rows or any(len(row) != columns for row in matrix) or max(rows, columns) > SIDE:
        raise ValueError(f"a matrix is not {rows} x {columns}, or larger than {SIDE} x {SIDE}")
    if bool(rows) != bool(columns):
        raise ValueError(f"a matrix of {rows} x {columns} has no cell")


class ScoredPair(msgspec.Struct, frozen=True):
    """A pair with its score for a query."""

    id: str
    score: float
    right: bool = True


class Retrieval(msgspec.Struct, frozen=True):
    """A query, its best candidates, and the rank of the first right one."""

    kind: str  # best, median, worst
    query: str
    rank: Rank
    found: Annotated[list[ScoredPair], Few]  # best first
    right: ScoredPair | None = None


class Candidate(msgspec.Struct, frozen=True):
    """A region of the image with its score for an entity."""

    box: Box
    score: float
    linked: bool  # it shows the entity

    def __post_init__(self) -> None:
        _check_box(self.box)


class Match(msgspec.Struct, frozen=True):
    """An entity among the regions of its image."""

    id: str
    entity: int
    right: bool
    candidates: Annotated[list[Candidate], Few]


class EntityOf(msgspec.Struct, frozen=True):
    id: str
    entity: int


class RegionOf(msgspec.Struct, frozen=True):
    id: str
    box: Box

    def __post_init__(self) -> None:
        _check_box(self.box)


class CoarseSimilarity(msgspec.Struct, frozen=True):
    """Sentences (rows) against images (columns) of the same pairs."""

    ids: list[str]
    matrix: Matrix

    def __post_init__(self) -> None:
        _check_shape(self.matrix, len(self.ids), len(self.ids))


class FineSimilarity(msgspec.Struct, frozen=True):
    """Spans (rows) against regions (columns). Right are linked regions and those of the same identity."""

    spans: list[EntityOf]
    regions: list[RegionOf]
    matrix: Matrix
    linked: list[list[bool]]
    same_identity: list[list[bool]]

    def __post_init__(self) -> None:
        for matrix in (self.matrix, self.linked, self.same_identity):
            _check_shape(matrix, len(self.spans), len(self.regions))


class Similarity(msgspec.Struct, frozen=True, omit_defaults=True):
    coarse: CoarseSimilarity | None = None
    fine: FineSimilarity | None = None


class HeatmapExample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Heatmaps of one entity over its image: key of `heatmaps.npz` by the way each was made."""

    id: str
    entity: int
    maps: dict[str, str]
    gate: float | None = None  # share that the tokens of the entity take from the image, of a gated fusion
    # Words that its box attends to, with fusion: intervals of the text with their share of the attention.
    words: Annotated[list[tuple[int, int, float]], Few] = []


class Examples(msgspec.Struct, frozen=True, omit_defaults=True):
    """The choice of `spanbox evaluate`; parts that do not exist for the data are empty."""

    manifest: str  # absolute
    manifest_from_here: str = ""  # relative to the folder of the file
    retrieval: dict[str, Annotated[list[Retrieval], Few]] = {}  # by direction: i2t, t2i
    matching: Annotated[list[Match], Few] = []
    similarity: Similarity | None = None
    heatmaps: Annotated[list[HeatmapExample], Few] = []

    def __post_init__(self) -> None:
        if not self.retrieval.keys() <= {"i2t", "t2i"}:
            raise ValueError("a direction other than i2t and t2i")
