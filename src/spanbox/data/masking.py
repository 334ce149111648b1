"""Masked views of an image: settings, and random masks for each strategy.

A view is a boolean mask over a grid of g x g cells, True where the image is hidden. Views are drawn when a sample is
loaded, from the generator of the sample. The vision tower drops the hidden patches or gets filled pixels. The meaning
of a view for the losses is measured on its mask, not taken from its strategy (`data/mask_effects.py`).

Each strategy orders the cells; `background` keeps the first cells visible, the others hide them. A view has exactly the
requested number of visible cells, rounded to one of a few "levels", so that a training step has few tensor shapes.

    V views    R regions    P proposals    K spans    g side of the grid in cells
"""

import math
from typing import Literal, NamedTuple, Self, assert_never, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from spanbox.errors import ConfigError
from spanbox.geometry import box_coverage, cell_shares
from spanbox.settings import Settings

Strategy = Literal["random", "block", "centre", "object", "background"]
Shape = Literal["patch", "rectangle", "ellipse"]
PixelFill = Literal["zero", "mean", "noise", "blur"]

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
MAX_ASPECT = 3.0  # of a block: longer side / shorter side


class MixSettings(Settings):
    """Weight of each strategy in the random choice; the sum need not be 1."""

    random: float = Field(1.0, ge=0, description="weight of views that hide random cells")
    block: float = Field(0.0, ge=0, description="weight of views that hide one block at a random place")
    centre: float = Field(0.0, ge=0, description="weight of views that hide the centre")
    object: float = Field(1.0, ge=0, description="weight of views that hide the boxes of one entity, or a proposal")
    background: float = Field(
        1.0, ge=0, description="weight of views that hide everything but the boxes of the entities"
    )

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not any(self.weights):
            raise ValueError("every weight is 0: raise one, or set count=0 to draw no views")
        return self

    @property
    def weights(self) -> list[float]:
        """In the order of `STRATEGIES`."""
        return [getattr(self, strategy) for strategy in STRATEGIES]


class MaskSettings(Settings):
    """Masked views of each image, drawn again each time the image is read in training."""

    count: int = Field(0, ge=0, description="masked views per image; 0: none")
    mix: MixSettings = Field(MixSettings(), description="weights of the strategies")
    ratio: float | tuple[float, float] = Field(
        0.5, description="hidden share of the cells, or [lowest, highest]; rounded to one of the `levels`"
    )
    tight: bool = Field(
        False,
        description="true: object views hide little besides their object, background views keep little besides the "
        "boxes, and the ratio is ignored; false: both follow the ratio as far as the boxes allow, so that the hidden "
        "share is not a cue",
    )
    proposal_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of object views that hide a proposal, in images with entities and proposals",
    )
    shape: Shape = Field(
        "patch",
        description="shape of the hidden part around its centre or boxes: patch (single cells, more likely when near), "
        "rectangle or ellipse; random views always consist of single cells",
    )
    fill: Literal["drop"] | PixelFill = Field(
        "drop",
        description="content of hidden cells: drop (the tower does not encode these patches, which saves time), or "
        "pixels: zero (black), mean (mean colour of the image), noise (around that mean) or blur",
    )
    patch: int | None = Field(None, gt=0, description="side of a cell in pixels; default: patch size of the tower")
    levels: int = Field(
        8,
        ge=2,
        description="number of different counts of visible cells, evenly spaced up to the whole grid; few levels give "
        "few tensor shapes",
    )
    min_coverage: float = Field(
        0.9, gt=0, le=1, description="an entity is hidden if at least this share of the area of its boxes is"
    )
    keep_coverage: float = Field(
        0.1, ge=0, lt=1, description="an entity is visible if at most this share of the area of its boxes is hidden"
    )

    @field_validator("ratio")
    @classmethod
    def _leaves_something(cls, ratio: float | tuple[float, float]) -> float | tuple[float, float]:
        low, high = ratio if isinstance(ratio, tuple) else (ratio, ratio)
        if not 0 < low <= high < 1:
            raise ValueError(
                "the ratio must be above 0 and below 1, lowest first: a view hides some cells and shows some "
                "(count=0 draws no views)"
            )
        return ratio

    @model_validator(mode="after")
    def _hidden_is_not_kept(self) -> Self:
        if self.keep_coverage >= self.min_coverage:
            raise ValueError(
                f"keep_coverage={self.keep_coverage} is not below min_coverage={self.min_coverage}: an entity would be "
                "hidden and visible in the same view; lower keep_coverage"
            )
        return self

    def draw_ratio(self, generator: np.random.Generator) -> float:
        return generator.uniform(*self.ratio) if isinstance(self.ratio, tuple) else self.ratio


class Proposals(NamedTuple):
    """Detector proposals of an image."""

    boxes: Tensor  # (P, 4) float32, normalised and clipped
    scores: Tensor  # (P,) float; negative scores count as 0

    @classmethod
    def none(cls) -> Self:
        return cls(torch.zeros(0, 4), torch.zeros(0))


