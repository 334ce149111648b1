"""`spanbox export`, `embed`, `search` and `ground` from the command line."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import miniature
from command import Command
from spanbox.cli.ground import read_brackets
from spanbox.data.manifest import Manifest
from spanbox.errors import DataError
from spanbox.report import grounding_picture
from spanbox.wiring import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and a run on them."""
    folder = miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))
    train(miniature.demo_config(folder, folder / "run", "train.steps=3"))
    return folder


def test_embed_and_search(folder: Path, spanbox: Command) -> None:
    manifest = Manifest(folder / "test.jsonl")
    code, out, _ = spanbox("embed", folder / "run", manifest.path, "images.npy", "--device", "cpu")
    assert (code, "12 images written to images.npy" in out) == (0, True)
    query = manifest.image_path(manifest[4])
    code, out, _ = spanbox("search", "images.npy", query, "--top", 3, "--html", "page.html", "--device", "cpu")
    assert code == 0
    first = next(line for line in out.splitlines() if line.startswith("│ 1 "))
    assert manifest[4].id in first  # its own image
    assert "1.000" in first
    assert Path("page.html").read_text(encoding="utf-8").count("data:image/jpeg") == 4
    code, _, err = spanbox("search", "images.npy", "a κόκκινο kite", "--device", "cpu")
    assert (code, "does not know: κόκκινο\n" in err) == (0, True)


def test_an_index_whose_run_was_moved(folder: Path, spanbox: Command) -> None:
    shutil.copytree(folder / "run", "run")
    assert spanbox("embed", "run", folder / "test.jsonl", "images.npy", "--device", "cpu").code == 0
    Path("run").rename("moved")
    code, _, err = spanbox("search", "images.npy", "a kite", "--device", "cpu")
    assert (code, "name the run or checkpoint with --model RUN" in err) == (2, True)
    assert spanbox("search", "images.npy", "a kite", "--model", "moved", "--device", "cpu").code == 0


def test_a_model_of_the_coarse_level_alone(folder: Path, spanbox: Command) -> None:
    """Spans and regions have random projections; sentences and images are as good as those of any model."""
    train(miniature.demo_config(folder, Path("coarse").absolute(), "train.steps=1", "loss.fine.weight=0"))
    manifest = Manifest(folder / "test.jsonl")
    code, _, err = spanbox("ground", "coarse", manifest.image_path(manifest[0]), "a [kite]", "--device", "cpu")
    assert (code, "loss.fine.weight=0" in err, Path("grounded.png").exists()) == (2, True, False)
    said = "trained with loss.fine.weight=0, so features of spans and regions come from random projections"
    for what, is_said in (("regions", True), ("images", False)):
        code, _, err = spanbox("embed", "coarse", manifest.path, f"{what}.npy", "--what", what, "--device", "cpu")
        assert (code, said in err) == (0, is_said)
        code, _, err = spanbox("search", f"{what}.npy", "a kite", "--device", "cpu")
        assert (code, said in err) == (0, is_said)
    for to, is_said in (("transformers", True), ("sentence-transformers", False)):
        code, out, _ = spanbox("export", "coarse", f"exported-{to}", "--to", to)
        assert (code, said in out, said in Path(f"exported-{to}/README.md").read_text()) == (0, is_said, is_said)


def test_ground(folder: Path, spanbox: Command) -> None:
    manifest = Manifest(folder / "test.jsonl")
    image, boxes = manifest.image_path(manifest[0]), [list(each.box) for each in manifest[0].objects]
    Path("boxes.json").write_text(json.dumps(boxes))
    text = "a [red kite] above 一只[蝴蝶]"
    options = ("--device", "cpu", "--threshold", -1)
    code, out, _ = spanbox("ground", folder / "run", image, text, "--boxes", "boxes.json", "--out", "a.png", *options)
    assert code == 0
    content = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert [span["text"] for span in content["spans"]] == ["red kite", "蝴蝶"]
    assert content["text"] == "a red kite above 一只蝴蝶"
    assert sorted(each["box"] for each in content["spans"][0]["candidates"]) == sorted(boxes)
    with Image.open("a.png") as picture:
        assert picture.format == "PNG"
    code, out, _ = spanbox("ground", folder / "run", image, "a phrase", "--device", "cpu", "--threshold", 2)
    assert (code, "a phrase: none" in out) == (0, True)


