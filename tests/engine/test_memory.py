"""Memory of a step: what is counted, what is predicted, and the chunk that follows from it."""

import pytest
import torch

from encoders import collate, make_model, make_sample
from spanbox.engine.large_batch import accumulate_gradients
from spanbox.engine.memory import (
    GIB,
    PROCESSOR_BUDGET,
    PeakMemory,
    StepMemory,
    choose_chunk,
    measure_step,
    memory_budget,
)
from spanbox.errors import ConfigError
from spanbox.losses.objective import LossSettings, Objective
from spanbox.structures import Batch

MIB = 2**20


def floats(megabytes: float) -> torch.Tensor:
    return torch.ones(round(megabytes * MIB / 4))


class TestPeakMemory:
    def test_counts_what_is_alive_at_the_same_time(self) -> None:
        with PeakMemory() as memory:
            first = floats(2)
            second = floats(1)
            del first
            floats(1.5)
        assert memory.peak == 3 * MIB
        assert second.numel()

    def test_what_was_there_before_does_not_count(self) -> None:
        before = floats(4)
        with PeakMemory() as memory:
            view = before.reshape(2, -1)
            view.mul_(2)
            floats(1)
        assert memory.peak == MIB

    def test_a_view_costs_nothing(self) -> None:
        with PeakMemory() as memory:
            whole = floats(2)
            parts = whole.split(1000)
        assert memory.peak == 2 * MIB
        assert parts

    def test_what_autograd_keeps_and_gradients_count(self) -> None:
        weight = floats(1).requires_grad_()
        with PeakMemory() as memory:
            ((weight * 2).exp() * 3).sum().backward()
        assert memory.peak >= 3 * MIB
        assert weight.grad is not None


def example(pairs: int) -> Batch:
    return collate(*(make_sample(number) for number in range(pairs)))


def measured() -> StepMemory:
    torch.manual_seed(0)
    model = make_model()
    return measure_step(model, Objective(LossSettings()), model, example)


class TestMeasuredStep:
    def test_predicts_the_peak_of_a_step(self) -> None:
        """Of a chunked step counted in full; not less, and not more than 1.5 times as much."""
        model, objective = make_model(), Objective(LossSettings())
        memory = measure_step(model, objective, model, example)
        for pairs, chunk in ((24, 24), (24, 8), (48, 8)):
            batch = example(pairs)
            for parameter in (*model.parameters(), *objective.parameters()):
                parameter.grad = torch.zeros_like(parameter)
            with PeakMemory() as counted:
                accumulate_gradients(model, objective, batch, chunk_size=chunk)
            predicted = memory.peak(pairs, chunk) - 1.1 * memory.state
            assert counted.peak <= predicted <= 1.5 * counted.peak, (pairs, chunk)

    def test_leaves_no_trace(self) -> None:
        model, objective = make_model(dropout=0.1), Objective(LossSettings())
        state = torch.get_rng_state()
        measure_step(model, objective, model, example)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in (*model.parameters(), *objective.parameters()))

    def test_state_counts_what_is_trained(self) -> None:
        model, objective = make_model(), Objective(LossSettings())
        model.text.requires_grad_(False)
        memory = measure_step(model, objective, model, example)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) + 2
        assert memory.gradients == 4 * trained
        assert memory.optimiser == 8 * trained
        assert memory.weights > memory.gradients

    def test_chunks_make_it_smaller(self) -> None:
        memory = measured()
        assert memory.peak(64, 8) < memory.peak(64, 64)
        assert memory.peak(64, 8) < 1.2 * memory.peak(8, 8) + memory.losses(64)

    def test_no_spans_and_no_regions(self) -> None:
        model, objective = make_model(), Objective(LossSettings())
        memory = measure_step(
            model, objective, model, lambda pairs: collate(*(make_sample(n, spans=0, regions=0) for n in range(pairs)))
        )
        assert memory.peak(16, 4) > 0


class TestChunk:
    def test_is_the_largest_that_fits(self) -> None:
        memory = measured()
        assert choose_chunk(memory, 64, memory.peak(64, 10) + 1) == 10
        assert choose_chunk(memory, 64, memory.peak(64, 10) - 1) == 9

    def test_is_the_batch_where_there_is_room(self) -> None:
        assert choose_chunk(measured(), 64, GIB) == 64

    def test_not_even_one_pair_fits(self) -> None:
        memory = measured()
        with pytest.raises(ConfigError, match=r"^train\.memory_gb: .*even with one pair.*gradient_checkpointing=true"):
            choose_chunk(memory, 64, memory.state)

    def test_budget(self) -> None:
        assert memory_budget(1.5, torch.device("cpu"), 0) == 1.5 * GIB
        assert memory_budget(None, torch.device("cpu"), 100) == PROCESSOR_BUDGET

    def test_budget_of_a_card_is_what_is_free_and_what_the_weights_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 8 * GIB))
        assert memory_budget(None, torch.device("cuda"), GIB) == 6 * GIB
