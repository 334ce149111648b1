"""Masked views for the tests of how they are drawn: boxes, settings of one strategy, and what a plan hides."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanbox.data.masking import STRATEGIES, MaskSettings, Proposals, ViewPlan, draw_views, kept_levels

GRID = 14
REGIONS = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.8, 0.9], [0.6, 0.6, 0.7, 0.7], [0.0, 0.0, 0.2, 0.1]])
LINKS = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()  # region 3 shows no entity
NO_REGIONS, NO_LINKS = torch.zeros(0, 4), torch.zeros(1, 0, dtype=torch.bool)
CORNERS = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]])
SHAPES = ["patch", "rectangle", "ellipse"]


def only(strategy: str, **others: Any) -> MaskSettings:
    """Settings with which 40 views are drawn by one strategy."""
    mix = dict.fromkeys(STRATEGIES, 0.0) | {strategy: 1.0}
    return MaskSettings.model_validate({"count": 40, "mix": mix} | others)


def draw(
    settings: MaskSettings,
    regions: Tensor = REGIONS,
    links: Tensor = LINKS,
    proposals: Proposals | None = None,
    *,
    grid: int = GRID,
    seed: int = 0,
) -> ViewPlan:
    generator = np.random.default_rng(seed)
    plan = draw_views(settings, grid, regions, links, proposals or Proposals.none(), generator)
    views = settings.count
    assert (plan.hidden.shape, plan.hidden.dtype) == ((views, grid, grid), torch.bool)
    assert (plan.strategy.shape, plan.strategy.dtype) == ((views,), torch.int64)
    assert (plan.coverage.shape, plan.coverage.dtype) == ((views, len(regions)), torch.float32)
    assert set(kept(plan)) <= set(kept_levels(settings.levels, grid**2))
    return plan


def kept(plan: ViewPlan) -> list[int]:
    counts: list[int] = (~plan.hidden).sum(dim=(1, 2)).tolist()
    return counts


def names(plan: ViewPlan) -> set[str]:
    return {STRATEGIES[index] for index in plan.strategy.tolist()}


def proposals_of(boxes: Tensor, *scores: float) -> Proposals:
    return Proposals(boxes, torch.tensor(scores))
