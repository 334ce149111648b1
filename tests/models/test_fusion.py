"""Scores of pairs: against loops over pairs, heads and states; honest whatever else is in the batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fusion_reference
from encoders import collate, fused, make_model, make_sample
from fusion_batches import DIM, KINDS, PAIR_KINDS, PATCHES, fusion_batch, fusion_features, make_fusion, padded
from spanbox.errors import ConfigError
from spanbox.models import fusion as fusion_module
from spanbox.models.dual_encoder import DualEncoder, RegionSettings
from spanbox.models.fusion import build_fusion
from spanbox.models.fusion_settings import FusionSettings
from spanbox.structures import Batch, Features

every_kind = pytest.mark.parametrize("kind", KINDS)
every_pair_kind = pytest.mark.parametrize("kind", PAIR_KINDS)


def all_scores(fusion: Any, features: Features, batch: Batch) -> Tensor:
    """(B, B), sentences in rows."""
    sentences, images = torch.meshgrid(torch.arange(len(batch)), torch.arange(len(batch)), indexing="ij")
    scores = fusion.pair_scores(features, batch, sentences.flatten(), images.flatten())
    return scores.reshape(len(batch), len(batch))


def gradients(value: Tensor, fusion: Any, features: Features) -> list[Tensor]:
    leaves = [*features.tensors(), *fusion.parameters()]
    return list(torch.autograd.grad(value, leaves, materialize_grads=True, allow_unused=True, retain_graph=True))


def assert_equal(found: Tensor, expected: Tensor, fusion: Any, features: Features) -> None:
    """Values and all gradients of a random weighting."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(7), dtype=found.dtype)
    pairs = zip(
        gradients((weights * found).sum(), fusion, features),
        gradients((weights * expected).sum(), fusion, features),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


beside_padding = pytest.mark.parametrize("pictures", [lambda batch: batch, padded], ids=["whole", "padded"])


@pytest.mark.slow
@every_kind
@beside_padding
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_and_their_gradients_are_those_of_a_loop_over_pairs(kind: str, seed: int, pictures: Any) -> None:
    fusion, batch = make_fusion(kind), pictures(fusion_batch(seed, pairs=3))
    features = fusion_features(batch)
    expected = [
        [fusion_reference.pair_score(fusion, features, batch, i, j) for j in range(len(batch))]
        for i in range(len(batch))
    ]
    assert_equal(
        all_scores(fusion, features, batch), torch.stack([torch.stack(row) for row in expected]), fusion, features
    )


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("layers", [0, 2])
def test_states_of_tokens_are_those_of_a_loop(heads: int, layers: int) -> None:
    settings = fused("gated").model_copy(update={"heads": heads, "token_layers": layers})
    torch.manual_seed(0)
    fusion = build_fusion(settings, patch_width=8, patches=4, dim=DIM).double()  # type: ignore[union-attr]
    features = torch.randn(3, 5, DIM, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    found = fusion.states_of_tokens(features, mask)
    expected = [
        fusion_reference.states_of_text(fusion, list(row[:many])) for row, many in zip(features, (5, 2, 0), strict=True)
    ]
    assert (found[~mask] == 0).all()
    flat = torch.stack([state for text in expected for state in text])
    torch.testing.assert_close(found[mask], flat, rtol=1e-10, atol=1e-12)
    leaves = [features, *fusion.context.parameters(), *fusion.token_projection.parameters()]
    weights = torch.randn_like(flat)
    for one, other in zip(
        *(torch.autograd.grad((weights * s).sum(), leaves) for s in (found[mask], flat)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@every_pair_kind
@beside_padding
def test_parts_in_context_are_those_of_a_loop(kind: str, pictures: Any) -> None:
    fusion, batch = make_fusion(kind), pictures(fusion_batch(3, pairs=3))
    features = fusion_features(batch)
    parts = fusion.in_context(features, batch)
    found, expected = [], []
    for pair in range(len(batch)):
        for states, wanted in zip(parts, fusion_reference.in_context(fusion, features, batch, pair), strict=True):
            there = [(state, one) for state, one in zip(states[pair], wanted, strict=True) if one is not None]
            found += [state for state, _ in there]
            expected += [one for _, one in there]
    assert len(found) > 6
    assert_equal(torch.stack(found), torch.stack(expected), fusion, features)


@beside_padding
def test_blocks_of_conditioned_pooling_are_its_pair_scores(pictures: Any) -> None:
    fusion, batch = make_fusion("conditioned_pooling"), pictures(fusion_batch(1))
    features = fusion_features(batch)
    rows, columns = slice(1, 4), slice(0, 3)
    block = fusion.matrices(features, batch)["sentence_image"](rows, columns)
    assert_equal(block, all_scores(fusion, features, batch)[rows, columns], fusion, features)


@every_kind
class TestHonest:
    def test_a_score_does_not_depend_on_the_rest_of_the_batch(self, kind: str) -> None:
        fusion, batch = make_fusion(kind), fusion_batch(0)
        features = fusion_features(batch)
        whole = all_scores(fusion, features, batch)
        part = all_scores(fusion, features[1:3], batch[1:3])
        torch.testing.assert_close(part, whole[1:3, 1:3], rtol=1e-12, atol=1e-14)

    @pytest.mark.slow
    def test_nor_on_the_size_of_a_block(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        fusion, batch = make_fusion(kind), fusion_batch(0)
        features = fusion_features(batch)
        whole = all_scores(fusion, features, batch)
        for size in (1, 7):
            monkeypatch.setattr(fusion_module, "pairs_at_once", lambda features, size=size: size)
            assert_equal(all_scores(fusion, features, batch), whole, fusion, features)

    def test_swapped_pairs_swap_their_scores(self, kind: str) -> None:
        fusion, batch = make_fusion(kind), fusion_batch(0)
        features = fusion_features(batch)
        order = torch.tensor([0, 3, 2, 1, 4])
        swapped = all_scores(fusion, features.map(lambda t: t[order]), batch.map(lambda t: t[order]))
        torch.testing.assert_close(
            swapped, all_scores(fusion, features, batch)[order][:, order], rtol=1e-12, atol=1e-14
        )

    def test_more_padding_changes_nothing(self, kind: str) -> None:
        fusion, batch = make_fusion(kind), fusion_batch(0)
        features = fusion_features(batch)
        longer = replace(
            batch,
            token_mask=torch.nn.functional.pad(batch.token_mask, (0, 3)),
            span_tokens=torch.nn.functional.pad(batch.span_tokens, (0, 3)),
        )
        wider = replace(features, tokens=torch.nn.functional.pad(features.tokens, (0, 0, 0, 3), value=5.0))  # type: ignore[arg-type]
        found, expected = all_scores(fusion, wider, longer), all_scores(fusion, features, batch)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    def test_dropout_is_drawn_again_for_the_backward_pass(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Recomputed with other draws, the gradient would not be that of the value."""
        fusion, batch = make_fusion(kind, dropout=0.4), fusion_batch(0, pairs=3)
        features = fusion_features(batch)
        found = []
        for again in (fusion_module.again, lambda function, *arguments: function(*arguments)):
            monkeypatch.setattr(fusion_module, "again", again)
            torch.manual_seed(3)
            found.append(gradients(all_scores(fusion, features, batch).sum(), fusion, features))
        for recomputed, kept in zip(*found, strict=True):
            torch.testing.assert_close(recomputed, kept, rtol=1e-12, atol=1e-14)


class TestDegenerate:
    @every_kind
    def test_no_pair(self, kind: str) -> None:
        batch = fusion_batch(0)
        nothing = torch.zeros(0, dtype=torch.int64)
        assert make_fusion(kind).pair_scores(fusion_features(batch), batch, nothing, nothing).shape == (0,)

    @every_kind
    def test_a_sentence_without_tokens_is_finite(self, kind: str) -> None:
        batch = fusion_batch(0, pairs=2)
        batch = replace(batch, token_mask=torch.zeros_like(batch.token_mask))
        fusion, features = make_fusion(kind), fusion_features(batch)
        scores = all_scores(fusion, features, batch)
        assert scores.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients(scores.sum(), fusion, features))

    @every_pair_kind
    @pytest.mark.parametrize(("spans", "regions"), [(0, 2), (2, 0), (0, 0)])
    def test_no_spans_or_no_regions(self, kind: str, spans: int, regions: int) -> None:
        batch = fusion_batch(0, spans=spans, regions=regions)
        of_spans, of_regions = make_fusion(kind).in_context(fusion_features(batch), batch)
        assert of_spans.shape[:2] == (5, spans)
        assert of_regions.shape[:2] == (5, regions)


@every_pair_kind
def test_what_is_seen_is_what_is_computed(kind: str) -> None:
    """Attention rows sum to 1 over the patches; gates are shares."""
    fusion, batch = make_fusion(kind), fusion_batch(0)
    seen = fusion.seen(fusion_features(batch), batch)
    assert len(seen) == 2
    for one in seen:
        assert one.attention.shape == (*batch.token_mask.shape, PATCHES)
        torch.testing.assert_close(one.attention.sum(dim=2), torch.ones_like(one.attention[:, :, 0]))
        assert (one.gate is None) == (kind == "cross_attention")
        if one.gate is not None:
            assert ((one.gate > 0) & (one.gate < 1)).all()


class TestSettings:
    def test_off_is_the_default_and_computes_nothing(self) -> None:
        model = make_model()
        assert model.fusion is None
        features = model(collate(make_sample(0)))
        assert features.tokens is None
        assert features.patches is None

    def test_projected_tokens_and_patches_are_features(self) -> None:
        batch = collate(*(make_sample(number) for number in range(3)))
        features = make_model(fusion=fused("gated"))(batch)
        assert features.tokens.shape == (*batch.token_mask.shape, 8)
        assert features.patches.shape == (3, 16, 8)
        assert (features.tokens[~batch.token_mask] == 0).all()

    def test_heads_divide_the_width(self) -> None:
        with pytest.raises(ValueError, match="heads=3 do not divide width=128"):
            FusionSettings(kind="gated", heads=3)

    def test_a_state_has_two_halves(self) -> None:
        with pytest.raises(ValueError, match="greater than or equal to 2"):
            FusionSettings(kind="gated", heads=1, width=1)

    def test_crops_with_a_projecting_pooler_are_refused(self) -> None:
        """Patches are projected as regions are, which are pooled states of another width here."""
        model = make_model(regions=RegionSettings(source="crop"))
        model.vision.pooled_width = 5
        settings = model.settings.model_copy(update={"fusion": fused("gated")})
        with pytest.raises(ConfigError, match=r"a map of 5 dimensions where a patch has \d+; set model.regions.source"):
            DualEncoder(model.text, model.vision, model.preprocessing, settings)

    @every_kind
    @pytest.mark.parametrize(("patches", "found"), [(1, "a single one"), (0, "none")])
    def test_a_tower_without_patches_is_refused(self, kind: str, patches: int, found: str) -> None:
        with pytest.raises(
            ConfigError, match=rf"model.fusion.kind: {kind} needs the patches.*vision tower gives {found}"
        ):
            build_fusion(fused(kind), patch_width=8, patches=patches, dim=4)
