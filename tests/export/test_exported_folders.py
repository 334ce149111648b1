"""Exported folders, opened by the libraries they are for in a process that has no spanbox."""

import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image

import miniature
import spanbox
from command import HANGS
from full_disk import full_disk
from spanbox.api import Model
from spanbox.data.images import load_image
from spanbox.data.render import to_square
from spanbox.errors import ConfigError, OutputError
from spanbox.export import WRITERS, Target, export_model
from spanbox.export.card import model_card
from spanbox.wiring import train

TEXTS = ["A red boat", "a butterfly above the two blue kites，蝴蝶"]
VARIANTS = {
    "LoRA, larger images": [
        *("model.text.pool=cls", "model.vision.pool=cls", "model.text.lora={rank: 4}", "model.vision.lora={rank: 4}"),
        "model.vision.image_size=64",
    ],
    "means": ["model.text.pool=mean", "model.vision.pool=mean", "model.projections=shared"],
    "poolers": ["model.text.pool=pooler", "model.vision.pool=pooler"],
    "crops and own spans": ["model.regions.source=crop", "model.spans.source=own"],
}
WITHOUT_SPANBOX = """
import sys
sys.modules["spanbox"] = None  # importing it fails
import warnings
warnings.simplefilter("ignore")
import numpy as np
import torch
torch.set_num_threads(1)
"""


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(variant: str, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    run = tmp_path_factory.mktemp("runs") / "first"
    train(miniature.demo_config(scenes, run, "train.optimiser.lr=0.02", *VARIANTS[variant]))
    return spanbox.load(run)


@pytest.fixture
def pictures(scenes: Path, tmp_path: Path) -> list[Path]:
    """Two pictures; the second is stored on its side, as phones store photos, and its edges are transparent."""
    upright, other = sorted((scenes / "images" / "test").iterdir())[:2]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(other) as image:
        visible = Image.new("L", image.size)
        visible.paste(255, (16, 16, 48, 48))
        image.putalpha(visible)
        image.save(tmp_path / "turned.png", exif=exif)
    return [upright, tmp_path / "turned.png"]


@torch.no_grad()
def expected(model: Model, pictures: list[Path]) -> dict[str, Any]:
    """Inputs, hidden states and scores by spanbox."""
    inputs = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    size = model.model.preprocessing.image_size
    pixels = model.model.normalised(torch.stack([to_square(np.array(load_image(path)), size) for path in pictures]))
    arguments = model.model.vision._position_arguments(pixels)
    texts, images = model.encode_texts(TEXTS), model.encode_images(pictures)
    return {
        "ids": inputs["input_ids"].numpy(),
        "mask": inputs["attention_mask"].numpy(),
        "pixels": pixels.numpy(),
        "text_states": model.model.text.model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state.numpy(),
        "image_states": model.model.vision.model(pixels, **arguments).last_hidden_state.numpy(),
        "texts": texts,
        "images": images,
        "scores": texts @ images.T / model.objective.temperatures()["coarse"],
    }


def run_without_spanbox(code: str, folder: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays that a script saves as `found.npz`; it has those of `given.npz` in `given`."""
    np.savez(folder / "given.npz", **arrays)
    script = WITHOUT_SPANBOX + "given = np.load('given.npz')\n" + code
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "found.npz"))


def test_transformers(
    variant: str, model: Model, pictures: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    capfd.readouterr()
    notes = export_model(model, "transformers", out, licence="mit")
    assert capfd.readouterr() == ("", "")  # no table of transformers about a pooler that is replaced
    pair = variant == "LoRA, larger images"
    assert (out / "dual_encoder").is_dir() is pair
    assert pair is not any("No dual_encoder/" in note for note in notes)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "`TEXTS` is a list of sentences, `IMAGES` a list of paths of images:\n\n```python" in card
    (example, *_) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    wanted = expected(model, pictures)
    code = """
from transformers import AutoModel
ids, mask, pixels = (torch.from_numpy(given[name]) for name in ("ids", "mask", "pixels"))
TEXTS, IMAGES = given["sentences"].tolist(), given["paths"].tolist()
found = {}
with torch.no_grad():
    encoders = {name: AutoModel.from_pretrained(name).eval() for name in ("text", "vision")}
    found["text_states"] = encoders["text"](input_ids=ids, attention_mask=mask).last_hidden_state
    found["image_states"] = encoders["vision"](pixels).last_hidden_state
    if PAIR:
        from transformers import VisionTextDualEncoderModel, VisionTextDualEncoderProcessor
        pair = VisionTextDualEncoderModel.from_pretrained("dual_encoder").eval()
        found["scores"] = pair(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits_per_text
        processor = VisionTextDualEncoderProcessor.from_pretrained("dual_encoder", use_fast=False)
        assert processor(text=TEXTS, padding=True, return_tensors="pt")["input_ids"].tolist() == ids.tolist()
EXAMPLE
found |= {"example": scores, "example_pixels": pixels}
np.savez("found.npz", **{name: tensor.numpy() for name, tensor in found.items()})
"""
    code = code.replace("PAIR", str(pair)).replace("EXAMPLE", example)
    given = wanted | {"sentences": np.array(TEXTS), "paths": np.array([str(path) for path in pictures])}
    found = run_without_spanbox(code, out, given)
    kept = wanted["mask"][:, :, None]
    np.testing.assert_allclose(found["text_states"] * kept, wanted["text_states"] * kept, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["image_states"], wanted["image_states"], rtol=0, atol=1e-5)
    if pair:
        np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=0, atol=1e-4)  # cosines by 0.07
    # Pillow resizes the example's pictures, which differ by one or two levels of 255 (a hundredth after normalising).
    np.testing.assert_allclose(found["example_pixels"], wanted["pixels"], rtol=0, atol=0.05)
    np.testing.assert_allclose(found["example"], wanted["texts"] @ wanted["images"].T, rtol=0, atol=0.02)


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnxscript") is None, reason="needs spanbox[onnx]")
def test_onnx(variant: str, model: Model, pictures: list[Path], tmp_path: Path) -> None:
    if variant not in ("crops and own spans", "LoRA, larger images"):
        pytest.skip("as another variant")
    out = tmp_path / "out"
    (note,) = export_model(model, "onnx", out)
    assert "Largest difference to PyTorch" in note
    wanted = expected(model, pictures)
    own, crops = (variant == "crops and own spans",) * 2
    spans = torch.zeros(2, 1, wanted["ids"].shape[1], dtype=torch.bool)
    spans[:, 0, 1:4] = True
    box = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(2, 1, 4)
    code = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
text, image = (onnxruntime.InferenceSession(f"{name}.onnx", options) for name in ("text", "image"))
inputs = {"input_ids": given["ids"], "attention_mask": given["mask"]} | ({} if OWN else {"span_tokens": given["spans"]})
found = dict(zip(["text_states", "texts", "spans"], text.run(None, inputs)))
inputs = {"pixel_values": given["pixels"]} | ({} if OWN else {"boxes": given["box"]})
found |= dict(zip(["grid", "images", "regions"], image.run(None, inputs)))
np.savez("found.npz", **found)
""".replace("OWN", str(own))
    found = run_without_spanbox(code, out, wanted | {"spans": spans.numpy(), "box": box.numpy()})
    kept = wanted["mask"][:, :, None]
    np.testing.assert_allclose(found["text_states"] * kept, wanted["text_states"] * kept, rtol=0, atol=1e-4)
    for name in ("texts", "images"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-4)
    for row, path in enumerate(pictures):
        width, height = load_image(path).size
        edges = (0.0, 0.25 * height, 0.5 * width, 1.0 * height)
        if crops:
            edges = (0.0, 0.0, float(width), float(height))
        np.testing.assert_allclose(
            np.atleast_2d(found["regions"][row])[0], model.encode_regions(path, [edges])[0], rtol=0, atol=1e-4
        )


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="needs sentence-transformers")
def test_sentence_transformers(variant: str, model: Model, pictures: list[Path], tmp_path: Path) -> None:
    if variant == "poolers":
        with pytest.raises(ConfigError, match="has no pooling as that of this text encoder"):
            export_model(model, "sentence-transformers", tmp_path / "out")
        return
    export_model(model, "sentence-transformers", tmp_path / "out")
    code = """
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer(".", device="cpu")
assert encoder.max_seq_length == 64
np.savez("found.npz", texts=encoder.encode(given["sentences"].tolist()))
"""
    found = run_without_spanbox(code, tmp_path / "out", {"sentences": np.array(TEXTS)})
    np.testing.assert_allclose(found["texts"], model.encode_texts(TEXTS), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def plain(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    run = tmp_path_factory.mktemp("plain") / "my run"
    train(miniature.demo_config(scenes, run, "train.steps=1"))
    return spanbox.load(run)


class TestFolder:
    def test_the_card(self, plain: Model, tmp_path: Path) -> None:
        export_model(plain, "transformers", tmp_path / "out", licence="cc-by-4.0")
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front)["license"] == "cc-by-4.0"
        for part in ("# my run", "On the validation set", "| image to sentence, R@1 |", "train.jsonl", "`cc-by-4.0`"):
            assert part in body
        assert str(tmp_path) not in body  # no folders of the machine

    def test_the_card_of_a_checkpoint_directly_below_the_root(self, plain: Model, tmp_path: Path) -> None:
        """As containers mount it."""
        model = replace(plain, checkpoint=Path("/no-such-checkpoint"))
        assert "None were computed" in model_card(model, "onnx", tmp_path, [], None)

    def test_an_occupied_folder_is_left_alone(self, plain: Model, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(OutputError, match="is not empty"):
            export_model(plain, "transformers", tmp_path / "out")
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]

    def test_an_empty_folder_is_filled(self, plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also a link to one, and the working folder: neither can be replaced by another folder."""
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "link").symlink_to("elsewhere")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        for out in (tmp_path / "link", Path()):
            export_model(plain, "sentence-transformers", out)
            assert {"README.md", "modules.json"} <= {path.name for path in out.iterdir()}
            assert not [path for path in out.iterdir() if path.name.startswith(".")]

    def test_two_exports_at_once(self, plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither writes into the files of the other; the first to end has the folder."""
        write, exports = WRITERS["sentence-transformers"], list[str]()

        def write_beside_another(model: Model, folder: Path) -> list[str]:
            notes = write(model, folder)
            exports.append("started")
            if len(exports) == 1:
                export_model(plain, "sentence-transformers", tmp_path / "out", "the-second")
            assert (folder / "modules.json").exists()
            return notes

        monkeypatch.setitem(WRITERS, "sentence-transformers", write_beside_another)
        with pytest.raises(OutputError, match="out: cannot be written"):
            export_model(plain, "sentence-transformers", tmp_path / "out", "the-first")
        assert "the-second" in (tmp_path / "out" / "README.md").read_text()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_file_in_its_place(self, plain: Model, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("")
        with pytest.raises(OutputError, match="is not empty"):
            export_model(plain, "transformers", tmp_path / "out")

    def test_what_fails_leaves_nothing(self, plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spanbox.export.model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_model(plain, "sentence-transformers", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("target", get_args(Target))
    def test_a_full_disk(self, target: Target, plain: Model, tmp_path: Path) -> None:
        with full_disk(20_000), pytest.raises(OutputError, match=r"out.*: cannot be written .*; free space"):
            export_model(plain, target, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_onnx_without_its_packages(self, plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        monkeypatch.setitem(sys.modules, "onnx", sys)
        with pytest.raises(ConfigError, match=r"onnxscript is not installed; pip install 'spanbox\[onnx\]'"):
            export_model(plain, "onnx", tmp_path / "out")
