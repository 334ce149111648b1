"""Runs on images that keep their aspect ratio: training, resuming, evaluation, use from Python, and exports."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

import miniature
import spanbox
import tiny
from spanbox.api import Model
from spanbox.config import load_config
from spanbox.data.images import image_size
from spanbox.data.manifest import Manifest, write_manifest
from spanbox.engine.distributed import Ranks
from spanbox.errors import ConfigError
from spanbox.evaluation.bank_files import open_bank
from spanbox.explore.opening import open_session
from spanbox.export import export_model
from spanbox.geometry import denormalise_boxes
from spanbox.search.embedding import embed_source
from spanbox.search.index import open_index
from spanbox.search.sources import open_source
from spanbox.wiring import EvaluationOptions, GmnerStart, evaluate_to_folder, predict_gmner, train_gmner
from spanbox.wiring.embedding import embed, evaluation_dataset
from spanbox.wiring.encoding import encode_image_sides, encode_text_sides
from spanbox.wiring.fusing import fused_scores, pair_scores
from spanbox.wiring.training import train

SHAPES = [(96, 64), (64, 96), (64, 64), (96, 40)]
AUGMENTED = ["data.augment.image.preset=standard", "data.augment.image.rotation=10"]
LIGHT = EvaluationOptions(examples=1, occlusion=4)
VIEWS = ["data.views.count=2"]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes of the demo, stretched to different shapes with their boxes."""
    folder = miniature.write_scenes(tmp_path_factory.mktemp("scenes"))
    for path in sorted(folder.glob("*.jsonl")):
        records = []
        manifest = Manifest(path)
        for number, record in enumerate(list(manifest)):
            width, height = SHAPES[number % len(SHAPES)]
            file = manifest.image_path(record)
            with Image.open(file) as image:
                x, y = width / image.width, height / image.height
                stretched = image.convert("RGB").resize((width, height))
            stretched.save(file)
            entities = [
                replace(one, boxes=tuple((a * x, b * y, c * x, d * y) for a, b, c, d in one.boxes))
                for one in record.entities
            ]
            objects = [
                replace(one, box=(one.box[0] * x, one.box[1] * y, one.box[2] * x, one.box[3] * y))
                for one in record.objects
            ]
            records.append(replace(record, entities=tuple(entities), objects=tuple(objects)))
        write_manifest(path, records)
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "padded"
    config = miniature.demo_config(scenes, folder, "data.aspect=pad", *AUGMENTED, *VIEWS, *miniature.DROPOUT)
    return train(config).run_dir


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return spanbox.load(run)