class ViewPlan(NamedTuple):
    """The masked views of one image."""

    hidden: Tensor  # (V, g, g) bool
    strategy: Tensor  # (V,) int64, index into STRATEGIES of the strategy used
    coverage: Tensor  # (V, R) float32: share of each region's area that is hidden


def mask_grid(settings: MaskSettings, image_size: int, tower_patch: int | None) -> int:
    """Number of cells along each side of the masks of a square image.

    Args:
        settings: of the views.
        image_size: side of the image in pixels.
        tower_patch: patch size of the vision tower in pixels; None if it has no patches or cannot drop them.

    Raises:
        ConfigError: the tower cannot drop cells of this size, or they do not divide the image.
    """
    if settings.fill == "drop" and tower_patch is None:
        raise ConfigError("fill=drop needs a vision tower with patches: set fill of the masked views to mean")
    patch = settings.patch or tower_patch
    if patch is None:
        raise ConfigError("this vision tower has no patches: set patch of the masked views, in pixels")
    if settings.fill == "drop" and patch != tower_patch:
        raise ConfigError(
            f"fill=drop drops whole patches of the vision tower, {tower_patch} pixels wide, but patch of the masked "
            f"views is {patch}: remove patch, or set fill to mean"
        )
    if image_size % patch:
        raise ConfigError(
            f"patch={patch} of the masked views does not divide the image size of {image_size} pixels: choose a divisor"
        )
    return image_size // patch


def kept_levels(levels: int, cells: int) -> list[int]:
    """The possible numbers of visible cells, ascending: at least one cell, at most all."""
    levels = min(levels, cells)  # more give no further number
    return sorted({math.ceil(level * cells / levels) for level in range(1, levels + 1)})


def draw_views(
    settings: MaskSettings,
    grid: int,
    regions: Tensor,
    links: Tensor,
    proposals: Proposals,
    generator: np.random.Generator,
    *,
    picture: tuple[int, int] | None = None,
) -> ViewPlan:
    """Draw the masked views of one image.

    The number of visible cells is the level nearest to the drawn ratio, among the levels possible for the strategy:

    - random, block, centre: levels that hide at least one cell.
    - object: hides all cells that touch the boxes of one entity (or of a proposal, drawn by score), then cells around
      them. Objects that leave fewer visible cells than the lowest level are not used; if none remains, the view is
      random. `tight`: the highest possible level.
    - background: keeps all cells that touch the box of any entity visible, then cells around them; the whole image if
      the boxes fill it. Without boxes the view is random. `tight`: the lowest possible level.

    At least one cell stays visible, so a grid of a single cell hides nothing.

    Args:
        settings: number and kinds of views.
        grid: cells along each side.
        regions: (R, 4) float32, normalised and clipped.
        links: (K, R) bool, this region shows this span.
        proposals: for object views.
        generator: of the sample; the plan depends only on its state.
        picture: columns and rows of the cells that show the picture, in the upper left corner; the others are padding,
            hidden in every view, and count nowhere. None: all cells.
    """
    drawer = _Drawer(settings, grid, picture or (grid, grid), regions, links, proposals, generator)
    weights = np.array(settings.mix.weights)
    drawn = generator.choice(len(STRATEGIES), size=settings.count, p=weights / weights.sum())
    views = [drawer.view(STRATEGIES[index]) for index in drawn]
    hidden = torch.from_numpy(np.array([mask for mask, _ in views], dtype=np.bool_).reshape(-1, grid, grid))
    used = torch.tensor([STRATEGIES.index(strategy) for _, strategy in views], dtype=torch.int64)
    return ViewPlan(hidden, used, box_coverage(regions, hidden))


class _Order(NamedTuple):
    """The cells of a picture in the order in which a view takes them, and the minimum number it takes."""

    cells: NDArray[np.intp]  # places on the grid
    required: int


