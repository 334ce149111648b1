"""The chunked step gives the gradient of the whole batch: every parameter, temperatures included, dropout on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from encoders import accumulate, collate, fused, in_one_graph, make_model, make_sample, padded, with_views
from spanbox.data.augment import AugmentSettings
from spanbox.data.draws import Draws
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Entity
from spanbox.data.prepare import prepare
from spanbox.engine.large_batch import TowerStep, accumulate_gradients, even_chunk
from spanbox.geometry import picture_cells
from spanbox.losses.formulas import LOSSES
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder, RegionSettings, SpanSettings, TextStates
from spanbox.models.trainable import LoraSettings, add_lora, freeze_layers
from spanbox.structures import Batch, Losses

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
    fusion = model["fusion"].kind if "fusion" in model else "none"
    objective = Objective(LossSettings.model_validate(loss or {}), dim=8, fusion=fusion)
    return make_model(dropout=dropout, **model).double(), objective.double()


def gradients_of(*modules: torch.nn.Module) -> dict[str, Tensor]:
    named = {f"{i}.{name}": p for i, module in enumerate(modules) for name, p in module.named_parameters()}
    return {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}


def compare(
    text: int,
    image: int | None = None,
    pairs: int = PAIRS,
    *,
    dropout: float = 0.0,
    batch: Batch | None = None,
    prepare: Callable[[DualEncoder], object] = lambda model: None,
    **model: Any,
) -> None:
    """Losses and the gradient of every parameter to 1e-10 of the largest; the random state afterwards too."""
    batch = mixed_batch(pairs) if batch is None else batch
    sizes = {"text": text, "image": image or text}
    results = []
    for step in (in_one_graph, accumulate):
        encoder, objective = doubles(dropout, **model)
        prepare(encoder)
        torch.manual_seed(1)
        losses = step(encoder, objective, batch, **sizes)
        results.append((losses, gradients_of(encoder, objective), torch.rand(1)))
    (whole, expected, random), (in_chunks, found, random_after) = results
    torch.testing.assert_close(in_chunks.total, whole.total.detach(), rtol=1e-12, atol=0)
    for name in expected:
        gradient = found.get(name, torch.zeros_like(expected[name]))
        scale = expected[name].abs().max()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=max(1e-10 * scale.item(), 1e-15), msg=name)
    assert torch.equal(random, random_after)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 5, 7, 24, 100])
def test_chunked_equals_whole(chunk: int, dropout: float) -> None:
    compare(chunk, dropout=dropout)


@pytest.mark.slow
@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
def test_chunked_equals_whole_with_dropout_and_an_uneven_last_chunk(sources: dict[str, Any]) -> None:
    compare(6, 5, pairs=23, dropout=0.3, **sources)


@pytest.mark.slow
def test_without_dropout_the_size_of_the_chunks_does_not_matter() -> None:
    """Against the batch encoded in one piece, as nobody's chunks."""
    batch = mixed_batch()
    encoder, objective = doubles()
    losses = objective(encoder(batch), batch)
    losses.total.backward()
    expected = gradients_of(encoder, objective)
    for chunk in (1, 5, 7):
        encoder, objective = doubles()
        accumulate(encoder, objective, batch, text=chunk, image=chunk)
        for name, gradient in gradients_of(encoder, objective).items():
            scale = max(1.0, expected[name].abs().max().item())
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-10 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_with_learned_weights_and_temperatures(name: str) -> None:
    weight = "fixed" if name == "decoupled" else "uncertainty"  # decoupled may be negative, and is refused
    levels = {level: {"loss": name, "weight_schedule": weight} for level in ("coarse", "fine")}
    compare(5, dropout=0.3, loss=levels)


@pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
class TestFusion:
    @pytest.mark.slow
    def test_tokens_and_patches_cross_the_boundary_with_dropout_in_the_fusion(self, kind: str) -> None:
        compare(5, 7, pairs=12, dropout=0.3, fusion=fused(kind, dropout=0.3))

    @pytest.mark.slow
    def test_the_projections_of_a_frozen_tower_learn(self, kind: str) -> None:
        compare(5, 7, pairs=12, dropout=0.3, fusion=fused(kind), prepare=FROZEN["both towers"])
        encoder, objective = doubles(fusion=fused(kind))
        encoder.requires_grad_(False).fusion.requires_grad_(True)  # type: ignore[union-attr]
        accumulate(encoder, objective, mixed_batch(12), text=5, image=5)
        for projection in (encoder.fusion.token_projection, encoder.fusion.patch_projection[0]):  # type: ignore[union-attr]
            assert projection.weight.grad.abs().max() > 0

    @pytest.mark.slow
    def test_spans_and_regions_that_are_encoded_alone(self, kind: str) -> None:
        compare(5, 7, pairs=12, fusion=fused(kind), **SOURCES["by themselves"])

    @pytest.mark.slow
    def test_pairs_without_spans_and_boxes(self, kind: str) -> None:
        compare(3, batch=collate(*(make_sample(number, spans=0, regions=0) for number in range(6))), fusion=fused(kind))

    @pytest.mark.slow
    def test_a_single_pair(self, kind: str) -> None:
        compare(1, pairs=1, fusion=fused(kind))


