"""The chunked step gives the gradient of the whole batch: every parameter, temperatures included, dropout on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import collate, make_model, make_sample, with_views
from spanbox.engine.large_batch import RandomState, accumulate_gradients, accumulate_naively, even_chunk
from spanbox.losses.formulas import LOSSES
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder, RegionSettings, SpanSettings
from spanbox.structures import Batch, Features, Losses

PAIRS = 24
SOURCES = {
    "in context": {"spans": SpanSettings(source="sentence"), "regions": RegionSettings(source="roi_align")},
    "by themselves": {"spans": SpanSettings(source="own"), "regions": RegionSettings(source="crop")},
}


def mixed_batch(pairs: int = PAIRS) -> Batch:
    """Samples with and without spans and boxes, of different lengths; some share an image, some a name."""
    samples = [make_sample(number, spans=number % 4, regions=(number + 1) % 4) for number in range(pairs)]
    samples = [replace(sample, group=number // 2 if number < 8 else number) for number, sample in enumerate(samples)]
    return collate(*samples)


def doubles(dropout: float = 0.0, loss: dict[str, Any] | None = None, **model: Any) -> tuple[DualEncoder, Objective]:
    torch.manual_seed(0)
    objective = Objective(LossSettings.model_validate(loss or {}), dim=8)
    return make_model(dropout=dropout, **model).double(), objective.double()


def gradients_of(*modules: torch.nn.Module) -> dict[str, Tensor]:
    named = {f"{i}.{name}": p for i, module in enumerate(modules) for name, p in module.named_parameters()}
    assert all(parameter.grad is not None for parameter in named.values())
    return {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}


def in_one_graph(model: DualEncoder, objective: Objective, batch: Batch, size: int) -> Losses:
    """The slow, obvious way: the graphs of all chunks held at once. In chunks, so that dropout draws the same."""
    features = Features.cat([model(chunk) for chunk in batch.split(size)])
    losses: Losses = objective(features, batch)
    losses.total.backward()
    return losses


def compare(chunk: int, pairs: int = PAIRS, *, dropout: float = 0.0, batch: Batch | None = None, **model: Any) -> None:
    """Losses and the gradient of every parameter to 1e-10 of the largest; the random state afterwards too."""
    batch = mixed_batch(pairs) if batch is None else batch
    results = []
    for chunked in (False, True):
        encoder, objective = doubles(dropout, **model)
        torch.manual_seed(1)
        if chunked:
            losses = accumulate_gradients(encoder, objective, batch, chunk_size=chunk)
        else:
            losses = in_one_graph(encoder, objective, batch, even_chunk(len(batch), chunk))
        results.append((losses, gradients_of(encoder, objective), torch.rand(1)))
    (whole, expected, random), (in_chunks, found, random_after) = results
    torch.testing.assert_close(in_chunks.total, whole.total.detach(), rtol=1e-12, atol=0)
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max()
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=max(1e-10 * scale.item(), 1e-15), msg=name)
    assert torch.equal(random, random_after)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 5, 7, 24, 100])
def test_chunked_equals_whole(chunk: int, dropout: float) -> None:
    compare(chunk, dropout=dropout)


@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
def test_chunked_equals_whole_with_dropout_and_an_uneven_last_chunk(sources: dict[str, Any]) -> None:
    compare(6, pairs=23, dropout=0.3, **sources)


def test_without_dropout_the_size_of_the_chunks_does_not_matter() -> None:
    """Against the batch encoded in one piece, as nobody's chunks."""
    batch = mixed_batch()
    encoder, objective = doubles()
    losses = objective(encoder(batch), batch)
    losses.total.backward()
    expected = gradients_of(encoder, objective)
    for chunk in (1, 5, 7):
        encoder, objective = doubles()
        accumulate_gradients(encoder, objective, batch, chunk_size=chunk)
        for name, gradient in gradients_of(encoder, objective).items():
            scale = max(1.0, expected[name].abs().max().item())
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_with_learned_weights_and_temperatures(name: str) -> None:
    weight = "fixed" if name == "decoupled" else "uncertainty"  # decoupled may be negative, and is refused
    levels = {level: {"loss": name, "weight_schedule": weight} for level in ("coarse", "fine")}
    compare(5, dropout=0.3, loss=levels)


