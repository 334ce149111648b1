"""Features of sentences, images, spans and regions: their shapes, and that padding and company change nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from dual_encoders import REGIONS, SPANS, encode, encoder, every_source, repeats, samples
from encoders import collate, make_model, make_sample, with_views
from spanbox.errors import ConfigError
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder, SpanSettings
from spanbox.models.preprocessing import Preprocessing


def without_gradient(module: torch.nn.Module) -> list[str]:
    """Names of the parameters without a gradient. A key's bias shifts all logits of a softmax alike: its is zero."""
    missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    zero = [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.any()]
    return [*missing, *(name for name in zero if not name.endswith("key.bias"))]


class TestFeatures:
    @every_source
    def test_shapes_and_unit_length(self, spans: str, regions: str) -> None:
        batch = collate(*samples())
        features = encode(encoder(spans, regions), batch)
        assert features.text.shape == features.image.shape == (5, 8)
        assert features.spans.shape == features.regions.shape == (5, 5, 8)
        for name, tensor in features.named_tensors():
            assert tensor.dtype == torch.float32, name
            torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]))

    @every_source
    def test_float64(self, spans: str, regions: str) -> None:
        model, batch = encoder(spans, regions), collate(*samples())
        single, double = encode(model, batch), encode(model.double(), batch)
        for name, tensor in double.named_tensors():
            assert tensor.dtype == torch.float64, name
            torch.testing.assert_close(tensor.float(), getattr(single, name))

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
    @pytest.mark.slow
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
    @pytest.mark.slow
    @every_source
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_every_parameter_gets_one(self, spans: str, regions: str, dtype: torch.dtype) -> None:
        model, batch = make_model(spans=SPANS[spans], regions=REGIONS[regions]).to(dtype), collate(*samples())
        objective = Objective(LossSettings())
        objective(model(batch), batch).total.backward()
        assert without_gradient(model) == []
        assert without_gradient(objective) == []

    @pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch uses it itself
def test_compiled_towers() -> None:
    """Same features and gradients, whatever the number of texts and tokens; the weights keep their names."""
    model, compiled = make_model(spans=SPANS["own"]), make_model(spans=SPANS["own"])
    compiled.load_state_dict(model.state_dict())
    compiled.compile_towers()
    assert compiled.state_dict().keys() == model.state_dict().keys()
    for batch in (repeats(), collate(*samples()[:4])):
        features = []
        for each in (model, compiled):
            each.zero_grad()
            features.append(each(batch))
            Objective(LossSettings())(features[-1], batch).total.backward()
        torch.testing.assert_close(*(dict(each.named_tensors()) for each in features), rtol=0, atol=1e-4)
        for (name, expected), actual in zip(model.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, rtol=0, atol=1e-4, msg=name)


class TestViews:
    def test_each_view_is_the_image_without_what_it_hides(self) -> None:
        model, batch = encoder().double(), with_views(collate(*samples()))
        found = encode(model, batch).views
        assert found is not None
        for pair, view in (batch.view_sentence != 0).nonzero().tolist():  # type: ignore[operator]
            visible = (~batch.view_hidden[pair, view]).flatten().nonzero().T  # type: ignore[index]
            pixels = batch.pixels[pair : pair + 1].double() / 255.0
            with torch.no_grad():
                pooled = model.vision((pixels - model.mean) / model.std, visible).pooled
                expected = torch.nn.functional.normalize(model.image_projection(pooled), dim=-1)
            torch.testing.assert_close(found[pair, view], expected[0])

    def test_views_that_tell_nothing_are_not_encoded(self) -> None:
        model, batch = encoder(), with_views(collate(*samples()))
        rows = []
        model.vision.register_forward_hook(lambda module, inputs, output: rows.append(len(output.pooled)))
        found = encode(model, batch).views
        assert found is not None
        used = batch.view_sentence != 0
        assert sum(rows) == len(batch) + int(used.sum())  # type: ignore[union-attr]
        assert not found[~used].any()  # type: ignore[operator]

    def test_filled_views_are_images(self) -> None:
        model, batch = encoder(), with_views(collate(*samples()), filled=True)
        found = encode(model, batch).views
        assert found is not None
        assert batch.view_pixels is not None
        for pair, view in (batch.view_sentence != 0).nonzero().tolist():  # type: ignore[operator]
            alone = replace(collate(*samples())[pair : pair + 1], pixels=batch.view_pixels[pair, view][None])
            torch.testing.assert_close(found[pair, view], encode(model, alone).image[0], rtol=1e-4, atol=1e-5)

    def test_no_view_tells_anything(self) -> None:
        batch = with_views(collate(*samples()))
        zeros = torch.zeros_like
        batch = replace(batch, view_sentence=zeros(batch.view_sentence), view_spans=zeros(batch.view_spans))
        found = encode(encoder(), batch).views
        assert found is not None
        assert not found.any()

    def test_without_views_there_are_no_features_of_them(self) -> None:
        assert encode(encoder(), collate(*samples())).views is None


class TestSharedProjections:
    def model(self, **settings: Any) -> DualEncoder:
        return make_model(projections="shared", **settings)

    def test_a_span_of_all_tokens_is_its_sentence(self) -> None:
        """With mean pooling, whole and part differ in nothing but their extent."""
        torch.manual_seed(0)
        model = make_model(projections="shared", pool="mean").eval()
        batch = collate(make_sample(0))
        everything = batch.token_mask[:, None].expand_as(batch.span_tokens)
        features = encode(model, replace(batch, span_tokens=everything))
        torch.testing.assert_close(features.spans[0, 0], features.text[0])
        assert not [name for name in model.state_dict() if name.startswith(("span_", "region_"))]

    def test_every_parameter_has_a_gradient(self) -> None:
        model = self.model()
        features = model(collate(make_sample(0), make_sample(1)))
        torch.cat([feature.flatten() for feature in features.tensors()]).sum().backward()
        assert without_gradient(model) == []

    def test_parts_that_are_wider_than_the_whole_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^model\.projections: shared needs parts as wide as the whole"):
            self.model(spans=SpanSettings(pool="both"))


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
