"""What runs on a card agrees with what runs on the processor; skipped where there is no card."""

import pytest
import torch

from encoders import collate, make_model, make_sample
from spanbox.losses.objective import LossSettings, Objective

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_float32_agrees_with_the_processor() -> None:
    """Features, losses and gradients of one batch, to 1e-4."""
    batch = collate(*(make_sample(number) for number in range(6)))
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model, objective = make_model().to(device), Objective(LossSettings()).to(device)
        features = model(batch.to(device))
        losses = objective(features, batch.to(device))
        losses.total.backward()
        gradients = [parameter.grad.cpu() for parameter in model.parameters() if parameter.grad is not None]
        results.append([*(tensor.detach().cpu() for _, tensor in features.named_tensors()), losses.total, *gradients])
    for on_processor, on_card in zip(*results, strict=True):
        torch.testing.assert_close(on_card.detach().cpu(), on_processor.detach(), rtol=1e-4, atol=1e-4)
