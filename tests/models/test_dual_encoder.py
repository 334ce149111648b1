"""Features of sentences, images, spans and regions: their shapes, and that padding and company change nothing."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from encoders import collate, make_model, make_sample
from spanbox.errors import ConfigError
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder, RegionSettings, SpanSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.structures import Batch, Features, Sample

SPANS = {
    "sentence": SpanSettings(source="sentence"),
    "sentence-both": SpanSettings(source="sentence", pool="both"),
    "own": SpanSettings(source="own"),
    "own-max": SpanSettings(source="own", pool="max"),
}
REGIONS = {
    "roi_align": RegionSettings(source="roi_align"),
    "roi_align-both": RegionSettings(source="roi_align", pool="both", output_size=3),
    "crop": RegionSettings(source="crop"),
}
every_source = pytest.mark.parametrize(
    ("spans", "regions"),
    [("sentence", "roi_align"), ("sentence-both", "roi_align-both"), ("own", "crop"), ("own-max", "roi_align")],
)


def encoder(spans: str = "sentence", regions: str = "roi_align") -> DualEncoder:
    return make_model(spans=SPANS[spans], regions=REGIONS[regions]).eval()


@torch.no_grad()
def encode(model: DualEncoder, batch: Batch) -> Features:
    features: Features = model(batch)
    return features


def without_gradient(module: torch.nn.Module) -> list[str]:
    """Names of the parameters without a gradient. A key's bias shifts all logits of a softmax alike: its is zero."""
    missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    zero = [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.any()]
    return [*missing, *(name for name in zero if not name.endswith("key.bias"))]


def samples() -> list[Sample]:
    """Different numbers of spans and regions, none among them, and sentences of different lengths."""
    return [
        make_sample(0, 2, 3),
        make_sample(1, 0, 1),
        make_sample(2, 5, 5),
        make_sample(3, 1, 0),
        make_sample(4, 0, 0),
    ]


class TestFeatures:
    @every_source
    def test_shapes_and_unit_length(self, spans: str, regions: str) -> None:
        batch = collate(*samples())
        features = encode(encoder(spans, regions), batch)
        assert features.text.shape == features.image.shape == (5, 8)
        assert features.spans.shape == features.regions.shape == (5, 5, 8)
        for field in fields(Features):
            tensor = getattr(features, field.name)
            assert tensor.dtype == torch.float32, field.name
            torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]))

    @every_source
    def test_float64(self, spans: str, regions: str) -> None:
        model, batch = encoder(spans, regions), collate(*samples())
        single, double = encode(model, batch), encode(model.double(), batch)
        for field in fields(Features):
            assert getattr(double, field.name).dtype == torch.float64, field.name
            torch.testing.assert_close(getattr(double, field.name).float(), getattr(single, field.name))

    @every_source
    def test_half_precision_towers_give_float32_features(self, spans: str, regions: str) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            features = encode(encoder(spans, regions), collate(*samples()))
        assert {tensor.dtype for _, tensor in features.named_tensors()} == {torch.float32}

    def test_a_span_is_its_tokens_and_nothing_else(self) -> None:
        """Two spans with the same tokens are one; another span of the sentence differs."""
        batch = collate(make_sample(0, 2, 1))
        twice = replace(
            batch,
            span_tokens=batch.span_tokens[:, [0, 1, 0]],
            span_identity=torch.tensor([[1, 2, 3]]),
            own_token_ids=None,
            own_token_mask=None,
        )
        (spans,) = encode(encoder(), twice).spans
        assert torch.equal(spans[0], spans[2])
        assert not torch.allclose(spans[0], spans[1])

    def test_own_spans_do_not_see_their_sentence(self) -> None:
        model, sample = encoder("own"), make_sample(0, 2, 1)
        ahead = "the teapot and "
        moved = replace(
            sample,
            text=ahead + sample.text,
            spans=tuple((start + len(ahead), end + len(ahead)) for start, end in sample.spans),
        )
        torch.testing.assert_close(encode(model, collate(sample)).spans, encode(model, collate(moved)).spans)
        in_context = encoder("sentence")
        difference = encode(in_context, collate(sample)).spans - encode(in_context, collate(moved)).spans
        assert difference.abs().max() > 1e-3

    def test_crops_are_read_and_not_the_boxes(self) -> None:
        model, batch = encoder(regions="crop"), collate(make_sample(0))
        elsewhere = replace(batch, regions=batch.regions / 2)
        assert torch.equal(encode(model, batch).regions, encode(model, elsewhere).regions)
        assert batch.crops is not None
        other = encode(model, replace(batch, crops=255 - batch.crops)).regions
        assert (encode(model, batch).regions - other).abs().max() > 1e-3

    def test_a_crop_of_the_whole_image_is_encoded_like_the_image(self) -> None:
        model, sample = encoder(regions="crop"), make_sample(0, 1, 1)
        model.region_projection.load_state_dict(model.image_projection.state_dict())
        features = encode(model, collate(replace(sample, crops=sample.pixels[None])))
        torch.testing.assert_close(features.regions[:, 0], features.image)


