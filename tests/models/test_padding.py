"""Pictures beside padding: only their patches count, in the tower, the pooled state, the regions and the heatmaps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import geometry_reference
import tiny
from encoders import collate, fused, make_model, make_sample, padded, with_views
from spanbox.geometry import nearest_picture_cells, picture_cells
from spanbox.models.dual_encoder import DualEncoder, RegionSettings
from spanbox.models.heatmaps import fusion_maps, similarity_maps, span_heatmaps
from spanbox.models.inputs import Images, by_picture
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import VisionTowerSettings
from spanbox.models.towers import VisionTower, build_vision_tower
from spanbox.structures import Batch, Features, Sample

SIDE, PATCH, GRID = tiny.IMAGE_SIZE, 8, 4
SIZES = [(32, 16), (32, 20), (13, 32), (32, 32), (32, 1), (24, 32)]  # with whole patches and without
ALIGNED = [(32, 16), (24, 32), (32, 8), (32, 32)]
TYPES = pytest.mark.parametrize("architecture", tiny.VISION_ARCHITECTURES, ids=lambda one: one["model_type"])


def padded_sample(number: int, size: tuple[int, int], **parts: int) -> Sample:
    """A sample with regions within its picture."""
    return padded(make_sample(number, **parts), size, *SIZES)


def padded_batch(sizes: list[tuple[int, int]] = SIZES) -> Batch:
    return collate(*[padded_sample(number, size, spans=number % 3 + 1) for number, size in enumerate(sizes)])


def repainted(batch: Batch, seed: int = 1) -> Batch:
    """The batch with other pixels in the padding of images, crops and views."""
    generator = torch.Generator().manual_seed(seed)

    def paint(pixels: Tensor, content: Tensor) -> Tensor:
        noise = torch.randint(0, 256, pixels.shape, generator=generator).to(torch.uint8)
        inside = picture_cells(content.reshape(-1, 2), 1, SIDE).reshape(*pixels.shape[:-3], 1, SIDE, SIDE)
        return torch.where(inside, pixels, noise)

    assert batch.content is not None
    assert batch.crops is not None
    assert batch.crop_content is not None
    views = batch.view_pixels
    content = batch.content[:, None].expand(-1, 0 if views is None else views.shape[1], -1)
    return replace(
        batch,
        pixels=paint(batch.pixels, batch.content),
        crops=paint(batch.crops, batch.crop_content),
        view_pixels=None if views is None else paint(views, content),
    )


@torch.no_grad()
def encode(model: DualEncoder, batch: Batch) -> Features:
    features: Features = model(batch)
    return features


def assert_same(found: Features, expected: Features) -> None:
    assert {name for name, _ in found.named_tensors()} == {name for name, _ in expected.named_tensors()}
    for name, tensor in expected.named_tensors():
        torch.testing.assert_close(getattr(found, name), tensor, msg=lambda text, name=name: f"{name}: {text}")


def content_alone(tower: VisionTower, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Patch states (h, w, H) and pooled state of a ViT that is given a picture (3, H, W) of whole patches and nothing
    else, its patches at their places on the square."""
    model: Any = tower.model
    rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    patches = model.embeddings.patch_embeddings.projection(pixels[None])[0]  # (H, h, w)
    positions = model.embeddings.position_embeddings[0]
    tokens = [
        patches[:, row, column] + positions[1 + row * GRID + column] for row in range(rows) for column in range(columns)
    ]
    states = torch.stack([model.embeddings.cls_token[0, 0] + positions[0], *tokens])[None]
    for layer in model.layers:
        states = layer(states)
    states = model.layernorm(states)[0]
    return states[1:].reshape(rows, columns, -1), states[0]