HARDEST = {"per_anchor": 4, "choice": "hardest"}
USES_OF_VIEWS: dict[str, dict[str, Any]] = {
    "candidates": {"views": {"form": "candidate"}},
    "ranked, with a gate": {"views": {"form": "margin", "gate": True}},
    "with the hardest negatives": {"coarse": {"negatives": HARDEST}, "fine": {"negatives": HARDEST}},
    "with random negatives": {"coarse": {"negatives": {"per_anchor": 3}}, "fine": {"negatives": {"per_anchor": 3}}},
    "false negatives by score": {"coarse": {"negatives": {"false_negative_margin": 0.95}}},
}


@pytest.mark.parametrize("loss", USES_OF_VIEWS.values(), ids=USES_OF_VIEWS)
def test_masked_views_and_mined_negatives_cross_the_boundary_like_any_feature(loss: dict[str, Any]) -> None:
    compare(5, dropout=0.3, batch=with_views(mixed_batch()), loss=loss)


class TestDegenerate:
    def test_no_spans_and_no_boxes_at_all(self) -> None:
        compare(3, batch=collate(*(make_sample(number, spans=0, regions=0) for number in range(8))))

    def test_spans_in_the_last_chunk_only(self) -> None:
        compare(2, batch=collate(*(make_sample(n, spans=2 * (n == 7), regions=2 * (n == 7)) for n in range(8))))

    def test_two_pairs_in_chunks_of_one(self) -> None:
        compare(1, pairs=2, dropout=0.3)

    def test_a_level_that_is_left_out(self) -> None:
        encoder, objective = doubles(loss={"fine": {"weight": 0.0}})
        accumulate_gradients(encoder, objective, mixed_batch(), chunk_size=7)
        assert encoder.image_projection.weight.grad is not None
        assert not gradients_of(encoder)["0.region_projection.weight"].any()


def test_gradients_are_added_to_what_is_there() -> None:
    encoder, objective = doubles()
    batch = mixed_batch()
    accumulate_gradients(encoder, objective, batch, chunk_size=7)
    once = gradients_of(encoder, objective)
    accumulate_gradients(encoder, objective, batch, chunk_size=24)
    for name, gradient in gradients_of(encoder, objective).items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-9, atol=1e-12)


class Counting:
    """Encodes and remembers how many pairs, with a graph and without."""

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, chunk: Batch) -> Features:
        self.calls.append((len(chunk), torch.is_grad_enabled()))
        features: Features = self.encoder(chunk)
        return features


class TestWork:
    def test_the_last_chunk_is_encoded_once(self) -> None:
        encoder, objective = doubles()
        encode = Counting(encoder)
        accumulate_gradients(encode, objective, mixed_batch(), chunk_size=8)
        assert encode.calls == [(8, False), (8, False), (8, True), (8, True), (8, True)]

    @pytest.mark.parametrize("chunk", [1, 7, 24])
    @pytest.mark.parametrize("accumulate", [accumulate_gradients, accumulate_naively])
    def test_processes_share_gradients_once_at_the_end(self, accumulate: Any, chunk: int) -> None:
        synchronised: list[bool] = []

        @contextmanager
        def synchronising(synchronise: bool) -> Iterator[None]:
            synchronised.append(synchronise)
            yield

        encoder, objective = doubles()
        accumulate(encoder, objective, mixed_batch(), chunk_size=chunk, synchronising=synchronising)
        assert synchronised == [False] * (len(synchronised) - 1) + [True]

    def test_a_batch_that_fits_is_encoded_once(self) -> None:
        encoder, objective = doubles()
        encode = Counting(encoder)
        accumulate_gradients(encode, objective, mixed_batch(), chunk_size=64)
        assert encode.calls == [(PAIRS, True)]

    @pytest.mark.parametrize(("pairs", "chunk", "size"), [(24, 7, 6), (24, 24, 24), (24, 1, 1), (23, 6, 6), (5, 9, 5)])
    def test_chunks_are_shared_out_evenly(self, pairs: int, chunk: int, size: int) -> None:
        assert even_chunk(pairs, chunk) == size