def test_a_resumed_run_repeats_it_bit_for_bit(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(run, folder, symlinks=True)
    for name in ("step-000006", "last", "best"):
        path = folder / "checkpoints" / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert train(load_config(str(folder / "config.yaml"), ["train.resume=true", "data.workers=1"])).step == 6
    weights = [one / "checkpoints" / "step-000006" / "model.safetensors" for one in (run, folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_features_from_python_are_those_of_the_evaluation(model: Model, scenes: Path) -> None:
    manifest = Manifest(scenes / "test.jsonl")
    dataset = evaluation_dataset(model, manifest)
    bank, _ = embed(model, dataset)
    paths = [manifest.image_path(record) for record in manifest]
    torch.testing.assert_close(torch.from_numpy(model.encode_images(paths)), bank.image, rtol=1e-4, atol=1e-5)
    for pair, record in enumerate(manifest):
        own = bank.region_pair == pair
        with Image.open(paths[pair]) as image:
            size = image.size
        boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in denormalise_boxes(bank.region_box[own], *size).tolist()]
        found = torch.from_numpy(model.encode_regions(paths[pair], boxes))
        torch.testing.assert_close(found, bank.regions[own], rtol=1e-3, atol=1e-4)
        in_pixels = sorted({box for entity in record.entities for box in entity.boxes})
        assert np.array(sorted(boxes)) == pytest.approx(np.array(in_pixels), abs=1e-3)


def test_grounding_finds_boxes_within_the_image(model: Model, scenes: Path) -> None:
    manifest = Manifest(scenes / "test.jsonl")
    for record in list(manifest)[:4]:
        with Image.open(manifest.image_path(record)) as image:
            width, height = image.size
        span = (record.entities[0].start, record.entities[0].end)
        (found,) = model.ground(manifest.image_path(record), record.text, [span]).spans
        assert found.heatmap is not None
        columns, rows = (int(np.ceil(3 * side / max(width, height))) for side in (width, height))
        assert found.heatmap.shape == (rows, columns)
        x0, y0, x1, y1 = found.candidates[0].box
        assert 0 <= x0 < x1 <= width + 1e-3
        assert 0 <= y0 < y1 <= height + 1e-3


def test_an_evaluation_writes_everything(run: Path, scenes: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(examples=1, occlusion=6)
    evaluated, _ = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, options, "cpu")
    assert evaluated.metrics["occlusion.coarse.object.count"] > 0
    with np.load(tmp_path / "evaluation" / "heatmaps.npz") as maps:
        shapes = {maps[name].shape for name in maps}
    assert shapes <= {(3, 3), (2, 3), (3, 2)}
    assert len(shapes) > 1


def test_patches_of_a_stored_bank_have_the_sizes_of_their_pictures(scenes: Path, tmp_path: Path) -> None:
    fusion = ["model.fusion.kind=cross_attention", "model.fusion.width=16", "model.fusion.heads=2"]
    config = miniature.demo_config(scenes, tmp_path / "run", "data.aspect=pad", *fusion)
    folder = train(config).run_dir
    _, _ = evaluate_to_folder(folder, scenes / "test.jsonl", None, EvaluationOptions(examples=1, occlusion=2), "cpu")
    (stored,) = (folder / "evaluation").glob("features-test-*/bank.json")
    bank = open_bank(stored.parent, json.loads(stored.read_text())["fingerprint"])
    assert bank is not None
    assert bank.bank.content is not None
    assert {tuple(size) for size in bank.bank.content.tolist()} == {(48, 32), (32, 48), (48, 48), (48, 20)}
    loaded, manifest = spanbox.load(folder), Manifest(scenes / "test.jsonl")
    records = list(manifest)[:4]
    texts, images = [record.text for record in records], [manifest.image_path(record) for record in records]
    expected = pair_scores(loaded.model, bank.bank)
    assert expected is not None
    found = fused_scores(loaded, encode_text_sides(loaded, texts), encode_image_sides(loaded, images))
    places = torch.arange(4)
    from_bank = torch.stack([expected(places, places.roll(shift)) for shift in range(4)])
    from_files = torch.stack([found[places, places.roll(shift)] for shift in range(4)])
    torch.testing.assert_close(from_files, from_bank, rtol=0, atol=5e-3)


def test_a_convolutional_tower(scenes: Path, tmp_path: Path) -> None:
    tower = json.dumps(tiny.convnext(image_size=64))
    more = ["data.aspect=pad", f"model.vision.architecture={tower}", "model.vision.image_size=64"]
    loaded = spanbox.load(train(miniature.demo_config(scenes, tmp_path / "run", *more)).run_dir)
    manifest = Manifest(scenes / "test.jsonl")
    bank, _ = embed(loaded, evaluation_dataset(loaded, manifest))
    paths = [manifest.image_path(record) for record in manifest]
    torch.testing.assert_close(torch.from_numpy(loaded.encode_images(paths)), bank.image, rtol=1e-3, atol=1e-4)
    (found,) = loaded.ground(paths[3], manifest[3].text, [(0, 3)]).spans
    assert found.heatmap is not None
    assert found.heatmap.shape == (4, 8)  # of 96 x 40 pixels: 64 x 27, and 8 to a cell


def test_the_frozen_tower_is_read_from_its_cache(scenes: Path, tmp_path: Path) -> None:
    """Also where several images of a batch have different numbers of patches."""
    frozen = ["data.aspect=pad", "model.vision.freeze=all"]
    plain = train(miniature.demo_config(scenes, tmp_path / "plain", *frozen)).run_dir
    cached = [*frozen, f"train.cache_frozen={tmp_path}/cache"]
    runs = [plain, *(train(miniature.demo_config(scenes, tmp_path / name, *cached)).run_dir for name in ("a", "b"))]
    weights = [spanbox.load(run).model.state_dict() for run in runs]
    for name, tensor in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], tensor, msg=name)


def test_regions_as_crops(scenes: Path, tmp_path: Path) -> None:
    """Each on a padded square of its own; from Python as in an evaluation, and in the occlusion test."""
    config = miniature.demo_config(scenes, tmp_path / "run", "data.aspect=pad", "model.regions.source=crop")
    loaded = spanbox.load(train(config).run_dir)
    manifest = Manifest(scenes / "test.jsonl")
    dataset = evaluation_dataset(loaded, manifest)
    bank, _ = embed(loaded, dataset)
    path, own = manifest.image_path(manifest[0]), bank.region_pair == 0
    with Image.open(path) as image:
        boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in denormalise_boxes(bank.region_box[own], *image.size).tolist()]
    found = torch.from_numpy(loaded.encode_regions(path, boxes))
    torch.testing.assert_close(found, bank.regions[own], rtol=1e-3, atol=1e-4)
    assert loaded.encode_regions(path, []).shape == (0, 16)
    evaluated, _ = evaluate_to_folder(tmp_path / "run", scenes / "test.jsonl", None, LIGHT, "cpu")
    assert evaluated.metrics["occlusion.fine.object.count"] > 0


