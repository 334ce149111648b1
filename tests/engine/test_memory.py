"""Memory of a step: what is counted, what is predicted, and the chunk that follows from it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from encoders import accumulate, collate, fused, make_model, make_sample
from spanbox.engine import memory as memory_module
from spanbox.engine.memory import (
    CPU_BUDGET,
    GIB,
    ChunkMemory,
    PeakMemory,
    StepMemory,
    _chunk_moments,
    choose_chunk_sizes,
    measure_step,
    memory_budget,
)
from spanbox.engine.task import Forward
from spanbox.errors import ConfigError
from spanbox.losses import fusion as losses_of_fusion
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models import fusion
from spanbox.models.dual_encoder import DualEncoder, ModelSettings, RegionSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower
from spanbox.models.trainable import freeze_layers
from spanbox.structures import Batch
from spanbox.tasks.pretraining import Pretraining

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


def step_memory(model: DualEncoder, example: Callable[[int], Batch] = example, **loss: Any) -> StepMemory:
    task = Pretraining(model, Objective(LossSettings.model_validate(loss)))
    return measure_step(Forward(task, torch.device("cpu")), example)


def measured() -> StepMemory:
    torch.manual_seed(0)
    return step_memory(make_model())


class TestMeasuredStep:
    @pytest.mark.parametrize(
        ("pairs", "text", "image"), [(24, 24, 24), (24, 8, 8), (48, 8, 4), (48, 48, 8), (48, 8, 48)]
    )
    @pytest.mark.slow
    @pytest.mark.parametrize("source", ["roi_align", "crop"])
    def test_predicts_the_peak_of_a_step(self, pairs: int, text: int, image: int, source: Any) -> None:
        """Of a step counted in full; not less, and not more than 1.75 times as much."""
        model, objective = make_model(regions=RegionSettings(source=source)), Objective(LossSettings())
        memory = step_memory(model)
        batch = example(pairs)
        for parameter in (*model.parameters(), *objective.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        with PeakMemory() as counted:
            accumulate(model, objective, batch, text=text, image=image)
        predicted = memory.peak(pairs, {"text": text, "image": image}) - 1.1 * memory.state
        assert counted.peak <= predicted <= 1.75 * counted.peak

    @pytest.mark.slow
    @pytest.mark.parametrize("pairs", [12, 48])
    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    def test_predicts_the_peak_of_a_step_with_fusion(
        self, kind: str, pairs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of small blocks, of which a step has many; not less, and not more than 2.5 times as much."""
        monkeypatch.setattr(fusion, "STATES_AT_ONCE", 2000)
        monkeypatch.setattr(losses_of_fusion, "STRIP_LOGITS", 2**14)
        model, objective = make_model(fusion=fused(kind)), Objective(LossSettings(), fusion=kind)
        task = Pretraining(model, objective)
        memory = measure_step(Forward(task, torch.device("cpu")), example)
        batch = example(pairs)
        for parameter in (*model.parameters(), *objective.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        with PeakMemory() as counted:
            accumulate(model, objective, batch, text=8, image=8)
        predicted = memory.peak(pairs, {"text": 8, "image": 8}) - 1.1 * memory.state
        assert counted.peak <= predicted <= 2.5 * counted.peak

    @pytest.mark.slow
    @pytest.mark.parametrize("chunk", [4, 24])
    def test_what_frozen_layers_leave_counts_in_chunks(self, chunk: int) -> None:
        """The peak of a step whose towers keep the output of their lowest layer."""
        model, objective = make_model(), Objective(LossSettings())
        for tower in (model.text, model.vision):
            freeze_layers(tower.model, tower.layers, 1, "text")
        memory = step_memory(model)
        vision = model.vision
        patches = (vision.image_size // vision.stride) ** 2 + 1
        assert memory.towers["image"].kept == patches * vision.width * 4
        batch = example(24)
        for parameter in (*model.parameters(), *objective.parameters()):
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with PeakMemory() as counted:
            accumulate(model, objective, batch, text=chunk, image=chunk)
        predicted = memory.peak(24, {"text": chunk, "image": chunk}) - 1.1 * memory.state
        assert counted.peak <= predicted <= 1.75 * counted.peak

    @pytest.mark.parametrize("frozen", ["text", "vision"])
    def test_a_frozen_tower_encodes_before_a_graph_is_kept(self, frozen: str) -> None:
        """So its activations in one chunk and those of the kept chunk of the other tower are never held together."""
        model, objective = make_model(), Objective(LossSettings())
        getattr(model, frozen).requires_grad_(False)
        memory = step_memory(model)
        batch = example(48)
        chunks = {"text": 12, "image": 12} | {"image" if frozen == "vision" else "text": 48}
        for parameter in (*model.parameters(), *objective.parameters()):
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with PeakMemory() as counted:
            accumulate(model, objective, batch, **chunks)
        assert counted.peak <= memory.peak(48, chunks) - 1.1 * memory.state

    def test_leaves_no_trace(self) -> None:
        model = make_model(dropout=0.1)
        state = torch.get_rng_state()
        step_memory(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.slow
    def test_state_counts_what_is_trained(self) -> None:
        model = make_model()
        model.text.requires_grad_(False)
        memory = step_memory(model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) + 2
        assert memory.gradients == 4 * trained
        assert memory.optimiser == 8 * trained
        assert memory.weights > memory.gradients
        assert (memory.towers["text"].trained, memory.towers["image"].trained) == (False, True)
        assert memory.towers["text"].chunk.row < 0.5 * measured().towers["text"].chunk.row

    @pytest.mark.slow
    def test_chunks_make_it_smaller(self) -> None:
        memory = measured()
        whole, chunked = ({"text": size, "image": size} for size in (64, 8))
        assert memory.peak(64, chunked) < memory.peak(64, {"text": 64, "image": 8}) < memory.peak(64, whole)

    @pytest.mark.slow
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_large_vocabulary(self, checkpointing: bool) -> None:
        """The gradient of the table, the peak of small chunks, hides neither the slope nor the peak of large ones."""
        torch.manual_seed(0)
        text = TowerSettings(architecture=tiny.bert(vocab_size=250_000), gradient_checkpointing=checkpointing)
        vision = VisionTowerSettings(architecture=tiny.vit(), gradient_checkpointing=checkpointing)
        settings = ModelSettings(text=text, vision=vision, dim=8)
        towers = build_text_tower(text), build_vision_tower(vision)
        model = DualEncoder(*towers, Preprocessing(image_size=tiny.IMAGE_SIZE), settings)

        def different_texts(pairs: int) -> Batch:
            batch = collate(*[make_sample(0)] * pairs)
            return replace(batch, token_ids=torch.randint(5, 250_000, batch.token_ids.shape))

        task = Pretraining(model, Objective(LossSettings()))
        tower = measure_step(Forward(task, torch.device("cpu")), different_texts).towers["text"]
        texts = [task.inputs(different_texts(pairs)).rows["text"][0] for pairs in (2, 3072, 4608)]
        small, *large = (max(_chunk_moments(Forward(task, torch.device("cpu")), "text", rows)) for rows in texts)
        assert small == pytest.approx(4 * 32 * 250_000, rel=0.05)  # little but the table
        assert tower.chunk.peak(2) == small
        assert tower.chunk.row == pytest.approx((large[1] - large[0]) / 1536, rel=0.02)
        assert [tower.chunk.peak(rows) for rows in (3072, 4608)] == pytest.approx(large, rel=0.02)
        assert tower.besides == pytest.approx(small, rel=0.05)

    def test_no_spans_and_no_regions(self) -> None:
        memory = step_memory(
            make_model(), lambda pairs: collate(*(make_sample(n, spans=0, regions=0) for n in range(pairs)))
        )
        assert memory.peak(16, {"text": 4, "image": 4}) > 0


class TestChunkMemory:
    """Two moments: the gradient of a table of 100 bytes, and activations of 10 bytes per pair."""

    memory = ChunkMemory.fit((2, 4), [100, 22], [100, 42])

    def test_the_highest_line_is_the_peak(self) -> None:
        assert [self.memory.peak(pairs) for pairs in (1, 9, 10, 20)] == [100, 100, 102, 202]

    def test_a_row_is_one_of_a_large_chunk(self) -> None:
        assert self.memory.row == 10

    @pytest.mark.parametrize(("room", "rows"), [(99, 0), (100, 9), (101, 9), (102, 10), (202, 20)])
    def test_most_rows(self, room: int, rows: int) -> None:
        assert int(self.memory.most_rows(room)) == rows

    def test_chunks_that_run_different_operations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the peaks of larger chunks are compared."""
        moments = {2: [50, 3], 4: [50], 8: [80, 4], 16: [3, 160, 1]}
        monkeypatch.setattr(memory_module, "_chunk_moments", lambda forward, name, rows: moments[len(rows)])
        lines = ChunkMemory(memory_module._lines(None, "text", range(16)))  # type: ignore[arg-type]
        assert (lines.peak(100), lines.row) == (1000, 10)


class TestChunk:
    def test_is_the_largest_that_fits(self) -> None:
        memory = measured()
        sizes = choose_chunk_sizes(memory, 64, memory.peak(64, {"text": 8, "image": 8}))
        budget = memory.peak(64, sizes) + 1
        assert choose_chunk_sizes(memory, 64, budget) == sizes
        for name in sizes:
            if sizes[name] < 64:
                assert memory.peak(64, sizes | {name: sizes[name] + 1}) > budget

    def test_one_tower_at_once(self) -> None:
        memory = measured()
        budget = memory.peak(64, {"text": 64, "image": 8}) + 1
        sizes = choose_chunk_sizes(memory, 64, budget)
        assert 64 in sizes.values()
        assert memory.peak(64, sizes) <= budget

    def test_room_is_for_the_tower_that_is_trained(self) -> None:
        """A frozen one is encoded once in any chunks, so all its rows at once save nothing."""
        model = make_model()
        model.vision.requires_grad_(False)
        memory = step_memory(model)
        large = replace(memory.towers["image"], chunk=ChunkMemory(frozenset({(0.0, 1e6)})))  # a row of a large model
        memory = replace(memory, towers=memory.towers | {"image": large})
        sizes = choose_chunk_sizes(memory, 64, memory.peak(64, {"text": 4, "image": 64}) + 1)
        assert sizes["text"] == 64

    def test_is_the_batch_where_there_is_room(self) -> None:
        assert choose_chunk_sizes(measured(), 64, GIB) == {"text": 64, "image": 64}

    def test_not_even_one_pair_fits(self) -> None:
        memory = measured()
        with pytest.raises(ConfigError, match=r"^train\.memory_gb: .*even with one row.*gradient_checkpointing=true"):
            choose_chunk_sizes(memory, 64, memory.state)

    def test_budget(self) -> None:
        assert memory_budget(1.5, torch.device("cpu"), 0) == 1.5 * GIB
        assert memory_budget(None, torch.device("cpu"), 100) == CPU_BUDGET

    def test_budget_of_a_card_is_what_is_free_and_what_the_weights_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 8 * GIB))
        assert memory_budget(None, torch.device("cuda"), GIB) == 6 * GIB
