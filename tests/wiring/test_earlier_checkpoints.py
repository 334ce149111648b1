"""Checkpoints of earlier versions load and give the features that they gave then, or the error states why not.

`tests/earlier/*.zip` hold runs of four steps made by the code of those days, and features that it computed from them.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import miniature
import spanbox
from spanbox import __version__
from spanbox.cli.main import app
from spanbox.config import load_config
from spanbox.engine.versions import FORMAT
from spanbox.errors import CheckpointError, ConfigError, SpanboxError
from spanbox.wiring import GmnerStart, load, train
from spanbox.wiring.gmner_models import load_gmner

EARLIER = Path(__file__).parents[1] / "earlier"
DAYS = ("2026-11-23", "2026-11-25")
STEP = "step-000004"


def unpack(day: str, folder: Path) -> Path:
    """The run folder of a day."""
    with zipfile.ZipFile(EARLIER / f"{day}.zip") as archive:
        archive.extractall(folder)
    return folder / "run"


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def resumed(run: Path, scenes: Path) -> Any:
    paths = [f"data.{part}={scenes}/{part}.jsonl" for part in ("train", "val")]
    return load_config(str(run / "config.yaml"), [*paths, "train.steps=6", "train.resume=true"])


@pytest.mark.parametrize("day", DAYS)
def test_the_features_are_those_of_the_version_that_trained(day: str, tmp_path: Path) -> None:
    model = spanbox.load(unpack(day, tmp_path))
    then = json.loads((tmp_path / "features.json").read_text(encoding="utf-8"))
    now = {
        "text": model.encode_texts([then["text"]]),
        "image": model.encode_images([tmp_path / "ramp.png"]),
        "spans": model.encode_spans(then["text"], [tuple(span) for span in then["spans"]]),
        "regions": model.encode_regions(tmp_path / "ramp.png", then["boxes"]),
    }
    for name, features in now.items():
        np.testing.assert_allclose(features, then["features"][name], atol=2e-6, err_msg=name)


def test_a_run_goes_on(tmp_path: Path, scenes: Path) -> None:
    run = unpack("2026-11-25", tmp_path)
    trained = train(resumed(run, scenes))
    assert trained.finished
    assert trained.step == 6
    written = json.loads((run / "checkpoints" / "step-000006" / "architecture.json").read_text(encoding="utf-8"))
    assert (written["format"], written["spanbox"]) == (FORMAT, __version__)


def test_a_run_with_another_state_of_training_does_not_go_on(tmp_path: Path, scenes: Path) -> None:
    run = unpack("2026-11-23", tmp_path)
    with pytest.raises(CheckpointError, match=r"has no seconds, incidents; (.|\n)*does not name the version"):
        train(resumed(run, scenes))


@pytest.mark.parametrize("day", DAYS)
def test_every_command_takes_it(day: str, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = unpack(day, tmp_path)
    monkeypatch.chdir(tmp_path)
    small = [each for each in miniature.SCHEDULE if "steps" not in each]
    for words in (
        ["evaluate", str(run), "--data", f"{scenes}/val.jsonl"],
        ["report", str(run)],
        ["embed", str(run), f"{scenes}/val.jsonl", "texts.npy", "--what", "texts"],
        ["ground", str(run), "ramp.png", "A [red umbrella] left of a [风筝]"],
        ["export", str(run), "exported", "--to", "transformers"],
        ["gmner", "train", f"{scenes}/train.jsonl", "--from", str(run), "--out", "ner", "train.steps=1", *small],
    ):
        with pytest.raises(SystemExit) as ended:
            app(words)
        assert ended.value.code == 0, words


class TestNewer:
    """Checkpoints of versions that are not there yet."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        return unpack("2026-11-25", tmp_path)

    @pytest.mark.parametrize(
        ("version", "remedy"),
        [("9.1.0", "pip install spanbox==9.1.0"), (None, "pip install --upgrade"), ("; rm -rf /", "--upgrade")],
    )
    def test_a_format_of_the_future_is_refused(self, version: str | None, remedy: str, run: Path, scenes: Path) -> None:
        architecture = run / "checkpoints" / STEP / "architecture.json"
        edit(architecture, format=FORMAT + 1, **({"spanbox": version} if version else {}))
        expected = f"newer spanbox.* in format {FORMAT + 1}; this one, {__version__}, reads .*{remedy}"
        for use in (
            lambda: load(run),
            lambda: load_gmner(run),
            lambda: train(resumed(run, scenes)),
        ):
            with pytest.raises(CheckpointError, match=expected):
                use()

    @pytest.mark.parametrize("value", ["1", -1, True, 1.5, None, [1]])
    def test_a_format_that_is_no_number(self, value: Any, run: Path) -> None:
        edit(run / "checkpoints" / STEP / "architecture.json", format=value)
        with pytest.raises(CheckpointError, match=r"architecture\.json: format is .*no number"):
            load(run)

    def test_an_unknown_key_of_another_version(self, run: Path, scenes: Path) -> None:
        checkpoint = run / "checkpoints" / STEP
        for folder, versions in ((run, "environment.json"), (checkpoint, "architecture.json")):
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            config["train"]["teleport"] = True
            (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            edit(folder / versions, spanbox="9.1.0")
        for use in (
            lambda: load(run),
            lambda: resumed(run, scenes),
            lambda: GmnerStart(run).config([]),
        ):
            with pytest.raises(ConfigError, match=r"train\.teleport: unknown key(.|\n)*spanbox 9\.1\.0 wrote it"):
                use()

    def test_weights_of_another_version(self, run: Path) -> None:
        checkpoint = run / "checkpoints" / STEP
        edit(checkpoint / "architecture.json", spanbox="9.1.0")
        config = (checkpoint / "config.yaml").read_text(encoding="utf-8")
        (checkpoint / "config.yaml").write_text(config.replace("dim: 8", "dim: 4"), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"another architecture(.|\n)*spanbox 9\.1\.0 wrote it"):
            load(run)

    def test_preprocessing_of_another_version(self, run: Path) -> None:
        checkpoint = run / "checkpoints" / STEP
        edit(checkpoint / "architecture.json", spanbox="9.1.0")
        edit(checkpoint / "preprocessing.json", colours="infrared")
        with pytest.raises(CheckpointError, match=r"preprocessing\.json: colours(.|\n)*spanbox 9\.1\.0 wrote it"):
            load(run)


class TestKeys:
    """`loss.coarse.learnable` is `loss.coarse.temperature_schedule` today."""

    @pytest.mark.parametrize(("then", "now"), [("true", "learnable"), ("false", "fixed")])
    def test_a_renamed_key_is_read(self, then: str, now: str) -> None:
        assert load_config("demo", [f"loss.coarse.learnable={then}"]).loss.coarse.temperature_schedule == now

    @pytest.mark.parametrize(("then", "now"), [("true", "one"), ("false", "none")])
    def test_the_boxes_that_a_crop_keeps(self, then: str, now: str) -> None:
        assert load_config("demo", [f"data.augment.image.keep_box={then}"]).data.augment.image.keep_boxes == now

    @pytest.mark.parametrize("value", ["2", "maybe", "[1]", "null"])
    def test_a_value_that_never_was(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"loss\.coarse\.learnable: unknown key"):
            load_config("demo", [f"loss.coarse.learnable={value}"])

    def test_both_names_at_once(self) -> None:
        with pytest.raises(ConfigError, match=r"loss\.coarse\.learnable: unknown key"):
            load_config("demo", ["loss.coarse.learnable=true", "loss.coarse.temperature_schedule=fixed"])

    @pytest.mark.parametrize("section", ["loss=1", "loss.coarse=[]"])
    def test_no_section_there(self, section: str) -> None:
        with pytest.raises(ConfigError, match=r"loss"):
            load_config("demo", [section])


def test_the_same_version_is_not_blamed(tmp_path: Path) -> None:
    run = unpack("2026-11-25", tmp_path)
    checkpoint = shutil.copytree(run / "checkpoints" / STEP, tmp_path / "own")
    edit(checkpoint / "architecture.json", format=FORMAT, spanbox=__version__)
    (checkpoint / "config.yaml").write_text("teleport: 1\n")
    with pytest.raises(SpanboxError) as caught:
        load(checkpoint)
    assert "wrote it" not in str(caught.value)
