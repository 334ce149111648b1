"""Heatmaps against plain loops, for every family of vision towers."""

import warnings

import pytest
import torch
from torch import Tensor

import tiny
import tower_reference
from encoders import collate, fused, make_model, make_sample
from spanbox.models.dual_encoder import DualEncoder, ModelSettings, RegionSettings
from spanbox.models.families import VISION_FAMILIES
from spanbox.models.heatmaps import (
    attention_rollout,
    fusion_maps,
    heaviest_box,
    similarity_maps,
    span_heatmaps,
    to_unit_range,
)
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower

SPANS = 3
DIM = 8


def make(architecture: tiny.Architecture) -> DualEncoder:
    settings = ModelSettings(
        text=TowerSettings(architecture=tiny.bert()),
        vision=VisionTowerSettings(architecture=architecture, **tiny.needs(architecture)),
        dim=DIM,
    )
    towers = build_text_tower(settings.text), build_vision_tower(settings.vision)
    return DualEncoder(*towers, Preprocessing(image_size=tiny.IMAGE_SIZE), settings).eval()


def image() -> Tensor:
    return torch.randint(0, 256, (3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), dtype=torch.uint8)


def spans() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(SPANS, DIM), dim=1)


@pytest.mark.parametrize("architecture", tiny.VISION_ARCHITECTURES, ids=lambda architecture: architecture["model_type"])
class TestFamilies:
    @pytest.mark.slow
    def test_similarity_is_the_cosine_with_each_patch_as_a_region(self, architecture: tiny.Architecture) -> None:
        model, pixels, features = make(architecture), image(), spans()
        maps = span_heatmaps(model, pixels, features)
        with torch.no_grad():
            grid = model.vision(model.normalised(pixels[None])).grid[0]
            expected = torch.zeros(SPANS, *grid.shape[:2])
            for span in range(SPANS):
                for y in range(grid.shape[0]):
                    for x in range(grid.shape[1]):
                        patch = model.region_projection(grid[y, x])
                        expected[span, y, x] = torch.cosine_similarity(features[span], patch, dim=0)
        torch.testing.assert_close(maps["similarity"], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_rollout_where_there_is_attention(self, architecture: tiny.Architecture) -> None:
        model, pixels = make(architecture), image()
        maps = span_heatmaps(model, pixels, spans())
        if VISION_FAMILIES[architecture["model_type"]].convolutional:
            assert maps.keys() == {"similarity"}
            return
        rollout = maps["rollout"]
        assert rollout.shape == maps["similarity"].shape
        assert (rollout >= 0).all()
        # Two layers: a quarter of what a patch is made of has come by residual connections alone. What comes from the
        # class token and the registers is on no map.
        totals = rollout.sum(dim=(1, 2))
        assert ((totals > 0.25) & (totals < 1 + 1e-5)).all()

    @pytest.mark.slow
    def test_leaves_the_tower_as_it_was(self, architecture: tiny.Architecture) -> None:
        model, pixels = make(architecture), image()
        before = model.vision.model.config.to_dict(), model.vision.model.config._attn_implementation
        with torch.no_grad():
            expected = model.vision(model.normalised(pixels[None])).grid
            span_heatmaps(model, pixels, spans())
            assert torch.equal(model.vision(model.normalised(pixels[None])).grid, expected)
        assert (model.vision.model.config.to_dict(), model.vision.model.config._attn_implementation) == before
        assert not model.vision.model._forward_hooks


class TestRollout:
    def test_against_a_plain_loop(self) -> None:
        attentions = [torch.rand(2, 3, 5, 5, dtype=torch.float64).softmax(dim=-1) for _ in range(4)]
        rollout = attention_rollout(attentions)
        for row in range(2):
            expected = tower_reference.attention_rollout([attention[row].tolist() for attention in attentions])
            torch.testing.assert_close(rollout[row], torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(rollout.sum(dim=-1), torch.ones(2, 5, dtype=torch.float64))

    def test_of_the_patches_that_are_like_the_span(self) -> None:
        model, pixels, features = make(tiny.vit()), image(), spans()
        maps = span_heatmaps(model, pixels, features)
        encoder = model.vision.model
        encoder.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = encoder(model.normalised(pixels[None]), output_attentions=True).attentions
        rollout = torch.tensor(tower_reference.attention_rollout([attention[0].tolist() for attention in attentions]))
        for span in range(SPANS):
            similar = maps["similarity"][span].flatten().tolist()
            mean = sum(similar) / len(similar)
            weights = [max(0.0, value - mean) for value in similar]
            for patch, found in enumerate(maps["rollout"][span].flatten().tolist()):
                expected = sum(weight * rollout[1 + row, 1 + patch] for row, weight in enumerate(weights)) / sum(
                    weights
                )
                assert found == pytest.approx(float(expected), rel=1e-4)

    def test_attention_that_stays_where_it_is(self) -> None:
        identity = torch.eye(3).expand(1, 2, 3, 3)
        assert torch.equal(attention_rollout([identity, identity]), torch.eye(3)[None])

    def test_spans_differ(self) -> None:
        rollout = span_heatmaps(make(tiny.vit()), image(), spans())["rollout"]
        assert not torch.allclose(rollout[0], rollout[1])


class TestModels:
    @pytest.mark.parametrize("pool", ["mean", "max", "both"])
    def test_pooling_of_regions(self, pool: str) -> None:
        model = make_model(regions=RegionSettings(pool=pool)).eval()
        assert span_heatmaps(model, image(), spans())["similarity"].shape == (SPANS, 4, 4)

    def test_shared_projections(self) -> None:
        model = make_model(projections="shared").eval()
        assert span_heatmaps(model, image(), spans()).keys() == {"similarity", "rollout"}

    def test_crops_by_their_class_token_say_nothing_of_patches(self) -> None:
        model = make_model(regions=RegionSettings(source="crop")).eval()
        assert span_heatmaps(model, image(), spans()) == {}

    def test_crops_by_their_mean(self) -> None:
        model = make_model(regions=RegionSettings(source="crop", pool="both"), pool="mean").eval()
        assert span_heatmaps(model, image(), spans()).keys() == {"similarity", "rollout"}

    def test_of_no_span(self) -> None:
        maps = span_heatmaps(make(tiny.vit()), image(), torch.zeros(0, DIM))
        assert {name: values.shape for name, values in maps.items()} == {
            "similarity": (0, 4, 4),
            "rollout": (0, 4, 4),
        }

    def test_warns_of_nothing(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            span_heatmaps(make(tiny.dinov2()), image(), spans())

    def test_an_error_leaves_the_tower_as_it_was(self) -> None:
        model = make(tiny.vit())
        before = model.vision.model.config._attn_implementation
        with pytest.raises(RuntimeError):
            span_heatmaps(model, torch.zeros(2, 8, 8, dtype=torch.uint8), spans())
        assert model.vision.model.config._attn_implementation == before
        assert not model.vision.model.config.output_attentions


class TestUnitRange:
    def test_lowest_and_highest_of_each(self) -> None:
        maps = torch.tensor([[[1.0, 3.0], [2.0, 1.5]], [[-1.0, 0.0], [-0.5, -0.25]]])
        expected = torch.tensor([[[0.0, 1.0], [0.5, 0.25]], [[0.0, 1.0], [0.5, 0.75]]])
        assert torch.equal(to_unit_range(maps), expected)

    def test_a_flat_map(self) -> None:
        assert torch.equal(to_unit_range(torch.full((1, 2, 2), 0.3)), torch.zeros(1, 2, 2))


class TestHeaviestBox:
    """Against a loop over all rectangles."""

    @pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3), (6, 6)])
    def test_has_the_largest_sum(self, shape: tuple[int, int]) -> None:
        for _ in range(5):
            heat = torch.randn(shape)
            rows, columns = shape
            level = (heat.mean() + heat.max()) / 2
            sums = {
                (x0, y0, x1, y1): float((heat[y0:y1, x0:x1].double() - level).sum())
                for y0 in range(rows)
                for y1 in range(y0 + 1, rows + 1)
                for x0 in range(columns)
                for x1 in range(x0 + 1, columns + 1)
            }
            best = max(sums, key=lambda box: sums[box])
            scale = torch.tensor([columns, rows, columns, rows])
            torch.testing.assert_close(heaviest_box(heat) * scale, torch.tensor(best).float())

    def test_of_one_hot_patch(self) -> None:
        heat = torch.zeros(4, 4)
        heat[1, 2] = 1
        assert heaviest_box(heat).tolist() == [0.5, 0.25, 0.75, 0.5]

    def test_of_a_block(self) -> None:
        heat = torch.zeros(4, 4)
        heat[1:3, 1:4] = 1
        assert heaviest_box(heat).tolist() == [0.25, 0.25, 1.0, 0.75]

    def test_of_a_constant_map_is_one_patch(self) -> None:
        assert heaviest_box(torch.full((2, 4), 0.3)).tolist() == [0.0, 0.0, 0.25, 0.5]


