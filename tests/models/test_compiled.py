"""Compiled towers: features and gradients of eager mode, masked views included, and graphs that exist.

The graphs of dynamo alone, whose assumptions about shapes are the point; test_dual_encoder.py compiles to C++ once.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import tiny
from encoders import collate, make_model, make_sample, with_views
from spanbox.models.tower_settings import VisionTowerSettings
from spanbox.models.towers import build_vision_tower
from spanbox.structures import Batch

# With a class token, without one, and with registers too; each takes seconds to trace.
SEVERAL = [tiny.vit(), tiny.siglip_vision(), tiny.dinov2_with_registers(), tiny.dinov3_vit(), tiny.convnext()]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("architecture", SEVERAL, ids=lambda a: a["model_type"])
def test_views_of_a_compiled_tower(architecture: tiny.Architecture) -> None:
    """Images and views in turn, as a training step calls the tower."""
    torch.manual_seed(0)
    tower = build_vision_tower(VisionTowerSettings(architecture=architecture)).eval()
    compiled = copy.deepcopy(tower)
    compiled.compile(backend="eager")
    pixels = torch.randn(3, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    three, two = torch.tensor([[0, 3, 5], [1, 2, 9], [4, 5, 6]]), torch.tensor([[0, 1], [14, 15], [3, 7]])
    for kept in (None, three, None, three, two, three, None):
        expected = tower(pixels, kept)
        found = compiled(pixels, kept)
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.grid, expected.grid, rtol=1e-4, atol=1e-5)
    assert graphs() >= 2  # of images and of views


def test_views_of_a_compiled_model() -> None:
    """One view of each pair first, then two: the first graph must not take the one for a constant."""
    model = make_model()
    compiled = copy.deepcopy(model)
    compiled.compile_towers("eager")
    assert compiled.state_dict().keys() == model.state_dict().keys()
    for step, views in enumerate((1, 2, 1)):
        batch = first_views(with_views(collate(*(make_sample(4 * step + n) for n in range(4))), seed=step), views)
        features = []
        for each in (model, compiled):
            each.zero_grad()
            features.append(each(batch))
            torch.cat([feature.flatten() for feature in features[-1].tensors()]).square().sum().backward()
        torch.testing.assert_close(*(dict(each.named_tensors()) for each in features), rtol=1e-4, atol=1e-5)
        unmasked = (features[1].views - features[1].image[:, None]).norm(dim=-1) < 1e-4
        assert not unmasked.any(), "a view must not be the whole image"
        for (name, expected), actual in zip(model.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert graphs() > 0


def first_views(batch: Batch, count: int) -> Batch:
    assert batch.view_hidden is not None
    assert batch.view_sentence is not None
    assert batch.view_spans is not None
    return replace(
        batch,
        view_hidden=batch.view_hidden[:, :count],
        view_sentence=batch.view_sentence[:, :count],
        view_spans=batch.view_spans[:, :count],
    )