HARDEST = {"per_anchor": 4, "choice": "hardest"}
USES_OF_VIEWS: dict[str, dict[str, Any]] = {
    "candidates": {"views": {"form": "candidate"}},
    "ranked, with a gate": {"views": {"form": "margin", "gate": True}},
    "with the hardest negatives": {"coarse": {"negatives": HARDEST}, "fine": {"negatives": HARDEST}},
    "with random negatives": {"coarse": {"negatives": {"per_anchor": 3}}, "fine": {"negatives": {"per_anchor": 3}}},
    "false negatives by score": {"coarse": {"negatives": {"false_negative_margin": 0.95}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", USES_OF_VIEWS.values(), ids=USES_OF_VIEWS)
def test_masked_views_and_mined_negatives_cross_the_boundary_like_any_feature(loss: dict[str, Any]) -> None:
    compare(5, dropout=0.3, batch=with_views(mixed_batch()), loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_augmented_copies_and_their_loss(chunk: int, dropout: float) -> None:
    """Eight pictures in three copies each, changed by everything there is; copies lose boxes and spans differently."""
    augment = AugmentSettings.model_validate({"copies": 3, "image": {"preset": "strong", "keep_boxes": "none"}})
    limits = SampleLimits(tiny.IMAGE_SIZE, augment=augment)
    samples = []
    for number in range(8):
        made = make_sample(number, spans=2, regions=0)
        spans = [Entity(*span, boxes=((5, 9, 30, 40),)) for span in made.spans]
        picture = Image.effect_noise((50, 60), 90).convert("RGB")
        for copy in range(3):
            draws = Draws(0, 0, number, copy)
            samples.append(prepare(picture, made.text, spans, (), limits, id=made.id, draws=draws))
    batch = collate(*samples)
    assert 0 < batch.links.any(dim=(1, 2)).sum() < len(batch)
    copies = {"weight": 0.5, "weight_schedule": "uncertainty"}
    compare(chunk, batch=batch, dropout=dropout, loss={"copies": copies})


class TestDegenerate:
    def test_no_spans_and_no_boxes_at_all(self) -> None:
        compare(3, batch=collate(*(make_sample(number, spans=0, regions=0) for number in range(8))))

    def test_spans_in_the_last_chunk_only(self) -> None:
        compare(2, batch=collate(*(make_sample(n, spans=2 * (n == 7), regions=2 * (n == 7)) for n in range(8))))

    def test_two_pairs_in_chunks_of_one(self) -> None:
        compare(1, pairs=2, dropout=0.3)

    def test_a_level_that_is_left_out(self) -> None:
        encoder, objective = doubles(loss={"fine": {"weight": 0.0}})
        accumulate(encoder, objective, mixed_batch(), text=7, image=7)
        assert encoder.image_projection.weight.grad is not None
        assert encoder.region_projection.weight.grad is None


def test_gradients_are_added_to_what_is_there() -> None:
    encoder, objective = doubles()
    batch = mixed_batch()
    accumulate(encoder, objective, batch, text=7, image=7)
    once = gradients_of(encoder, objective)
    accumulate(encoder, objective, batch)
    for name, gradient in gradients_of(encoder, objective).items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-9, atol=1e-12)


def freeze_lowest(tower: Any, layers: int) -> None:
    freeze_layers(tower.model, tower.layers, layers, "text")


FROZEN: dict[str, Callable[[DualEncoder], object]] = {
    "text tower": lambda model: model.text.requires_grad_(False).train(),  # in eval mode then, without dropout
    "vision tower": lambda model: model.vision.requires_grad_(False).train(),
    "both towers": lambda model: [tower.requires_grad_(False).train() for tower in (model.text, model.vision)],
    "lowest layers": lambda model: [freeze_lowest(tower, 1) for tower in (model.text, model.vision)],
    "all layers but not what follows": lambda model: [
        freeze_lowest(tower, len(tower.layers)) for tower in (model.text, model.vision)
    ],
    "a layer above trained embeddings": lambda model: [
        tower.layers[0].requires_grad_(False) for tower in (model.text, model.vision)
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("prepare", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
def test_frozen_parts(prepare: Callable[[DualEncoder], object], sources: dict[str, Any]) -> None:
    compare(5, 7, dropout=0.3, prepare=prepare, batch=with_views(mixed_batch()), **sources)


@pytest.mark.slow
def test_low_rank_updates() -> None:
    pytest.importorskip("peft")

    def update(model: DualEncoder) -> None:
        for part, tower in (("text", model.text), ("vision", model.vision)):
            add_lora(tower.model, tower.layers, LoraSettings(rank=2, dropout=0.3), part)
        model.double()

    compare(5, 7, dropout=0.3, prepare=update)


class TestWork:
    """Counted rows that the towers encode."""

    def encoded(self, encoder: DualEncoder, batch: Batch, **sizes: int) -> dict[str, int]:
        rows = {"text": 0, "image": 0}
        for name, tower in (("text", encoder.text), ("image", encoder.vision)):

            def count(module: Any, inputs: Any, output: Any, name: str = name) -> None:
                rows[name] += len(output.pooled)

            tower.register_forward_hook(count)
        accumulate(encoder, doubles()[1], batch, **sizes)
        return rows

    def test_chunks_are_encoded_twice_but_the_last_one(self) -> None:
        assert self.encoded(doubles()[0], mixed_batch(), text=8, image=6) == {"text": 48, "image": 48 - 6}

    def test_a_tower_that_fits_is_encoded_once(self) -> None:
        assert self.encoded(doubles()[0], mixed_batch(), text=24, image=6) == {"text": 24, "image": 48 - 6}

    def test_a_frozen_tower_is_encoded_once(self) -> None:
        """And the last chunk of the other one."""
        encoder, _ = doubles()
        encoder.vision.requires_grad_(False)
        assert self.encoded(encoder, mixed_batch(), text=8, image=6) == {"text": 48 - 8, "image": 24}

    @pytest.mark.parametrize("frozen", [1, 2])
    def test_frozen_layers_are_computed_once(self, frozen: int) -> None:
        """Rows that the lower layers compute; those of a tower that is encoded once are not kept."""
        encoder, _ = doubles(dropout=0.3)
        rows = [0] * len(encoder.vision.layers)
        for tower in (encoder.text, encoder.vision):
            freeze_lowest(tower, frozen)
        for number, layer in enumerate(encoder.vision.layers):

            def count(module: Any, inputs: Any, output: Any, number: int = number) -> None:
                rows[number] += len(inputs[0])

            layer.attention.register_forward_hook(count)
        accumulate(encoder, doubles()[1], mixed_batch(), text=8, image=6)
        assert rows == [24 if number < frozen else 48 - 6 for number in range(len(rows))]
        for tower in (encoder.text, encoder.vision):
            assert not any("forward" in vars(layer) for layer in tower.layers)

    def test_equal_texts_are_encoded_once(self) -> None:
        batch = collate(*(replace(make_sample(number // 2), id=f"{number}") for number in range(12)))
        assert self.encoded(doubles()[0], batch)["text"] == 6

    def test_crops_and_views_count_as_images(self) -> None:
        batch = with_views(mixed_batch())
        used = int(((batch.view_sentence != 0) | (batch.view_spans != 0).any(2)).sum())  # type: ignore[operator, union-attr]
        rows = self.encoded(doubles(regions=RegionSettings(source="crop"))[0], batch)
        assert rows["image"] == PAIRS + int(batch.region_valid.sum()) + used

    @pytest.mark.parametrize("chunk", [1, 7, 24])
    def test_processes_share_gradients_once_at_the_end(self, chunk: int) -> None:
        synchronised: list[bool] = []
        weight = torch.ones(2, requires_grad=True)
        rows = TextStates(pooled=torch.ones(24, 2), spans=torch.ones(24, 1, 2))
        tower = TowerStep(
            lambda chunk: chunk.map(lambda values: values * weight), [rows], chunk, before_backward=synchronised.append
        )
        accumulate_gradients([tower], lambda states: Losses(states[0].pooled.sum(), {}))
        assert synchronised == [False] * (len(synchronised) - 1) + [True]
        assert weight.grad.tolist() == [24, 24]  # type: ignore[union-attr]

    @pytest.mark.parametrize(("pairs", "chunk", "size"), [(24, 7, 6), (24, 24, 24), (24, 1, 1), (23, 6, 6), (5, 9, 5)])
    def test_chunks_are_shared_out_evenly(self, pairs: int, chunk: int, size: int) -> None:
        assert even_chunk(pairs, chunk) == size


class TestPadding:
    """Images in groups by the patches of their pictures, with crops and views beside padding too."""

    @staticmethod
    def padded_batch() -> Batch:
        sizes = [(32, 16), (32, 20), (13, 32), (32, 32), (8, 32)]
        samples = [make_sample(number, spans=number % 4, regions=(number + 1) % 4) for number in range(PAIRS)]
        return collate(*[padded(one, *sizes[place % 5 :], *sizes) for place, one in enumerate(samples)])

    @pytest.mark.slow
    @pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES)
    @pytest.mark.parametrize("chunk", [1, 5, 100])
    def test_chunked_equals_whole(self, sources: dict[str, Any], chunk: int) -> None:
        compare(chunk, dropout=0.3, batch=self.padded_batch(), **sources)

    @pytest.mark.slow
    @pytest.mark.parametrize("filled", [True, False])
    def test_with_views(self, *, filled: bool) -> None:
        batch = with_views(self.padded_batch(), filled=filled)
        assert batch.content is not None
        assert batch.view_hidden is not None
        padding = ~picture_cells(batch.content, 8, 4)
        hidden = batch.view_hidden | padding[:, None]
        hidden[..., 0, 0] = False  # at least one cell of each picture stays
        compare(6, 5, dropout=0.3, batch=replace(batch, view_hidden=hidden))

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    def test_with_fusion(self, kind: str) -> None:
        compare(5, 7, dropout=0.3, batch=self.padded_batch()[:12], fusion=fused(kind, dropout=0.3))

    @pytest.mark.slow
    @pytest.mark.parametrize("frozen", ["lowest layers", "vision tower"])
    def test_with_frozen_layers(self, frozen: str) -> None:
        """Whose outputs are kept between the passes, group by group."""
        compare(6, 5, dropout=0.3, batch=self.padded_batch(), prepare=FROZEN[frozen])
