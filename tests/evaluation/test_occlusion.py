"""Hidden objects: which cells, which pixels, and how far scores fall, against one pair at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from banks import make_bank
from encoders import collate, make_model, make_sample
from spanbox.evaluation.occlusion import (
    Falls,
    Query,
    cells_elsewhere,
    draw_linked_spans,
    hide,
    measure_falls,
    object_cells,
    occlusion_outcomes,
)
from spanbox.models.dual_encoder import DualEncoder, RegionSettings
from spanbox.structures import Batch, Features, Sample

GRID = 4  # of the tiny towers


def small_boxes(number: int, spans: int = 2) -> Sample:
    """A sample whose regions leave half of the image free."""
    sample = make_sample(number, spans=spans)
    corner = 0.05 + 0.3 * torch.arange(len(sample.regions))[:, None]
    return replace(sample, regions=torch.cat([corner, corner, corner + 0.3, corner + 0.3], dim=1).clamp(max=1.0))


def batch_of(samples: list[Sample]) -> Batch:
    return collate(*samples)


def random_generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestObjectCells:
    def test_all_that_a_box_touches(self) -> None:
        cells = object_cells(torch.tensor([[0.1, 0.3, 0.3, 0.4]]), 4)
        assert cells.nonzero().tolist() == [[1, 0], [1, 1]]

    def test_of_several_boxes(self) -> None:
        cells = object_cells(torch.tensor([[0.0, 0.0, 0.25, 0.25], [0.75, 0.75, 1.0, 1.0]]), 4)
        assert cells.nonzero().tolist() == [[0, 0], [3, 3]]

    def test_the_whole_image(self) -> None:
        assert object_cells(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 4).all()


class TestElsewhere:
    @pytest.mark.parametrize("seed", range(20))
    def test_as_many_and_none_of_the_hidden(self, seed: int) -> None:
        hidden = torch.rand(6, 6) < 0.4
        elsewhere = cells_elsewhere(hidden, random_generator(seed))
        assert elsewhere is not None
        assert elsewhere.sum() == hidden.sum()
        assert not (elsewhere & hidden).any()

    def test_they_lie_together(self) -> None:
        hidden = torch.zeros(9, 9, dtype=torch.bool)
        hidden[:3, :3] = True
        for seed in range(20):
            elsewhere = cells_elsewhere(hidden, random_generator(seed))
            assert elsewhere is not None
            rows, columns = elsewhere.nonzero().unbind(dim=1)
            assert max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) <= 5

    def test_anywhere(self) -> None:
        hidden = torch.eye(4, dtype=torch.bool)
        met = torch.zeros(4, 4, dtype=torch.bool)
        for seed in range(50):
            elsewhere = cells_elsewhere(hidden, random_generator(seed))
            assert elsewhere is not None
            met |= elsewhere
        assert torch.equal(met, ~hidden)

    def test_exactly_half_is_left(self) -> None:
        hidden = torch.arange(16).reshape(4, 4) < 8
        elsewhere = cells_elsewhere(hidden, random_generator())
        assert elsewhere is not None
        assert torch.equal(elsewhere, ~hidden)

    def test_less_than_half_is_left(self) -> None:
        assert cells_elsewhere(torch.arange(16).reshape(4, 4) < 9, random_generator()) is None


class TestHiding:
    def test_pixels_in_the_mean_colour(self) -> None:
        sample = make_sample(0)
        hidden = torch.zeros(4, 4, dtype=torch.bool)
        hidden[1, 2] = True
        pixels = hide(sample, hidden).pixels
        mean = sample.pixels.double().mean(dim=(1, 2)).round()
        assert (pixels[:, 8:16, 16:24] == mean[:, None, None]).all()
        covered = torch.zeros(32, 32, dtype=torch.bool)
        covered[8:16, 16:24] = True
        assert torch.equal(pixels[:, ~covered], sample.pixels[:, ~covered])

    @pytest.mark.parametrize("margin", [0.0, 0.1])
    def test_crops_show_what_the_image_shows(self, margin: float) -> None:
        """Each pixel of a crop against the cell of the image in which its centre lies."""
        sample = make_sample(1)
        hidden = torch.rand(4, 4) < 0.5
        crops = hide(sample, hidden, margin).crops
        assert crops is not None
        assert sample.crops is not None
        mean = sample.pixels.double().mean(dim=(1, 2)).round()
        side = crops.shape[-1]
        for region, (x0, y0, x1, y1) in enumerate(sample.regions.tolist()):
            width, height = x1 - x0, y1 - y0
            x0, x1 = max(0.0, x0 - margin * width), min(1.0, x1 + margin * width)
            y0, y1 = max(0.0, y0 - margin * height), min(1.0, y1 + margin * height)
            for row in range(side):
                for column in range(side):
                    y = y0 + (y1 - y0) * (row + 0.5) / side
                    x = x0 + (x1 - x0) * (column + 0.5) / side
                    covered = hidden[int(y * 4), int(x * 4)]
                    expected = mean if covered else sample.crops[region, :, row, column]
                    assert crops[region, :, row, column].tolist() == expected.tolist()

    def test_without_regions(self) -> None:
        sample = make_sample(0, spans=0, regions=0)
        assert hide(sample, torch.ones(4, 4, dtype=torch.bool)).crops is not None

    def test_without_crops(self) -> None:
        assert hide(replace(make_sample(0), crops=None), torch.ones(4, 4, dtype=torch.bool)).crops is None


class TestFalls:
    @pytest.mark.slow
    @pytest.mark.parametrize("source", ["roi_align", "crop"])
    def test_against_one_image_at_a_time(self, source: str) -> None:
        model = make_model(regions=RegionSettings(source=source)).eval()  # type: ignore[arg-type]
        queries = [Query(small_boxes(number), entity) for number in range(3) for entity in range(2)]
        falls = measure_falls(model, batch_of, queries, GRID, seed=7)
        generator = random_generator(7)
        for row, (sample, entity) in enumerate(queries):
            hidden = object_cells(sample.regions[entity : entity + 1], GRID)
            elsewhere = cells_elsewhere(hidden, generator)
            assert elsewhere is not None
            whole = self.scores(model, sample, entity)
            for column, mask in enumerate((hidden, elsewhere)):
                scores = self.scores(model, hide(sample, mask), entity)
                assert float(falls.coarse[row, column]) == pytest.approx(whole[0] - scores[0], abs=1e-5)
                assert float(falls.fine[row, column]) == pytest.approx(whole[1] - scores[1], abs=1e-5)
        assert falls.image.tolist() == [query.sample.group for query in queries]
        assert falls.too_large == 0

    @staticmethod
    @torch.no_grad()
    def scores(model: DualEncoder, sample: Sample, entity: int) -> tuple[float, float]:
        features = model(collate(sample))
        return float(features.text[0] @ features.image[0]), float(
            features.spans[0, entity] @ features.regions[0, entity]
        )

    def test_a_model_that_looks_at_the_object_alone(self) -> None:
        """Its scores are 1 where the object's pixels are as they were, and 0 elsewhere."""
        sample = small_boxes(0, spans=1)
        x0, y0, x1, y1 = (32 * sample.regions[0]).long().tolist()
        seen = sample.pixels[:, y0:y1, x0:x1]

        def encode(batch: Batch) -> Features:
            whole = torch.tensor([torch.equal(pixels[:, y0:y1, x0:x1], seen) for pixels in batch.pixels]).float()
            ones = torch.ones(len(batch), 1)
            shape = len(batch), batch.span_identity.shape[1], 1
            regions = whole[:, None, None].expand(len(batch), batch.regions.shape[1], 1)
            return Features(text=ones, image=whole[:, None], spans=torch.ones(shape), regions=regions)

        falls = measure_falls(encode, batch_of, [Query(sample, 0)] * 5, GRID)
        for level in (falls.coarse, falls.fine):
            assert level.tolist() == [[1.0, 0.0]] * 5

    def test_the_best_of_several_boxes(self) -> None:
        sample = replace(small_boxes(0), links=torch.tensor([[True, True, False], [False, False, True]]))

        def encode(batch: Batch) -> Features:
            ones = torch.ones(len(batch), 1)
            fine = torch.tensor([[0.2], [0.6]]).expand(len(batch), 2, 1).clone()  # of the entity's two boxes
            fine[1::3] *= 0.5  # with the object hidden
            return Features(text=ones, image=ones, spans=torch.ones(len(batch), 1, 1), regions=fine)

        assert measure_falls(encode, batch_of, [Query(sample, 0)], GRID).fine.tolist() == [
            [pytest.approx(0.3), pytest.approx(0.0)]
        ]

    def test_an_object_that_fills_the_image_is_counted(self) -> None:
        large = replace(small_boxes(0), regions=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4))
        queries = [Query(large, 0), Query(small_boxes(1), 1), Query(large, 1)]
        falls = measure_falls(make_model().eval(), batch_of, queries, GRID)
        assert falls.too_large == 2
        assert falls.image.tolist() == [1]

    def test_no_entity(self) -> None:
        falls = measure_falls(make_model().eval(), batch_of, [], GRID)
        assert falls.coarse.shape == falls.fine.shape == (0, 2)
        assert falls.image.shape == (0,)

    def test_more_entities_than_are_encoded_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model().eval()
        queries = [Query(small_boxes(number), 0) for number in range(5)]
        expected = measure_falls(model, batch_of, queries, GRID)
        monkeypatch.setattr("spanbox.evaluation.occlusion.ENTITIES_AT_ONCE", 2)
        found = measure_falls(model, batch_of, iter(queries), GRID)
        torch.testing.assert_close(found.coarse, expected.coarse, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.fine, expected.fine, rtol=0, atol=1e-5)

    def test_other_regions_of_the_image_are_not_encoded(self) -> None:
        """Nothing limits their number, and each may have a crop."""
        sizes: list[tuple[int, ...]] = []

        def batches(samples: list[Sample]) -> Batch:
            batch = batch_of(samples)
            sizes.append((*batch.span_identity.shape, batch.regions.shape[1]))
            return batch

        many = make_sample(1, spans=2, regions=200)
        corner = torch.linspace(0.0, 0.4, 200)[:, None]
        many = replace(many, regions=torch.cat([corner, corner, corner + 0.3, corner + 0.3], dim=1))
        assert len(measure_falls(make_model().eval(), batches, [Query(many, 1)], GRID).coarse) == 1
        assert sizes == [(3, 1, 1)]

    def test_no_gradient(self) -> None:
        assert not measure_falls(make_model().eval(), batch_of, [Query(small_boxes(0), 0)], GRID).coarse.requires_grad