def test_a_picture_without_a_font_for_its_text_says_so(
    folder: Path, spanbox: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest(folder / "test.jsonl")
    monkeypatch.setattr(grounding_picture, "can_draw", str.isascii)
    code, _, err = spanbox("ground", folder / "run", manifest.image_path(manifest[0]), "[蝴蝶]", "--device", "cpu")
    assert (code, "no installed font has 蝴 蝶: the picture shows empty boxes" in err) == (0, True)


@pytest.mark.parametrize(
    "content", ["", "{}", "[[1, 2, 3]]", '[["a", 0, 1, 1]]', "[1]", '["0123"]', "[[0, 0, 1e999, 5]]"]
)
def test_boxes_that_are_none(folder: Path, spanbox: Command, content: str) -> None:
    Path("boxes.json").write_text(content)
    image = next((folder / "images" / "test").iterdir())
    code, _, err = spanbox("ground", folder / "run", image, "a", "--boxes", "boxes.json", "--device", "cpu")
    assert code == 2
    assert "boxes.json: expected JSON as [[x0, y0, x1, y1], ...]" in err


def test_outputs_do_not_replace_inputs(folder: Path, spanbox: Command) -> None:
    Image.new("RGB", (64, 64)).save("photo.png")
    Path("photo.json").write_text("[[0, 0, 9, 9]]")
    run, data = folder / "run", folder / "test.json"
    for manifest in (Path("found.items.jsonl"), data):
        manifest.write_bytes((folder / "test.jsonl").read_bytes())
    before = {path: path.read_bytes() for path in (data, *Path().iterdir())}
    for arguments in (
        ("ground", run, "photo.png", "a", "--out", "photo.png"),
        (
            "ground",
            run,
            next((folder / "images" / "test").iterdir()),
            "a",
            "--boxes",
            "photo.json",
            "--out",
            "photo.png",
        ),
        ("embed", run, "found.items.jsonl", "found.npy"),
        ("evaluate", run, "--data", data, "--out", data),
        ("gmner", "score", run, data, "--out", data),
    ):
        code, _, err = spanbox(*arguments, "--device", "cpu")
        assert (code, "is read by this command, so it is not replaced" in err) == (2, True)
        assert {path: path.read_bytes() for path in (data, *Path().iterdir())} == before


def test_outputs_do_not_replace_each_other(folder: Path, spanbox: Command) -> None:
    run, data = folder / "run", folder / "test.jsonl"
    for arguments in (("evaluate", run, "--data", data), ("gmner", "score", run, data)):
        code, _, err = spanbox(*arguments, "--predictions", "x.json", "--out", "x.json", "--device", "cpu")
        assert (code, "x.json: is named for two outputs of this command" in err) == (2, True)


def test_a_picture_is_a_png(folder: Path, spanbox: Command) -> None:
    code, _, err = spanbox("ground", folder / "run", "photo.jpg", "a", "--out", "grounded.jpg")
    assert (code, "grounded.jpg: expected a file that ends in .png" in err) == (2, True)


def test_arguments_that_are_no_utf8(folder: Path, spanbox: Command) -> None:
    code, _, err = spanbox(
        "embed", folder / "run", folder / "test.jsonl", "texts.npy", "--what", "texts", "--device", "cpu"
    )
    image = next((folder / "images" / "test").iterdir())
    text = os.fsdecode(b"\xff kite")
    for arguments in (("search", "texts.npy", text), ("ground", folder / "run", image, text)):
        code, _, err = spanbox(*arguments, "--device", "cpu")
        assert (code, "which is not a character; is it UTF-8?" in err) == (2, True)


def test_export_into_a_folder_that_is_not_empty(folder: Path, spanbox: Command) -> None:
    code, _, err = spanbox("export", folder / "run", folder)
    assert (code, "is not empty; name another folder" in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "plain", "spans"),
    [
        ("a kite", "a kite", None),
        ("a [red kite] above a [boat]", "a red kite above a boat", [(2, 10), (19, 23)]),
        ("[蝴蝶]", "蝴蝶", [(0, 2)]),
        ("", "", None),
    ],
)
def test_brackets(text: str, plain: str, spans: list[tuple[int, int]] | None) -> None:
    assert read_brackets(text) == (plain, spans)


@pytest.mark.parametrize("text", ["a [kite", "a kite]", "a [[kite]]", "a []", "a [b [c] d]"])
def test_brackets_that_do_not_match(text: str) -> None:
    with pytest.raises(DataError, match="bracket"):
        read_brackets(text)
