"""The model that `spanbox.load` returns: features as in an evaluation, whatever the form of texts, images and boxes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import miniature
import spanbox
from spanbox.api import Model
from spanbox.data.images import image_size, load_image
from spanbox.data.manifest import Manifest
from spanbox.errors import DataError
from spanbox.evaluation.extract import FeatureBank
from spanbox.wiring import train
from spanbox.wiring.embedding import embed, evaluation_dataset

VARIANTS = {
    "grid": [],
    "crops and own spans": ["model.regions.source=crop", "model.spans.source=own"],
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(miniature.demo_config(scenes, run, *VARIANTS[request.param]))
    return spanbox.load(run)


@pytest.fixture(scope="module")
def manifest(scenes: Path) -> Manifest:
    return Manifest(scenes / "test.jsonl")


@pytest.fixture(scope="module")
def bank(model: Model, manifest: Manifest) -> FeatureBank:
    """The features as an evaluation makes them; regions are the objects alone."""
    dataset = evaluation_dataset(model, manifest, objects_only=True)
    return embed(model, dataset)[0]


def spans_of(manifest: Manifest) -> list[list[tuple[int, int]]]:
    return [[(entity.start, entity.end) for entity in record.entities] for record in manifest]


def close(features: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(features), expected, rtol=0, atol=2e-6)


class TestFeatures:
    @pytest.mark.slow
    @pytest.mark.parametrize("batch_size", [1, 5, 32, np.int64(7)])
    def test_are_those_of_an_evaluation(
        self, model: Model, manifest: Manifest, bank: FeatureBank, batch_size: int
    ) -> None:
        images = [manifest.image_path(record) for record in manifest]
        texts = [record.text for record in manifest]
        objects = [[each.box for each in record.objects] for record in manifest]
        close(model.encode_texts(texts, batch_size=batch_size), bank.text)
        close(model.encode_images(images, batch_size=batch_size), bank.image)
        spans = model.encode_spans(texts, spans_of(manifest), batch_size=batch_size)
        order = [span for pair in range(len(manifest)) for span in own_order(bank, pair)]
        close(np.concatenate(spans), bank.spans[order])
        close(np.concatenate(model.encode_regions(images, objects, batch_size=batch_size)), bank.regions)

    @pytest.mark.slow
    def test_numpy_or_tensor(self, model: Model) -> None:
        array = model.encode_texts(["a boat", "a red kite"])
        tensor = model.encode_texts(["a boat", "a red kite"], convert_to_tensor=True)
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float32
        assert isinstance(tensor, torch.Tensor)
        assert array.shape == tensor.shape == (2, model.dim)
        np.testing.assert_array_equal(array, tensor.numpy())

    def test_a_single_input_has_no_axis_of_rows(self, model: Model, manifest: Manifest) -> None:
        record = manifest[0]
        path = manifest.image_path(record)
        box = record.objects[0].box
        assert model.encode_texts(record.text).shape == (model.dim,)
        assert model.encode_images(path).shape == (model.dim,)
        assert model.encode_spans(record.text, [(0, 3), (0, 5)]).shape == (2, model.dim)
        assert model.encode_regions(path, [box]).shape == (1, model.dim)

    def test_nothing_to_encode(self, model: Model, manifest: Manifest) -> None:
        path = manifest.image_path(manifest[0])
        assert model.encode_texts([]).shape == model.encode_images([]).shape == (0, model.dim)
        assert model.encode_spans([], []) == model.encode_regions([], []) == []
        assert model.encode_spans("a boat", []).shape == model.encode_regions(path, []).shape == (0, model.dim)

    def test_normalize(self, model: Model) -> None:
        unit, raw = (model.encode_texts(["a boat"], normalize=choice)[0] for choice in (True, False))
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(unit, raw / np.linalg.norm(raw), atol=1e-6)

    def test_images_in_any_form(self, model: Model, manifest: Manifest) -> None:
        path = manifest.image_path(manifest[0])
        image = load_image(path)
        pixels = np.array(image)
        forms = [path, str(path), path.as_uri(), image, pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
        features = model.encode_images(forms)
        for row in features[1:]:
            np.testing.assert_allclose(row, features[0], atol=1e-6)

    def test_a_file_url_may_have_escaped_characters(self, model: Model, manifest: Manifest, tmp_path: Path) -> None:
        path = shutil.copy(manifest.image_path(manifest[0]), tmp_path / "船 50%20#1.jpg")
        urls = [path.as_uri(), path.as_uri().replace("file://", "file://localhost")]
        for row in model.encode_images(urls):
            np.testing.assert_allclose(row, model.encode_images(path), atol=1e-6)

    def test_generators(self, model: Model, manifest: Manifest) -> None:
        path = manifest.image_path(manifest[0])
        texts, boxes, spans = ["a boat", "a red kite"], [(0, 0, 9, 9), (5, 5, 20, 30)], [(2, 6), (0, 6)]
        np.testing.assert_array_equal(model.encode_texts(iter(texts)), model.encode_texts(texts))  # type: ignore[arg-type]
        np.testing.assert_array_equal(model.encode_images(iter([path])), model.encode_images([path]))  # type: ignore[arg-type]
        np.testing.assert_array_equal(
            model.encode_regions(path, iter(boxes)),  # type: ignore[arg-type]
            model.encode_regions(path, boxes),
        )
        for form in (iter(spans), np.array(spans), torch.tensor(spans)):
            np.testing.assert_array_equal(
                model.encode_spans("a boat", form),  # type: ignore[arg-type]
                model.encode_spans("a boat", spans),
            )

    def test_an_orientation_is_applied_to_pictures_in_memory_too(
        self, model: Model, manifest: Manifest, tmp_path: Path
    ) -> None:
        image = load_image(manifest.image_path(manifest[0]))
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png", exif=exif)
        with Image.open(tmp_path / "turned.png") as turned:
            upright, file, memory = model.encode_images([image, tmp_path / "turned.png", turned])
        np.testing.assert_allclose(file, upright, atol=1e-6)
        np.testing.assert_allclose(memory, upright, atol=1e-6)

    def test_words_for_spans(self, model: Model) -> None:
        text = "a red boat and a blue boat，还有蝴蝶"
        spans, words = [(2, 10), (29, 31)], ["red boat", "蝴蝶"]
        assert [text[slice(*span)] for span in spans] == words
        np.testing.assert_array_equal(model.encode_spans(text, words), model.encode_spans(text, spans))

    def test_the_progress_is_shown(self, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
        model.encode_texts(["a boat"] * 3, show_progress_bar=True, batch_size=2)
        assert "encoding 3/3" in capsys.readouterr().err
        model.encode_texts(["a boat"] * 3)
        assert capsys.readouterr().err == ""

    def test_texts_beyond_the_tokens_are_cut(self, model: Model) -> None:
        long = "boat " * 200
        np.testing.assert_allclose(model.encode_texts(long), model.encode_texts(long[:5] * 190), atol=1e-6)


def own_order(bank: FeatureBank, pair: int) -> list[int]:
    """The spans of a pair in the order of its entities; a bank has those with a box first."""
    spans = (bank.span_pair == pair).nonzero()[:, 0].tolist()
    return sorted(spans, key=lambda span: int(bank.span_entity[span]))


class TestRefusals:
    @pytest.mark.parametrize(
        ("spans", "message"),
        [
            ([(0, 0)], r"span \(0, 0\): expected 0 <= start < end <= 6"),
            ([(-1, 2)], "expected 0 <= start"),
            ([(0, 7)], "expected 0 <= start"),
            ([(1, 2)], "only white space"),
            (["kite"], "'kite' does not occur in 'a boat'"),
            ([""], "does not occur"),
        ],
    )
    def test_spans(self, model: Model, spans: list[Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            model.encode_spans("a boat", spans)

    def test_a_span_beyond_the_tokens(self, model: Model) -> None:
        text = "boat " * 200 + "kite"
        if model.config.model.spans.source == "own":
            assert model.encode_spans(text, ["kite"]).shape == (1, model.dim)
        else:
            with pytest.raises(DataError, match=r"'kite': has no token among the first 64"):
                model.encode_spans(text, ["kite"])

    @pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 0, 5, 5), (9, 9, 5, 5), (500, 500, 600, 600)])
    def test_boxes_without_area(self, model: Model, manifest: Manifest, box: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match="1 of 2 boxes have no area within the image"):
            model.encode_regions(manifest.image_path(manifest[0]), [(0, 0, 9, 9), box])  # type: ignore[list-item]

    @pytest.mark.parametrize(
        "box", [(1, 2, 3), "0123", 3, None, (0, 0, 9, np.inf), (np.nan, 0, 9, 9), (0, 0, 10**400, 9)]
    )
    def test_a_box_that_is_none(self, model: Model, manifest: Manifest, box: Any) -> None:
        with pytest.raises(DataError, match="is not a box"):
            model.encode_regions(manifest.image_path(manifest[0]), [box])

    @pytest.mark.parametrize(
        "pixels",
        [
            *(np.zeros((4, 4, 3)), np.zeros((3, 8, 8), np.uint8), np.zeros(5, np.uint8), np.zeros((0, 4, 3), np.uint8)),
            *(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.bfloat16)),
        ],
    )
    def test_pixels_that_are_no_image(self, model: Model, pixels: Any) -> None:
        with pytest.raises(DataError, match=r"(is not|are not) an image; expected uint8"):
            model.encode_images(pixels)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ("https://example.com/boat.jpg", "only files are read; download the image"),
            ("", "the path of an image is empty"),
            (Image.new("RGB", (0, 4)), "an image of 0 x 4 pixels is empty"),
            (b"bytes", "is not a list of images"),
            (None, "None is not a list of images"),
        ],
    )
    def test_images_that_are_none(self, model: Model, image: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            model.encode_images(image)

    @pytest.mark.parametrize("texts", [None, 3, b"boat", [None], [3], [b"boat"], [["a", "boat"]], ["\udcff boat"]])
    def test_texts_that_are_none(self, model: Model, texts: Any) -> None:
        """A list in a list would be read as a pair of texts, broken UTF-8 in an argument has lone surrogates."""
        with pytest.raises(DataError, match=r"is not a text|is not a list of texts|is not a character"):
            model.encode_texts(texts)

    @pytest.mark.parametrize("text", [None, ["a boat"], "\ud800"])
    def test_a_text_that_is_none(self, model: Model, manifest: Manifest, text: Any) -> None:
        for read in (model.unknown_words, lambda text: model.ground(manifest.image_path(manifest[0]), text)):
            with pytest.raises(DataError, match=r"is not a text|is not a character"):
                read(text)

    @pytest.mark.parametrize(
        "spans", ["boat", None, 3, (2, 6), [3], [None], [(2,)], [(0, 1, "LOC")], [(0.5, 3.0)], [("0", "3")]]
    )
    def test_spans_that_are_none(self, model: Model, spans: Any) -> None:
        """A text in place of a list would be read letter by letter."""
        with pytest.raises(DataError, match=r"is not a span|is not a list of spans"):
            model.encode_spans("a boat", spans)

    def test_numbers_of_parts_and_of_inputs_differ(self, model: Model, manifest: Manifest) -> None:
        path = manifest.image_path(manifest[0])
        with pytest.raises(DataError, match="spans of 1 inputs for 2; give a list for each"):
            model.encode_spans(["a boat", "a kite"], [["boat"]])
        with pytest.raises(DataError, match="boxes of 0 inputs for 1; give a list for each"):
            model.encode_regions([path], [])

    @pytest.mark.parametrize("size", [0, -1, 1.5, None, "3"])
    def test_batch_sizes(self, model: Model, manifest: Manifest, size: Any) -> None:
        path = manifest.image_path(manifest[0])
        calls = [
            lambda: model.encode_texts(["a boat"], batch_size=size),
            lambda: model.encode_texts("a boat", batch_size=size),
            lambda: model.encode_images([path], batch_size=size),
            lambda: model.encode_spans("a boat", ["boat"], batch_size=size),
            lambda: model.encode_regions(path, [(0, 0, 9, 9)], batch_size=size),
        ]
        for call in calls:
            with pytest.raises(spanbox.errors.ConfigError, match=r"batch_size is .*; expected a whole number above 0"):
                call()

    def test_a_missing_image(self, model: Model) -> None:
        with pytest.raises(DataError, match=r"nowhere\.png"):
            model.encode_images(["nowhere.png"])

    def test_another_type(self, model: Model) -> None:
        with pytest.raises(DataError, match="int is not an image"):
            model.encode_images([3])  # type: ignore[list-item]


class TestSimilarity:
    def test_against_a_loop(self, model: Model) -> None:
        first, second = np.random.default_rng(0).normal(size=(2, 3, model.dim))
        found = model.similarity(first, second)
        for i, row in enumerate(first):
            for j, other in enumerate(second):
                cosine = row @ other / np.linalg.norm(row) / np.linalg.norm(other)
                assert found[i, j] == pytest.approx(cosine, abs=1e-6)

    def test_single_features_and_tensors(self, model: Model) -> None:
        tensor = torch.randn(2, model.dim)
        assert isinstance(model.similarity(tensor, tensor[0].numpy()), torch.Tensor)
        assert model.similarity(tensor.numpy(), tensor[0]).shape == (2, 1)

    def test_arrays_as_files_and_slices_give_them(self, model: Model) -> None:
        features = torch.randn(3, model.dim).numpy()
        expected = model.similarity(features, features)
        features.setflags(write=False)
        np.testing.assert_array_equal(model.similarity(features, features.tolist()), expected)  # type: ignore[arg-type]
        np.testing.assert_array_equal(model.similarity(features[::-1], features), expected[::-1])

    def test_features_of_another_shape(self, model: Model) -> None:
        """Two rows side by side are not four rows."""
        good = torch.randn(2, model.dim)
        for bad in (torch.randn(2, 2 * model.dim), torch.randn(2, 2, model.dim), torch.randn(()), "a boat", None):
            with pytest.raises(DataError, match=r"features of shape|does not hold features"):
                model.similarity(good, bad)  # type: ignore[arg-type]


class TestGround:
    def test_candidates_are_ranked_by_their_cosine(self, model: Model, manifest: Manifest) -> None:
        record = manifest[0]
        path, boxes = manifest.image_path(record), [each.box for each in record.objects]
        spans = spans_of(manifest)[0]
        cosines = model.similarity(model.encode_spans(record.text, spans), model.encode_regions(path, boxes))
        result = model.ground(path, record.text, spans, boxes)
        assert len(result.spans) == len(spans) > 1
        for span, row in zip(result.spans, cosines, strict=True):
            assert [each.box for each in span.candidates] == [boxes[i] for i in np.argsort(-row, kind="stable")]
            assert [each.score for each in span.candidates] == pytest.approx(sorted(row, reverse=True), abs=1e-6)
            assert span.text == record.text[span.start : span.end]
            assert span.heatmap is None

    def test_the_threshold_is_that_of_the_validation(self, model: Model, manifest: Manifest) -> None:
        stored = json.loads((model.checkpoint / "validation.json").read_text())["matching.presence.threshold"]
        record = manifest[0]
        boxes = [each.box for each in record.objects]
        result = model.ground(manifest.image_path(record), record.text, ["a"], boxes)
        assert model.threshold == result.threshold == stored
        score = result.spans[0].candidates[0].score
        assert result.spans[0].shown == (score >= stored)
        for threshold, shown in ((score - 0.01, True), (score + 0.01, False)):
            (span,) = model.ground(manifest.image_path(record), record.text, ["a"], boxes, threshold=threshold).spans
            assert span.shown is shown
            assert (span.best == span.candidates[0]) if shown else (span.best is None)

    @pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "high", [0.5]])
    def test_a_threshold_that_is_no_number(self, model: Model, manifest: Manifest, threshold: Any) -> None:
        with pytest.raises(spanbox.errors.ConfigError, match="expected a finite number, or None"):
            model.ground(manifest.image_path(manifest[0]), "a boat", threshold=threshold)

    @pytest.mark.parametrize("text", ["", "  "])
    def test_a_text_without_words(self, model: Model, manifest: Manifest, text: str) -> None:
        with pytest.raises(DataError, match="the text is empty"):
            model.ground(manifest.image_path(manifest[0]), text)

    def test_an_image_without_boxes_shows_nothing(self, model: Model, manifest: Manifest) -> None:
        (span,) = model.ground(manifest.image_path(manifest[0]), "a boat", ["boat"], boxes=[]).spans
        assert span.candidates == ()
        assert span.shown is False
        assert span.best is None

    def test_on_the_patches(self, model: Model, manifest: Manifest) -> None:
        path = manifest.image_path(manifest[0])
        if model.config.model.regions.source == "crop":
            with pytest.raises(spanbox.errors.ConfigError, match="give boxes"):
                model.ground(path, "a boat")
            return
        result = model.ground(path, "a boat")
        (span,) = result.spans
        assert (span.text, span.heatmap is None) == ("a boat", False)
        assert span.heatmap is not None
        assert span.heatmap.shape == (3, 3)
        ((box, score),) = span.candidates
        width, height = image_size(path)
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
        cosine = model.similarity(model.encode_spans("a boat", ["a boat"]), model.encode_regions(path, [box]))
        assert score == pytest.approx(cosine.item(), abs=1e-6)

    def test_it_can_be_written_as_json(self, model: Model, manifest: Manifest) -> None:
        record = manifest[0]
        result = model.ground(manifest.image_path(record), record.text, ["a"], [record.objects[0].box])
        read = json.loads(json.dumps(result.to_dict()))
        assert read["text"] == record.text
        assert read["spans"][0]["candidates"][0]["box"] == list(record.objects[0].box)

    def test_boxes_and_threshold_of_numpy_can_be_written_as_json(self, model: Model, manifest: Manifest) -> None:
        boxes = np.array([(0, 0, 9, 9)])
        result = model.ground(manifest.image_path(manifest[0]), "a", ["a"], boxes, threshold=np.float32(0.5))  # type: ignore[arg-type]
        read = json.loads(json.dumps(result.to_dict()))
        assert read["spans"][0]["candidates"][0]["box"] == [0, 0, 9, 9]
        assert read["threshold"] == 0.5


def test_a_device_of_pytorch(model: Model) -> None:
    assert spanbox.load(model.checkpoint, torch.device("cpu")).device == torch.device("cpu")


def test_import_spanbox_brings_no_torch() -> None:
    code = "import sys, spanbox; print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
