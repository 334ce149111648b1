"""Results on a GPU agree with those on the CPU; skipped without a GPU."""

from functools import partial

import pytest
import torch

from encoders import collate, make_model, make_sample
from spanbox.engine.device import make_encode
from spanbox.engine.large_batch import accumulate_gradients
from spanbox.losses.objective import LossSettings, Objective
from spanbox.structures import Features, Losses, Targets

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_float32_agrees_with_the_cpu() -> None:
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
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu.detach().cpu(), on_cpu.detach(), rtol=1e-4, atol=1e-4)


def score(objective: Objective, features: Features, targets: Targets) -> Losses:
    losses: Losses = objective(features, targets.to(features.text.device))
    return losses


@pytest.mark.parametrize("number", range(torch.cuda.device_count()))
def test_dropout_is_replayed_on_every_gpu(number: int) -> None:
    """The chunked gradient is that of the chunks in one graph, also on a GPU that is not the current device."""
    device = torch.device("cuda", number)
    batch = collate(*(make_sample(number) for number in range(6)))
    gradients = []
    for chunked in (False, True):
        torch.manual_seed(0)
        model, objective = make_model(dropout=0.3).to(device), Objective(LossSettings()).to(device)
        encode = make_encode(model, device, torch.float32)
        torch.manual_seed(1)
        if chunked:
            accumulate_gradients(encode, partial(score, objective), batch, chunk_size=3)
        else:
            features = Features.cat([encode(chunk) for chunk in batch.split(3)])
            score(objective, features, batch.targets).total.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