class TestNaive:
    def test_is_the_mean_of_small_batches(self) -> None:
        batch = mixed_batch(12)
        encoder, objective = doubles()
        losses = accumulate_naively(encoder, objective, batch, chunk_size=4)
        found = gradients_of(encoder, objective)
        encoder, objective = doubles()
        parts = [objective(encoder(chunk), chunk) for chunk in batch.split(4)]
        total = sum(part.total for part in parts) / 3
        total.backward()
        assert losses.total.item() == pytest.approx(total.item())
        assert losses.terms["fine"].item() == pytest.approx(sum(part.terms["fine"].item() for part in parts) / 3)
        for name, gradient in gradients_of(encoder, objective).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)

    def test_is_far_from_the_gradient_of_the_batch(self) -> None:
        """What exact accumulation is there for."""
        gradients = []
        for accumulate in (accumulate_gradients, accumulate_naively):
            encoder, objective = doubles()
            accumulate(encoder, objective, mixed_batch(), chunk_size=6)
            gradients.append(torch.cat([gradient.flatten() for gradient in gradients_of(encoder).values()]))
        exact, naive = gradients
        assert (naive - exact).norm() > 0.1 * exact.norm()

    def test_of_one_chunk_is_exact(self) -> None:
        gradients = []
        for accumulate in (accumulate_gradients, accumulate_naively):
            encoder, objective = doubles()
            accumulate(encoder, objective, mixed_batch(), chunk_size=PAIRS)
            gradients.append(gradients_of(encoder, objective))
        for name in gradients[0]:
            torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_a_random_state_is_drawn_from_again_and_then_left_as_it_was() -> None:
    torch.manual_seed(3)
    state = RandomState.capture()
    first, second = torch.rand(2), torch.rand(2)
    with state.replayed():
        assert torch.equal(torch.rand(2), first)
    torch.manual_seed(3)
    torch.rand(2), torch.rand(2)
    after = torch.rand(2)
    torch.manual_seed(3)
    state = RandomState.capture()
    torch.rand(2)
    with state.replayed():
        torch.rand(2)
    assert torch.equal(torch.rand(2), second)
    assert torch.equal(torch.rand(2), after)


class TestRandomState:
    def fake_gpus(self, monkeypatch: pytest.MonkeyPatch) -> list[torch.Generator]:
        """Generators of two GPUs, the first of which is the current device."""
        gpus = [torch.Generator().manual_seed(number) for number in range(2)]

        def restore(states: list[Tensor]) -> None:
            for gpu, state in zip(gpus, states, strict=True):
                gpu.set_state(state)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=0: gpus[device].get_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device=0: gpus[device].set_state(state))
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [gpu.get_state() for gpu in gpus])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", restore)
        return gpus

    @pytest.mark.parametrize("used", [0, 1])
    def test_every_gpu_is_replayed(self, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = self.fake_gpus(monkeypatch)[used]
        state = RandomState.capture()
        first = torch.rand(3, generator=gpu)
        second = torch.rand(3, generator=gpu)
        after = gpu.get_state()
        with state.replayed():
            assert torch.equal(torch.rand(3, generator=gpu), first)
            assert torch.equal(torch.rand(3, generator=gpu), second)
        assert torch.equal(gpu.get_state(), after)

    def test_cuda_that_is_not_used_is_not_initialised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake_gpus(monkeypatch)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert RandomState.capture().cuda == []
