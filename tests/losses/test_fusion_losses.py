"""The losses of fused scores, against loops over rows, pairs and states."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fusion_reference
import relation_reference
from batches import random_batch, with_relevance
from fusion_batches import KINDS, PAIR_KINDS, fusion_batch, fusion_features, make_fusion
from spanbox.losses import fusion as fusion_losses
from spanbox.losses.fusion import choose_pairs
from spanbox.losses.fusion_settings import FusionLossSettings
from spanbox.losses.kernel import WHOLE_SHARE
from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.relations import (
    own_pair_relation,
    region_sentence_relation,
    sentence_image_relation,
    span_image_relation,
    span_region_relation,
)
from spanbox.structures import Batch, Features

SEEDS = range(4)


def make_objective(kind: str, seed: int = 0, **settings: Any) -> Objective:
    fusion = {"choice": "hardest", **settings}
    return Objective(LossSettings.model_validate({"fusion": fusion}), dim=4, fusion=kind, seed=seed).double()


def terms(objective: Objective, fusion: Any, features: Features, batch: Batch) -> dict[str, Tensor]:
    assert objective.fusion is not None
    return {name: term for name, (_, term) in objective.fusion(features, batch, WHOLE_SHARE, fusion).items()}


def gradients(value: Tensor, *sources: Any) -> list[Tensor]:
    leaves = [leaf for source in sources for leaf in source]
    return list(torch.autograd.grad(value, leaves, materialize_grads=True, allow_unused=True, retain_graph=True))


def assert_equal(found: Tensor, expected: Tensor, fusion: Any, objective: Objective, features: Features) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    sources = fusion.parameters(), objective.fusion.parameters(), features.tensors()  # type: ignore[union-attr]
    leaves = [list(source) for source in sources]
    for one, other in zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIR_KINDS)
@pytest.mark.parametrize("candidates", [1, 2, 50])
def test_chosen_pairs(kind: str, candidates: int) -> None:
    batch = fusion_batch(candidates, pairs=4)
    fusion, objective, features = make_fusion(kind), make_objective(kind, candidates=candidates), fusion_features(batch)
    scale = objective.fusion.log_scale.exp()  # type: ignore[union-attr]
    expected = fusion_reference.pair_loss(fusion, features, batch, scale, candidates)
    assert_equal(terms(objective, fusion, features, batch)["fusion"], expected, fusion, objective, features)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIR_KINDS)
@pytest.mark.parametrize("seed", [0, 3])
def test_parts_in_context(kind: str, seed: int) -> None:
    batch = fusion_batch(seed, pairs=4)
    fusion, objective, features = make_fusion(kind), make_objective(kind), fusion_features(batch)
    scale = objective.fusion.parts_log_scale.exp()  # type: ignore[union-attr]
    expected = fusion_reference.context_loss(fusion, features, batch, scale)
    assert expected > 0
    assert_equal(terms(objective, fusion, features, batch)["fusion_parts"], expected, fusion, objective, features)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("strip", [1, 2**20])
def test_conditioned_pooling_in_strips(seed: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_losses, "STRIP_LOGITS", strip)
    kind, batch = "conditioned_pooling", fusion_batch(seed, pairs=4)
    fusion, objective, features = make_fusion(kind), make_objective(kind), fusion_features(batch)
    scales = objective.fusion.log_scale.exp(), objective.fusion.parts_log_scale.exp()  # type: ignore[union-attr]
    expected = fusion_reference.pooling_losses(fusion, features, batch, scales)
    found = terms(objective, fusion, features, batch)
    for name, value in zip(("fusion", "fusion_parts"), expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    assert_equal(sum(found.values()), sum(expected), fusion, objective, features)  # type: ignore[arg-type]


class TestRelations:
    @pytest.mark.parametrize("seed", range(12))
    def test_own_pair_is_the_diagonal(self, seed: int) -> None:
        batch = random_batch(seed)
        if seed % 2:
            batch = with_relevance(batch, seed)
        pairs, spans, regions = batch.links.shape
        found, whole = own_pair_relation(batch), span_region_relation(batch)
        own = torch.arange(pairs)
        for mine, theirs in zip(found, whole, strict=True):
            if theirs is not None:
                expected = theirs.reshape(pairs, spans, pairs, regions)[own, :, own]
                assert torch.equal(mine.where(found.positives, 0), expected.where(found.positives, 0)) or torch.equal(
                    mine, expected
                )
        assert torch.equal(found.positives, whole.positives.reshape(pairs, spans, pairs, regions)[own, :, own])
        assert torch.equal(found.candidates, whole.candidates.reshape(pairs, spans, pairs, regions)[own, :, own])

    @pytest.mark.parametrize("seed", range(12))
    def test_spans_and_images_regions_and_sentences(self, seed: int) -> None:
        batch = random_batch(seed)
        masks = fusion_reference.part_masks(batch)
        for name, relation in (("spans", span_image_relation), ("regions", region_sentence_relation)):
            found = relation(batch)
            assert found.positives.tolist() == masks[name][0]
            assert found.candidates.tolist() == masks[name][1]
            part = relation(batch, slice(0, 1), slice(1, None))
            rows = batch.links.shape[1 if name == "spans" else 2]
            assert part.candidates.tolist() == [row[1:] for row in masks[name][1][:rows]]

    @pytest.mark.parametrize("seed", range(6))
    def test_a_whole_is_as_strong_a_positive_as_its_strongest_part(self, seed: int) -> None:
        """And none where every link has the relevance 0, as of links that `loss.noise` leaves out."""
        batch = with_relevance(random_batch(seed, pairs=5, spans=3, regions=2), seed)
        pairs, spans, regions = batch.links.shape
        right = torch.tensor(relation_reference.span_region_masks(batch)[0]).reshape(pairs, spans, pairs, regions)
        weight = torch.tensor(relation_reference.span_region_weights(batch)).reshape(right.shape).where(right, 0.0)
        expected = weight.amax(dim=3).flatten(0, 1), weight.amax(dim=1).permute(1, 2, 0).flatten(0, 1)
        masks = fusion_reference.part_masks(batch)
        for name, relation, strength in zip(
            ("spans", "regions"), (span_image_relation, region_sentence_relation), expected, strict=True
        ):
            found = relation(batch)
            assert found.weight is not None
            torch.testing.assert_close(found.weight, strength)
            assert torch.equal(found.positives, strength > 0)
            positives, candidates = (torch.tensor(mask) for mask in masks[name])
            assert torch.equal(found.negatives, candidates & ~positives)


class TestChoice:
    def chosen(self, choice: str, candidates: int, seed: int = 0, **options: Any) -> tuple[Batch, Features, Any]:
        batch = random_batch(seed, pairs=24)
        batch = replace(batch, group=torch.arange(24) // 2, wording=torch.arange(24) % 20)
        features = fusion_features(fusion_batch(seed, pairs=24))
        settings = FusionLossSettings(candidates=candidates, choice=choice)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        relation = lambda rows, columns: sentence_image_relation(batch, rows, columns)  # noqa: E731
        return batch, features, choose_pairs(features.text, features.image, relation, settings, generator, **options)

    @pytest.mark.parametrize("choice", ["hardest", "random", "mix"])
    @pytest.mark.parametrize("candidates", [1, 5, 100])
    def test_all_positives_and_so_many_negatives_and_no_false_one(self, choice: str, candidates: int) -> None:
        batch, _, chosen = self.chosen(choice, candidates)
        positives, allowed = (torch.tensor(mask) for mask in relation_reference.sentence_image_masks(batch))
        matrix = torch.zeros(24, 24, dtype=torch.bool)
        matrix[chosen.row, chosen.column] = True
        assert (matrix & ~allowed).sum() == 0
        assert torch.equal(matrix & positives, positives)
        negatives = (allowed & ~positives).sum(dim=1)
        assert torch.equal((matrix & ~positives).sum(dim=1), negatives.clamp(max=candidates))
        assert torch.equal(chosen.positive, positives[chosen.row, chosen.column])

    def test_half_of_a_mix_is_hardest(self) -> None:
        batch, features, chosen = self.chosen("mix", 6)
        positives, allowed = (torch.tensor(mask) for mask in relation_reference.sentence_image_masks(batch))
        similarity = (features.text @ features.image.T).masked_fill(~(allowed & ~positives), -2)
        for row in range(24):
            columns = set(chosen.column[chosen.row == row].tolist())
            assert set(similarity[row].topk(3).indices.tolist()) <= columns
        assert not torch.equal(chosen.column, self.chosen("hardest", 6)[2].column)

    @pytest.mark.parametrize("choice", ["hardest", "random", "mix"])
    def test_strips_and_ranks_choose_alike(self, choice: str) -> None:
        _, _, whole = self.chosen(choice, 5)
        _, _, in_strips = self.chosen(choice, 5, strip_logits=50)
        for mine, theirs in zip(in_strips[:3], whole[:3], strict=True):
            assert torch.equal(mine, theirs)
        _, _, share = self.chosen(choice, 5, pairs=slice(8, 16))
        own = (whole.row >= 8) & (whole.row < 16)
        assert torch.equal(share.row, whole.row[own])
        assert torch.equal(share.column, whole.column[own])

    def test_random_negatives_differ_from_step_to_step(self) -> None:
        assert not torch.equal(self.chosen("random", 5, 0)[2].column, self.chosen("random", 5, 1)[2].column)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["info_nce", "sup_con", "decoupled", "sigmoid", "arc_face", "hardness_weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_loss_has_finite_gradients(kind: str, name: str) -> None:
    batch = with_relevance(fusion_batch(0))
    fusion, objective, features = make_fusion(kind), make_objective(kind, loss=name), fusion_features(batch)
    losses = objective(features, batch, fusion=fusion)
    losses.total.backward()
    assert {"fusion", "fusion_parts"} <= losses.terms.keys()
    for parameter in (*fusion.parameters(), *objective.fusion.parameters()):  # type: ignore[union-attr]
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert features.patches.grad.abs().max() > 0  # type: ignore[union-attr]


def test_negatives_of_conditioned_pooling_can_be_chosen() -> None:
    batch = fusion_batch(0)
    fusion, features = make_fusion("conditioned_pooling"), fusion_features(batch)
    everything = terms(make_objective("conditioned_pooling"), fusion, features, batch)["fusion"]
    for choice in ("random", "hardest"):
        few = make_objective("conditioned_pooling", negatives={"per_anchor": 1, "choice": choice})
        assert terms(few, fusion, features, batch)["fusion"] < everything


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_choice_is_a_function_of_seed_and_step_alone(kind: str) -> None:
    batch = fusion_batch(0)
    fusion, features = make_fusion(kind), fusion_features(batch)
    few = {"candidates": 1, "choice": "random"}
    if kind == "conditioned_pooling":
        few = {"negatives": {"per_anchor": 1, "choice": "random"}}

    def loss(seed: int, step: int) -> float:
        objective = make_objective(kind, seed, **few)
        objective.set_progress(0.5, step)
        return terms(objective, fusion, features, batch)["fusion"].item()

    assert loss(1, 1) == loss(1, 1)
    for draws in ([loss(seed, 1) for seed in range(4)], [loss(1, step) for step in range(4)]):
        assert len(set(draws)) > 1


def test_the_choice_of_negatives_starts_when_it_is_asked_to() -> None:
    batch = fusion_batch(0)
    fusion, features = make_fusion("conditioned_pooling"), fusion_features(batch)
    everything = terms(make_objective("conditioned_pooling"), fusion, features, batch)["fusion"]
    late = make_objective("conditioned_pooling", negatives={"per_anchor": 1, "choice": "hardest", "start": 0.5})
    late.set_progress(0.4)
    assert torch.equal(terms(late, fusion, features, batch)["fusion"], everything)
    late.set_progress(0.5)
    assert terms(late, fusion, features, batch)["fusion"] < everything


@pytest.mark.parametrize("kind", KINDS)
class TestDegenerate:
    def test_nothing_to_contrast_gives_zero(self, kind: str) -> None:
        batch = fusion_batch(0, pairs=1, spans=0, regions=0)
        fusion, objective, features = make_fusion(kind), make_objective(kind), fusion_features(batch)
        assert all(term.abs() < 1e-12 for term in terms(objective, fusion, features, batch).values())

    def test_one_image_for_all(self, kind: str) -> None:
        batch = replace(fusion_batch(0), group=torch.zeros(5, dtype=torch.int64))
        fusion, objective, features = make_fusion(kind), make_objective(kind), fusion_features(batch)
        assert terms(objective, fusion, features, batch)["fusion"].abs() < 1e-12

    def test_terms_that_are_off_are_not_computed(self, kind: str) -> None:
        batch = fusion_batch(0)
        objective = make_objective(kind, weight=0.0, parts_weight=0.0)
        assert terms(objective, None, fusion_features(batch), batch) == {}
        coarse_alone = Objective(LossSettings.model_validate({"fine": {"weight": 0.0}}), dim=4, fusion=kind).double()
        assert terms(coarse_alone, make_fusion(kind), fusion_features(batch), batch).keys() == {"fusion"}


def test_without_fusion_the_objective_has_no_parameters_of_it() -> None:
    assert not [name for name, _ in Objective(LossSettings()).named_parameters() if "fusion" in name]