def test_gmner_chooses_among_the_boxes_of_the_file(scenes: Path, run: Path, tmp_path: Path) -> None:
    """The aspect of the pretrained run is that of the task, and boxes come back in pixels of the image."""
    small = ["train.batch_size=8", "train.steps=4", "train.validate_every=2", "train.save_every=2"]
    paths = miniature.paths(scenes, tmp_path / "ner")
    tuned = train_gmner(GmnerStart(run).config([*paths, *small, "data.views.count=0"]), run)
    assert load_config(str(tuned.run_dir / "config.yaml")).data.aspect == "pad"
    found = predict_gmner(tuned.run_dir, scenes / "test.jsonl", device="cpu")
    chosen = 0
    for prediction, record in zip(found.predictions, Manifest(scenes / "test.jsonl"), strict=True):
        objects = [tuple(map(round, proposal.box)) for proposal in record.objects]
        boxes = [tuple(map(round, one.box)) for one in prediction.entities if one.box is not None]
        assert set(boxes) <= set(objects)
        chosen += len(boxes)
    assert chosen


def test_squash_is_the_default_and_another_model(scenes: Path, run: Path, tmp_path: Path) -> None:
    squashed = train(miniature.demo_config(scenes, tmp_path / "run", *AUGMENTED, *VIEWS, *miniature.DROPOUT)).run_dir
    assert load_config(str(squashed / "config.yaml")).data.aspect == "squash"
    weights = [one / "checkpoints" / "step-000006" / "model.safetensors" for one in (run, squashed)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_embed_and_explore(run: Path, model: Model, scenes: Path, tmp_path: Path) -> None:
    """Files of features and the explorer have the features and the boxes of images that are not square."""
    manifest = Manifest(scenes / "test.jsonl")
    images = [manifest.image_path(record) for record in manifest]
    boxes = [list(dict.fromkeys(each.box for each in record.objects)) for record in manifest]
    expected = model.encode_regions(images, boxes)
    records = [replace(record, entities=()) for record in manifest]
    write_manifest(scenes / "objects.jsonl", records)
    source = open_source(scenes / "objects.jsonl", "regions")
    embed_source(model, source, tmp_path / "regions.npy", batch_size=5, ranks=Ranks())
    index = open_index(tmp_path / "regions.npy")
    np.testing.assert_allclose(index.features, np.concatenate(expected), atol=2e-6)

    # A JPEG may be decoded at half its size: by all of them, or scores differ.
    session = open_session([run], scenes / "test.jsonl", "cpu")
    scores = model.similarity(model.encode_texts("a boat"), model.encode_images(images))[0]
    hits = session.search_text("a boat")["models"][0]["hits"]
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.tolist(), reverse=True)[: len(hits)], abs=1e-5)
    for place in range(len(SHAPES)):
        record, (width, height) = manifest[place], image_size(images[place])
        found = session.ground(str(place), None)
        own = list(dict.fromkeys([box for each in record.entities for box in each.boxes] + boxes[place]))
        assert np.array([each["box"] for each in found["boxes"]]) == pytest.approx(
            np.array(own) / [width, height, width, height]
        )
        unit = next(index for index, each in enumerate(found["units"]) if each["entity"])
        span = found["units"][unit]["start"], found["units"][unit]["end"]
        answer = found["models"][0]["units"][unit]
        cosines = model.similarity(model.encode_spans(record.text, [span]), model.encode_regions(images[place], own))
        assert answer["scores"] == pytest.approx(cosines[0].tolist(), abs=1e-5)
        columns, rows = (int(np.ceil(3 * side / max(width, height))) for side in (width, height))
        assert np.array(answer["heat"]).shape == (rows, columns)
        ((box, _),) = model.ground(images[place], record.text, [span]).spans[0].candidates
        assert answer["box"] == pytest.approx((np.array(box) / [width, height, width, height]).tolist())


class TestExport:
    def test_onnx_refuses_a_model_of_padded_images(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"data\.aspect=pad.*--to transformers"):
            export_model(model, "onnx", tmp_path / "onnx")

    def test_the_card_of_an_export_names_the_difference(self, model: Model, tmp_path: Path) -> None:
        notes = export_model(model, "transformers", tmp_path / "out")
        assert any("data.aspect=pad" in note for note in notes)
        assert "data.aspect=pad" in (tmp_path / "out" / "README.md").read_text()
        assert json.loads((tmp_path / "out" / "heads.json").read_text())["image"]["aspect"] == "pad"