class _Drawer:
    """Draws the views of one image."""

    def __init__(
        self,
        settings: MaskSettings,
        grid: int,
        picture: tuple[int, int],
        regions: Tensor,
        links: Tensor,
        proposals: Proposals,
        generator: np.random.Generator,
    ) -> None:
        self.settings = settings
        self.grid = grid
        self.sides = picture[::-1]  # down and across
        self.places = np.arange(grid**2).reshape(grid, grid)[: self.sides[0], : self.sides[1]].ravel()
        self.cells = len(self.places)
        self.levels = kept_levels(settings.levels, self.cells)
        self.generator = generator
        # Cells that each box touches, (R + P, g).
        rows, columns = (shares.numpy() > 0 for shares in cell_shares(torch.cat([regions, proposals.boxes]), grid))
        rows[:, self.sides[0] :] = columns[:, self.sides[1] :] = False  # where an edge was rounded across theirs
        self.rows, self.columns = rows, columns
        areas = self.rows.sum(axis=1) * self.columns.sum(axis=1)  # (R + P,) in cells
        most = self.cells - self.levels[0]

        shown = links.numpy() & (areas[: len(regions)] > 0)  # (K, R)
        self.shown = np.flatnonzero(shown.any(axis=0))
        entities = [np.flatnonzero(boxes) for boxes in shown if boxes.any()]
        self.hideable_entities = [boxes for boxes in entities if self._touched(boxes).sum() <= most]

        hideable = np.flatnonzero((areas[len(regions) :] > 0) & (areas[len(regions) :] <= most))
        self.hideable_proposals = len(regions) + hideable
        self.scores = proposals.scores.double().clamp(min=0).numpy()[hideable]

    def view(self, strategy: Strategy) -> tuple[NDArray[np.bool_], Strategy]:
        """The mask (g * g,) of a view, and the strategy used."""
        boxes = self._object() if strategy == "object" else self.shown
        if strategy in ("object", "background") and not len(boxes):
            strategy = "random"
        order = self._order(strategy, boxes)
        visible = (1 - self.settings.draw_ratio(self.generator)) * self.cells
        mask = np.ones(self.grid**2, dtype=np.bool_)
        mask[self.places] = False
        if strategy == "background":
            wanted = 0 if self.settings.tight else visible
            mask[order.cells[self._level(wanted, order.required, self.cells) :]] = True
        else:
            wanted = self.cells if self.settings.tight and strategy == "object" else visible
            most = max(self.cells - max(order.required, 1), self.levels[0])
            mask[order.cells[: self.cells - self._level(wanted, 0, most)]] = True
        return mask, strategy

    def _level(self, wanted: float, least: int, most: int) -> int:
        """The level between `least` and `most` cells that is nearest to `wanted`; of two the lower one."""
        return min((level for level in self.levels if least <= level <= most), key=lambda level: abs(level - wanted))

    def _object(self) -> NDArray[np.intp]:
        """The boxes of a random entity, or of a proposal drawn by score; empty if there are none."""
        entities, proposals = self.hideable_entities, self.hideable_proposals
        if entities and not (len(proposals) and self.generator.random() < self.settings.proposal_share):
            return entities[self.generator.integers(len(entities))]
        if not len(proposals):
            return proposals
        weights = self.scores if self.scores.any() else np.ones_like(self.scores)
        return self.generator.choice(proposals, size=1, p=weights / weights.sum())

    def _order(self, strategy: Strategy, boxes: NDArray[np.intp]) -> _Order:
        match strategy:
            case "random":
                return _Order(self.places[self.generator.permutation(self.cells)], 0)
            case "block":
                centre = self.generator.uniform(-0.5, np.array(self.sides) - 0.5, size=(1, 2))
                stretch = MAX_ASPECT ** self.generator.uniform(-0.5, 0.5)
                return _Order(self._sorted(self._distance(centre, np.array([[stretch, 1 / stretch]]))), 0)
            case "centre":
                centre = (np.array([self.sides]) - 1) / 2
                return _Order(self._sorted(self._distance(centre, np.ones((1, 2)))), 0)
            case "object" | "background":
                return self._around(boxes)
            case _:
                assert_never(strategy)

    def _around(self, boxes: NDArray[np.intp]) -> _Order:
        """Cells that the boxes touch first, all of them required, then by distance."""
        sides = np.stack([self.rows[boxes], self.columns[boxes]], axis=1)  # (N, 2, g)
        first, last = sides.argmax(axis=2), self.grid - 1 - sides[..., ::-1].argmax(axis=2)
        distance = self._distance((first + last) / 2, (last - first + 1) / 2)
        touched = self._touched(boxes)
        distance[touched] = -1.0
        return _Order(self._sorted(distance), int(touched.sum()))

    def _touched(self, boxes: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Mask (g, g) of the cells that the boxes touch."""
        touched: NDArray[np.bool_] = np.any(self.rows[boxes, :, None] & self.columns[boxes, None, :], axis=0)
        return touched

    def _distance(self, centres: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance (g, g) of each cell from the nearest of N centres, relative to the radii of that centre.

        Centres and radii (N, 2) are in cells, down and across; the centre of the first cell is at 0.
        """
        away = np.abs(np.arange(self.grid) - centres[..., None]) / radii[..., None]  # (N, 2, g)
        metric = np.maximum if self.settings.shape == "rectangle" else np.hypot
        nearest: NDArray[np.float64] = metric(away[:, 0, :, None], away[:, 1, None, :]).min(axis=0)
        return nearest

    def _sorted(self, distance: NDArray[np.float64]) -> NDArray[np.intp]:
        """Cells by distance (g, g), nearest first, ties in random order; for shape=patch only roughly."""
        noise, distance = self.generator.random(self.cells), distance.ravel()[self.places]
        if self.settings.shape == "patch":
            return self.places[np.argsort(distance * np.sqrt(noise))]
        return self.places[np.lexsort((noise, distance))]