class TestCells:
    @pytest.mark.parametrize("size", SIZES)
    def test_the_cells_of_a_picture_are_those_that_it_touches(self, size: tuple[int, int]) -> None:
        mask = picture_cells(torch.tensor([size]), PATCH, GRID)[0]
        for row in range(GRID):
            for column in range(GRID):
                assert mask[row, column] == (row * PATCH < size[1] and column * PATCH < size[0])

    @pytest.mark.parametrize("size", SIZES)
    def test_the_nearest_cell_is_the_nearest_by_distance(self, size: tuple[int, int]) -> None:
        inside = picture_cells(torch.tensor([size]), PATCH, GRID)[0].nonzero().tolist()
        nearest = nearest_picture_cells(torch.tensor([size]), PATCH, GRID)[0].tolist()
        for place, found in enumerate(nearest):
            row, column = divmod(place, GRID)
            distance = [abs(row - y) + abs(column - x) for y, x in inside]
            assert distance[found] == min(distance)


class TestGroups:
    def test_images_are_grouped_by_the_patches_of_their_pictures(self) -> None:
        batch = padded_batch()
        groups, rows = by_picture(Images(batch.pixels, content=batch.content), PATCH)
        assert [None if group.kept is None else group.kept.shape[1] for group in groups] == [4, 8, 12, None]
        joined = torch.cat([group.pixels for group in groups])
        assert rows is not None
        assert torch.equal(joined[rows], batch.pixels)

    def test_without_padding_nothing_is_grouped(self) -> None:
        images = Images(collate(make_sample(0)).pixels)
        groups, rows = by_picture(images, PATCH)
        assert groups == [images]
        assert rows is None

    def test_no_images(self) -> None:
        nothing = Images(torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8), content=torch.zeros(0, 2).long())
        groups, rows = by_picture(nothing, PATCH)
        assert [len(group) for group in groups] == [0]
        assert rows is None

    def test_equal_pixels_with_and_without_padding_have_different_keys(self) -> None:
        """A picture whose lower half is grey is not one beside padding."""
        pixels = torch.full((2, 3, SIDE, SIDE), 128, dtype=torch.uint8)
        keys = Images(pixels, content=torch.tensor([(32, 16), (32, 32)])).keys()
        assert keys is not None
        assert len(set(keys)) == 2


class TestViT:
    @pytest.mark.parametrize("size", ALIGNED)
    def test_the_features_are_those_of_the_tower_on_the_picture_alone(self, size: tuple[int, int]) -> None:
        model = make_model().eval()
        batch = repainted(collate(padded_sample(0, size, spans=2, regions=3)))
        features = encode(model, batch)
        with torch.no_grad():
            pixels = model.normalised(batch.pixels[0, :, : size[1], : size[0]])
            grid, pooled = content_alone(model.vision, pixels)
            image = normalize(model.image_projection(pooled), dim=0)
            of_picture = batch.regions * SIDE / torch.tensor([*size, *size])
            bins = geometry_reference.roi_align(grid[None], of_picture, 2, 2)[0].mean(dim=(1, 2))
            regions = model.project_regions(bins.to(pooled.dtype))
        torch.testing.assert_close(features.image[0], image)
        torch.testing.assert_close(features.regions[0], regions, rtol=1e-4, atol=1e-5)

    def test_a_picture_that_fills_the_square_is_as_without_padding(self) -> None:
        model = make_model().eval()
        filled = collate(*[replace(padded_sample(number, (SIDE, SIDE)), crop_content=None) for number in range(3)])
        plain = collate(*[make_sample(number) for number in range(3)])
        assert_same(encode(model, filled), encode(model, plain))

    def test_the_cost_is_that_of_the_patches_of_the_picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, seen = make_model().eval(), []
        monkeypatch.setattr(
            model.vision.model.layers[0],
            "forward",
            lambda states, *args, **kwargs: (seen.append(tuple(states.shape[:2])), states)[1],
        )
        encode(model, padded_batch([(32, 8), (32, 16), (8, 32)]))
        assert seen == [(2, 1 + 4), (1, 1 + 8)]