class TestPaddingAndCompany:
    @every_source
    @pytest.mark.parametrize("row", range(5))
    def test_a_sample_alone_and_among_others(self, spans: str, regions: str, row: int) -> None:
        model = encoder(spans, regions)
        sample = samples()[row]
        alone, among = encode(model, collate(sample)), encode(model, collate(*samples()))
        close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(alone.text[0], among.text[row], **close)
        torch.testing.assert_close(alone.image[0], among.image[row], **close)
        count_spans, count_regions = len(sample.spans), len(sample.regions)
        torch.testing.assert_close(alone.spans[0, :count_spans], among.spans[row, :count_spans], **close)
        torch.testing.assert_close(alone.regions[0, :count_regions], among.regions[row, :count_regions], **close)

    @pytest.mark.parametrize("regions", REGIONS)
    def test_all_regions_at_once_equal_region_by_region(self, regions: str) -> None:
        model, batch = encoder(regions=regions), collate(make_sample(0, 1, 4), make_sample(1, 1, 4))
        assert batch.crops is not None
        together = encode(model, batch).regions
        for column in range(4):
            only = slice(column, column + 1)
            one = replace(
                batch,
                regions=batch.regions[:, only],
                region_valid=batch.region_valid[:, only],
                links=batch.links[:, :, only],
                crops=batch.crops[:, only],
            )
            torch.testing.assert_close(encode(model, one).regions, together[:, only], rtol=0, atol=1e-5)

    @every_source
    def test_no_spans_and_no_regions(self, spans: str, regions: str) -> None:
        batch = collate(make_sample(0, 0, 0), make_sample(1, 0, 0))
        features = encode(encoder(spans, regions), batch)
        assert features.spans.shape == features.regions.shape == (2, 0, 8)
        assert torch.isfinite(features.text).all()

    @every_source
    def test_nothing_but_padding(self, spans: str, regions: str) -> None:
        """Spans and regions that are all padding give finite features, and finite gradients."""
        batch = collate(make_sample(0), make_sample(1))
        padding = replace(
            batch,
            span_identity=torch.full_like(batch.span_identity, -1),
            span_tokens=torch.zeros_like(batch.span_tokens),
            region_valid=torch.zeros_like(batch.region_valid),
            regions=torch.zeros_like(batch.regions),
            links=torch.zeros_like(batch.links),
        )
        model = encoder(spans, regions)
        losses = Objective(LossSettings())(model(padding), padding)
        assert losses.terms["fine"].item() == 0.0
        losses.total.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


class TestGradients:
    @every_source
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_every_parameter_gets_one(self, spans: str, regions: str, dtype: torch.dtype) -> None:
        model, batch = make_model(spans=SPANS[spans], regions=REGIONS[regions]).to(dtype), collate(*samples())
        objective = Objective(LossSettings())
        objective(model(batch), batch).total.backward()
        assert without_gradient(model) == []
        assert without_gradient(objective) == []

    @every_source
    @pytest.mark.parametrize("level", ["coarse", "fine"])
    def test_each_level_alone_reaches_all_of_both_towers(self, spans: str, regions: str, level: str) -> None:
        model, batch = make_model(spans=SPANS[spans], regions=REGIONS[regions]), collate(*samples())
        Objective(LossSettings())(model(batch), batch).terms[level].backward()
        assert without_gradient(model.text) == []
        assert without_gradient(model.vision) == []

    def test_an_unused_level_leaves_its_projections_alone(self) -> None:
        model, batch = make_model(), collate(*samples())
        objective = Objective(LossSettings.model_validate({"fine": {"weight": 0.0}}))
        objective(model(batch), batch).total.backward()
        untouched = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert untouched == {f"{kind}_projection.{part}" for kind in ("span", "region") for part in ("weight", "bias")}
        assert objective.fine_log_scale.grad is None


class TestPixels:
    def test_bytes_are_normalised_channel_by_channel(self) -> None:
        model = encoder()
        preprocessing = Preprocessing(image_size=tiny.IMAGE_SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
        model = DualEncoder(model.text, model.vision, preprocessing, model.settings).eval()
        batch = collate(make_sample(0))
        seen = []
        model.vision.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        encode(model, batch)
        for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
            expected = (batch.pixels[:, channel].double() / 255 - mean) / std
            torch.testing.assert_close(seen[0][:, channel].double(), expected, rtol=0, atol=1e-5)

    def test_they_are_no_part_of_the_weights(self) -> None:
        assert not {"mean", "std"} & encoder().state_dict().keys()


class TestPreprocessing:
    def write(self, folder: Path, values: Any, name: str = "preprocessor_config.json") -> Path:
        (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
        return folder

    def test_read_from_the_models_folder(self, tmp_path: Path) -> None:
        self.write(tmp_path, {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.25, 0.27], "do_resize": True})
        read = Preprocessing.from_model_folder(tmp_path, 224)
        assert read == Preprocessing(image_size=224, mean=(0.48, 0.45, 0.4), std=(0.26, 0.25, 0.27))

    def test_nested_in_a_processors_file(self, tmp_path: Path) -> None:
        values = {"image_processor": {"image_mean": [0.1, 0.1, 0.1], "image_std": [0.2, 0.2, 0.2]}}
        read = Preprocessing.from_model_folder(self.write(tmp_path, values, "processor_config.json"), 32)
        assert (read.mean, read.std) == ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))

    def test_one_half_where_nothing_is_said(self, tmp_path: Path) -> None:
        half = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        assert Preprocessing.from_model_folder(None, 32) == half
        assert Preprocessing.from_model_folder(tmp_path, 32) == half
        assert Preprocessing.from_model_folder(self.write(tmp_path, {"do_resize": True}), 32) == half

    @pytest.mark.parametrize(
        "values",
        [
            "{",
            "[1, 2]",
            "3",
            {"image_processor": [1]},
            {"image_mean": [0.5, 0.5]},
            {"image_std": "half"},
            {"image_std": [0.5, 0.0, 0.5]},
        ],
    )
    def test_damaged(self, values: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"preprocessor_config\.json: image_mean and image_std cannot be read"):
            Preprocessing.from_model_folder(self.write(tmp_path, values), 32)