class TestDrawing:
    def links(self, spans: list[int]) -> Tensor:
        bank = make_bank(
            spans=torch.zeros(10, 1),
            span_pair=(0,) * 10,
            span_identity=tuple(range(10)),
            regions=torch.zeros(10, 1),
            region_pair=(0,) * 10,
            links=tuple((span, region) for span in spans for region in (span, 0)),
        )
        return draw_linked_spans(bank, 3)

    def test_all_where_they_are_few(self) -> None:
        assert self.links([7, 2, 4]).tolist() == [2, 4, 7]

    def test_some_where_they_are_many(self) -> None:
        drawn = self.links([9, 8, 7, 6, 2]).tolist()
        assert len(set(drawn)) == 3
        assert set(drawn) < {9, 8, 7, 6, 2}
        assert drawn == sorted(drawn) == self.links([9, 8, 7, 6, 2]).tolist()

    def test_nothing_linked(self) -> None:
        assert self.links([]).tolist() == []


def test_a_level_with_falls_that_are_not_finite_is_left_out() -> None:
    coarse, fine = torch.tensor([[0.3, 0.1], [0.2, 0.4]]).double(), torch.tensor([[0.3, 0.1], [float("nan"), 0.4]])
    outcomes = occlusion_outcomes(Falls(coarse, fine.double(), torch.tensor([0, 1]), 0))
    assert list(outcomes) == [f"occlusion.coarse.{name}" for name in ("object", "elsewhere", "share_larger")]
    assert outcomes["occlusion.coarse.share_larger"].values.tolist() == [1.0, 0.0]


def test_the_tiny_towers_have_this_grid() -> None:
    assert tiny.IMAGE_SIZE == 8 * GRID