class TestEveryTower:
    @pytest.mark.slow
    @TYPES
    def test_nothing_depends_on_the_padding_or_on_the_company(self, architecture: dict[str, Any]) -> None:
        torch.manual_seed(0)
        model = make_model().eval()
        tower = build_vision_tower(vision_settings(architecture)).eval()
        model.vision = tower
        images = by_picture_states(model, tower, padded_batch())
        again = by_picture_states(model, tower, repainted(padded_batch()))
        for number, size in enumerate(SIZES):
            alone = by_picture_states(model, tower, collate(padded_sample(number, size, spans=number % 3 + 1)))
            for found, repeated, single in zip(images, again, alone, strict=True):
                torch.testing.assert_close(found[number], repeated[number])
                torch.testing.assert_close(found[number], single[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    @TYPES
    def test_a_picture_without_padding_is_pooled_as_ever(self, architecture: dict[str, Any]) -> None:
        torch.manual_seed(0)
        tower = build_vision_tower(vision_settings(architecture)).eval()
        pixels = torch.randn(2, 3, 64, 64)
        cells = (64 // tower.stride) ** 2
        with torch.no_grad():
            plain, whole = tower(pixels), tower(pixels, torch.arange(cells).expand(2, -1))
        torch.testing.assert_close(whole.pooled, plain.pooled)
        torch.testing.assert_close(whole.grid.flatten(1, 2), plain.grid.flatten(1, 2))

    @pytest.mark.parametrize("pool", ["mean", "pooler"])
    @pytest.mark.parametrize("kind", ["mean", "max"])
    def test_convolutional_towers_pool_the_cells_of_the_picture(self, kind: str, pool: str) -> None:
        architecture = tiny.efficientnet(pooling_type=kind) if kind == "max" else tiny.convnext()
        settings = vision_settings(architecture).model_copy(update={"pool": pool})
        tower = build_vision_tower(settings).eval()
        pixels, kept = torch.randn(1, 3, 64, 64), [0, 1]
        with torch.no_grad():
            found = tower(pixels, torch.tensor([kept]))
            states = tower.model(pixels).last_hidden_state[0].flatten(1).T
            norm = getattr(tower.model, "layernorm", torch.nn.Identity())
            chosen = [states[cell] for cell in kept]
            if pool == "mean":
                expected = sum(norm(cell) for cell in chosen) / len(kept)
            elif kind == "max":
                expected = torch.maximum(*chosen)
            else:
                expected = norm(sum(chosen) / len(kept))
        torch.testing.assert_close(found.pooled[0], expected)


def vision_settings(architecture: dict[str, Any]) -> VisionTowerSettings:
    return VisionTowerSettings(architecture=architecture, freeze="all")


def by_picture_states(model: DualEncoder, tower: VisionTower, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pooled states (B, P) and regions (B, R, H) of the images of a batch, whose tower may be of another width."""
    groups, rows = by_picture(Images(batch.pixels, batch.regions, content=batch.content), tower.stride)
    with torch.no_grad():
        states = [model.encode_images(group) for group in groups]
    pooled = torch.cat([one.pooled for one in states])
    regions = torch.cat([one.regions for one in states if one.regions is not None])
    return pooled[rows], regions[rows]


class TestFeatures:
    @pytest.mark.slow
    @pytest.mark.parametrize("regions", ["roi_align", "crop"])
    @pytest.mark.parametrize("filled", [True, False])
    def test_images_crops_and_views_do_not_depend_on_the_padding(self, regions: str, *, filled: bool) -> None:
        model = make_model(regions=RegionSettings.model_validate({"source": regions})).eval()
        batch = padded_views(filled=filled)
        features = encode(model, batch)
        assert features.views is not None
        assert_same(encode(model, repainted(batch)), features)

    @pytest.mark.parametrize("kind", ["gated", "cross_attention", "conditioned_pooling"])
    def test_fused_scores_do_not_see_the_padding(self, kind: str) -> None:
        """Neither its pixels nor the copies of the border that stand in its places."""
        model = make_model(fusion=fused(kind)).eval()
        assert model.fusion is not None
        batch = padded_batch()
        features = encode(model, batch)
        assert features.patches is not None
        assert batch.content is not None
        shown = picture_cells(batch.content, PATCH, GRID).flatten(1)[:, :, None]
        changed = replace(features, patches=torch.where(shown, features.patches, 9.0))
        places = torch.arange(len(batch))
        with torch.no_grad():
            scores = [
                model.fusion.pair_scores(one, batch.targets, places, places.roll(1)) for one in (features, changed)
            ]
        torch.testing.assert_close(*scores)


def padded_views(*, filled: bool) -> Batch:
    """Views that hide the padding too, as they are drawn."""
    batch = with_views(padded_batch(), filled=filled)
    assert batch.content is not None
    assert batch.view_hidden is not None
    hidden = torch.zeros(len(batch), 4, GRID, GRID, dtype=torch.bool)
    hidden[:, :, 0, 1] = True
    return replace(batch, view_hidden=hidden | ~picture_cells(batch.content, PATCH, GRID)[:, None])


class TestHeatmaps:
    @pytest.mark.parametrize("size", ALIGNED)
    def test_the_maps_are_of_the_patches_of_the_picture(self, size: tuple[int, int]) -> None:
        model = make_model().eval()
        sample = padded_sample(0, size)
        spans = normalize(torch.randn(2, 8), dim=1)
        maps = span_heatmaps(model, sample.pixels, spans, size)
        assert set(maps) == {"similarity", "rollout"}
        with torch.no_grad():
            pixels = model.normalised(sample.pixels[:, : size[1], : size[0]])
            grid, _ = content_alone(model.vision, pixels)
            expected = torch.einsum("kd,hwd->khw", spans, model.project_regions(grid))
        torch.testing.assert_close(maps["similarity"], expected, rtol=1e-4, atol=1e-5)
        assert maps["rollout"].shape == expected.shape

    def test_a_part_of_a_patch_is_that_part_of_the_map(self) -> None:
        """Two and a half rows of patches become three rows of equal height, read between the centres of the patches."""
        model = make_model().eval()
        sample, spans = padded_sample(0, (32, 20)), normalize(torch.randn(1, 8), dim=1)
        found = similarity_maps(model, sample.pixels, spans, (32, 20))
        blank = replace(sample, pixels=sample.pixels.clone())
        blank.pixels[:, 20:] = 127  # as near to the mean colour as a pixel can be
        whole = similarity_maps(model, blank.pixels, spans, (32, 24))
        assert found is not None
        assert whole is not None
        rows = [whole[0, 0], 0.25 * whole[0, 0] + 0.75 * whole[0, 1], 5 / 12 * whole[0, 1] + 7 / 12 * whole[0, 2]]
        torch.testing.assert_close(found[0], torch.stack(rows), rtol=0, atol=0.01)
        assert (found[0] - whole[0]).abs().max() > 0.05

    @pytest.mark.parametrize("kind", ["cross_attention", "conditioned_pooling"])
    def test_the_fusion_attends_to_the_picture_alone(self, kind: str) -> None:
        model = make_model(fusion=fused(kind)).eval()
        batch = collate(padded_sample(0, (32, 16), spans=2))
        maps = fusion_maps(model, batch)
        assert maps is not None
        assert maps.sentence.shape == (2, 4)
        torch.testing.assert_close(maps.sentence.sum(), torch.tensor(1.0))
        assert torch.equal(fusion_maps(model, repainted(batch)).spans, maps.spans)  # type: ignore[union-attr]


def test_preprocessing_of_padding_is_the_mean_colour() -> None:
    model = make_model()
    model = DualEncoder(model.text, model.vision, Preprocessing(image_size=SIDE, mean=(0.4, 0.5, 0.6)), model.settings)
    pixels = torch.full((1, 3, SIDE, SIDE), 200, dtype=torch.uint8)
    values = model.normalised(pixels, torch.tensor([(32, 20)]))
    assert torch.equal(values[:, :, :20], model.normalised(pixels)[:, :, :20])
    assert not values[:, :, 20:].any()
