"""Batches with masked views for the tests of their losses, features of these, and objectives that use them."""

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import normalize

from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.views import ViewLossSettings
from spanbox.structures import Batch, Features

CANDIDATE = ViewLossSettings()
MARGIN = ViewLossSettings(form="margin")
DIM = 4


def with_views(batch: Batch, sentence: list[list[int]], spans: list[list[list[int]]] | None = None) -> Batch:
    """The batch with views of these meanings, (B, V) and (B, V, K)."""
    of_sentence = torch.tensor(sentence, dtype=torch.int8)
    of_spans = torch.zeros(*of_sentence.shape, batch.links.shape[1], dtype=torch.int8)
    return replace(
        batch,
        view_sentence=of_sentence,
        view_spans=of_spans if spans is None else torch.tensor(spans, dtype=torch.int8),
    )


def features_of(batch: Batch, seed: int = 0) -> Features:
    """Random unit features, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    pairs, spans, regions = batch.links.shape
    assert batch.view_sentence is not None
    shapes = [(pairs,), (pairs,), (pairs, spans), (pairs, regions), tuple(batch.view_sentence.shape)]
    values = [torch.randn(*shape, DIM, generator=generator, dtype=torch.float64) for shape in shapes]
    return Features(*(normalize(value, dim=-1).requires_grad_() for value in values))


def objective_of(loss: str = "info_nce", **views: Any) -> Objective:
    level = {"loss": loss, "temperature": 0.5}
    settings = LossSettings.model_validate({"coarse": level, "fine": level, "views": views})
    objective = Objective(settings, dim=DIM).double()
    if objective.gate:
        for number, parameter in enumerate(objective.gate.parameters()):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    return objective