def test_similarity_maps_are_those_of_the_heatmaps() -> None:
    model, pixels, features = make(tiny.vit()), image(), spans()
    maps = similarity_maps(model, pixels, features)
    torch.testing.assert_close(maps, span_heatmaps(model, pixels, features)["similarity"], rtol=0, atol=1e-6)


class TestFusionMaps:
    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    def test_shares_of_the_attention_of_a_sentence_and_of_its_spans(self, kind: str) -> None:
        maps = fusion_maps(make_model(fusion=fused(kind)).eval(), collate(make_sample(0)))
        assert maps is not None
        assert maps.sentence.shape == (4, 4)
        assert maps.spans.shape == (2, 4, 4)
        torch.testing.assert_close(maps.spans.sum(dim=(1, 2)), torch.ones(2))
        torch.testing.assert_close(maps.sentence.sum(), torch.ones(()))
        assert (maps.gates is not None) == (kind == "gated")
        assert maps.regions.shape == (3, collate(make_sample(0)).token_ids.shape[1])
        torch.testing.assert_close(maps.regions.sum(dim=1), torch.ones(3))

    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    def test_a_region_pays_no_attention_to_padding(self, kind: str) -> None:
        model = make_model(fusion=fused(kind)).eval()
        alone = fusion_maps(model, collate(make_sample(0, spans=1)))
        padded = fusion_maps(model, collate(make_sample(0, spans=1), make_sample(1, spans=4))[:1])
        assert alone is not None
        assert padded is not None
        length = alone.regions.shape[1]
        assert padded.regions.shape[1] > length
        torch.testing.assert_close(padded.regions[:, :length], alone.regions)
        assert not padded.regions[:, length:].any()

    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    def test_a_pair_without_regions(self, kind: str) -> None:
        batch = collate(make_sample(0, regions=0))
        maps = fusion_maps(make_model(fusion=fused(kind)).eval(), batch)
        assert maps is not None
        assert maps.regions.shape == (0, batch.token_ids.shape[1])

    def test_a_span_is_the_mean_of_its_tokens(self) -> None:
        batch, model = collate(make_sample(0)), make_model(fusion=fused("gated")).eval()
        maps = fusion_maps(model, batch)
        assert maps is not None
        assert maps.gates is not None
        seen = model.fusion.seen(model(batch), batch)  # type: ignore[union-attr]
        for span, members in enumerate(batch.span_tokens[0].tolist()):
            tokens = [token for token, member in enumerate(members) if member]
            attention = [layer.attention[0, token] for layer in seen for token in tokens]
            gates = [layer.gate[0, token] for layer in seen for token in tokens]
            torch.testing.assert_close(maps.spans[span].flatten(), torch.stack(attention).mean(dim=0))
            torch.testing.assert_close(maps.gates[span], torch.stack(gates).mean())

    def test_none_without_fusion(self) -> None:
        assert fusion_maps(make_model().eval(), collate(make_sample(0))) is None
