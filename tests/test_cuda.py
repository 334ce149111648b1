"""Results on a GPU agree with those on the CPU; skipped without a GPU."""

from typing import get_args

import pytest
import torch

from encoders import accumulate, collate, fused, in_one_graph, make_model, make_sample, with_views
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.fusion_settings import FusionSettings

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and `-m cuda`"),
]


FUSIONS = get_args(FusionSettings.model_fields["kind"].annotation)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("kind", FUSIONS)
def test_float32_agrees_with_the_cpu(kind: str, views: bool) -> None:
    """Features, losses and gradients of one batch, to 1e-4."""
    batch = collate(*(make_sample(number) for number in range(6)))
    batch = with_views(batch) if views else batch
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = make_model(fusion=fused(kind)).to(device)
        objective = Objective(LossSettings(), dim=8, fusion=kind).to(device)
        features = model(batch)
        losses = objective(features, batch.targets.to(device), fusion=model.fusion)
        losses.total.backward()
        gradients = [parameter.grad.cpu() for parameter in model.parameters() if parameter.grad is not None]
        results.append([*(tensor.detach().cpu() for _, tensor in features.named_tensors()), losses.total, *gradients])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu.detach().cpu(), on_cpu.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", range(torch.cuda.device_count()))
@pytest.mark.parametrize("kind", FUSIONS)
def test_dropout_is_replayed_on_every_gpu(kind: str, number: int) -> None:
    """The chunked gradient is that of the chunks in one graph, also on a GPU that is not the current device."""
    device = torch.device("cuda", number)
    batch = collate(*(make_sample(number) for number in range(6)))
    gradients = []
    for step in (in_one_graph, accumulate):
        torch.manual_seed(0)
        model = make_model(dropout=0.3, fusion=fused(kind, dropout=0.3)).to(device)
        objective = Objective(LossSettings(), dim=8, fusion=kind).to(device)
        torch.manual_seed(1)
        step(model, objective, batch, text=3, image=3)
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
