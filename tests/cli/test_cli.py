"""The command: help, output, and a message with exit code 2 for every mistake of the user."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import miniature
from command import Command, Outcome
from spanbox.cli import demo
from spanbox.cli.train import exit_unless_finished
from spanbox.config import describe_keys, load_config, recipe_names
from spanbox.data.manifest import Manifest
from spanbox.wiring import Trained, train

VERBS = [
    [],
    ["demo"],
    ["train"],
    ["plan"],
    ["evaluate"],
    ["ablate"],
    ["losses"],
    ["config"],
    ["config", "show"],
    ["config", "schema"],
    ["gmner"],
    ["gmner", "train"],
    ["gmner", "predict"],
    ["gmner", "score"],
    ["data"],
    ["data", "demo"],
    ["data", "check"],
    ["data", "show"],
    ["data", "mine"],
    ["data", "import"],
    ["data", "import", "twitter-gmner"],
]


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Tests only look at it."""
    return train(miniature.demo_config(scenes, tmp_path_factory.mktemp("runs") / "demo")).run_dir


@pytest.fixture
def faulty(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes, which tests damage."""
    return shutil.copytree(scenes, tmp_path / "faulty")


def overrides(data: Path, *more: str) -> list[str]:
    return miniature.demo_overrides(data, Path("run"), *more)


def change_line(manifest: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record) + "\n"
    manifest.write_text("".join(lines), encoding="utf-8")


def first_box(record: dict[str, Any]) -> list[float]:
    box: list[float] = next(entity["boxes"][0] for entity in record["entities"] if entity.get("boxes"))
    return box


class TestHelp:
    @pytest.mark.parametrize("verb", VERBS, ids=" ".join)
    def test_of_every_verb(self, verb: list[str], spanbox: Command) -> None:
        code, out, err = spanbox(*verb, "--help")
        assert (code, err) == (0, "")
        assert " ".join([*verb, "[OPTIONS]"]) in " ".join(out.split())

    @pytest.mark.parametrize("verb", [[], ["config"], ["data"], ["data", "import"]], ids=" ".join)
    def test_is_shown_for_a_group_alone(self, verb: list[str], spanbox: Command) -> None:
        assert "Commands" in "".join(spanbox(*verb)[1:])

    @pytest.mark.parametrize("verb", [[], ["losses"], ["train"], ["evaluate"], ["report"]], ids=" ".join)
    def test_is_quick_since_nothing_heavy_is_imported(self, verb: list[str]) -> None:
        script = (
            "import sys\n"
            "from spanbox.cli.main import main\n"
            "try:\n"
            "    main()\n"
            "except SystemExit as end:\n"
            "    assert end.code == 0\n"
            "heavy = ('torch', 'transformers', 'matplotlib', 'jinja2')\n"
            "print([name for name in heavy if name in sys.modules])\n"
        )
        command = [sys.executable, "-W", "error", "-c", script, *verb, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    def test_reading_a_config_imports_no_encoder_and_no_compiler(self) -> None:
        script = (
            "import sys, spanbox.config\n"
            "heavy = ('transformers.modeling_utils', 'torch._dynamo', 'torch.distributed.fsdp')\n"
            "print([name for name in heavy if name in sys.modules])\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    def test_as_a_module_and_as_a_script(self) -> None:
        script = Path(sys.executable).with_name("spanbox")
        for command in ([str(script)], [sys.executable, "-m", "spanbox"]):
            done = subprocess.run([*command, "config", "--help"], capture_output=True, text=True, check=True)
            assert "schema" in done.stdout


class TestConfig:
    @pytest.mark.parametrize("name", recipe_names())
    def test_show(self, name: str, spanbox: Command) -> None:
        code, out, err = spanbox("config", "show", name, "train.batch_size=12")
        assert (code, err) == (0, "")
        assert yaml.safe_load(out) == load_config(name, ["train.batch_size=12"]).model_dump(mode="json")

    def test_schema_lists_every_key(self, spanbox: Command) -> None:
        code, out, _ = spanbox("config", "schema")
        assert code == 0
        listed = [line.partition("=") for line in out.splitlines() if not line.startswith(" ")]
        assert [(key, default) for key, _, default in listed] == [row[:2] for row in describe_keys()]

    def test_schema_on_a_narrow_terminal(self, spanbox: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        wide = spanbox("config", "schema", "data.augment.image").out
        monkeypatch.setenv("COLUMNS", "40")
        narrow = spanbox("config", "schema", "data.augment.image").out
        assert narrow.split() == wide.split()
        assert all(len(line) <= 40 for line in narrow.splitlines() if line.startswith(" "))

    def test_schema_as_json(self, spanbox: Command) -> None:
        code, out, _ = spanbox("config", "schema", "--json")
        assert code == 0
        schema = json.loads(out)
        assert schema["additionalProperties"] is False
        assert schema["properties"].keys() == {"seed", "run", "data", "model", "loss", "train", "gmner"}


class TestTrainAndEvaluate:
    def test_train_then_evaluate(self, spanbox: Command, scenes: Path) -> None:
        code, out, _ = spanbox("train", "demo", *overrides(scenes))
        assert code == 0
        assert "retrieval.t2i" in out
        assert "run folder: run" in out

        code, out, _ = spanbox("evaluate", "run", "--data", scenes / "test.jsonl", "--device", "cpu")
        assert code == 0
        assert "matching.within_image" in out
        assert "written to run/metrics.json" in out
        assert json.loads(Path("run/metrics.json").read_text())["retrieval.t2i.r1.count"] == 12

    def test_train_from_a_file(self, spanbox: Command, scenes: Path) -> None:
        assert spanbox("train", "demo", *overrides(scenes, "train.steps=2")).code == 0
        code, _, err = spanbox("train", "run/config.yaml")
        assert (code, "holds a run already" in err) == (2, True)
        code, out, _ = spanbox("train", "run/config.yaml", "--resume", "train.steps=3")
        assert (code, "run folder: run" in out) == (0, True)

    def test_evaluate_writes_elsewhere(self, spanbox: Command, trained: Path, scenes: Path) -> None:
        code, out, _ = spanbox("evaluate", trained, "--data", scenes / "val.jsonl", "--out", "here.json")
        assert (code, "written to here.json" in out) == (0, True)
        assert not (trained / "metrics.json").exists()

    def test_evaluate_leaves_what_a_report_needs(
        self, spanbox: Command, trained: Path, scenes: Path, tmp_path: Path
    ) -> None:
        run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
        options = ["--examples", 1, "--occlusion", 3, "--predictions", "regions.jsonl", "--device", "cpu"]
        code, out, _ = spanbox(
            "evaluate", run, "--data", scenes / "test.jsonl", "--threshold-from", scenes / "val.jsonl", *options
        )
        assert (code, f"written to {run}/metrics.json" in out) == (0, True)
        assert "occlusion.coarse" in out
        written = {path.name for path in (run / "evaluation").iterdir()}
        assert written >= {"outcomes.npz", "examples.json", "heatmaps.npz", "audit.json"}
        assert len(list((run / "evaluation").glob("features-test-*"))) == 1
        assert len(Path("regions.jsonl").read_text(encoding="utf-8").splitlines()) == 12

    def test_evaluate_refuses_more_examples_than_a_report_reads(self, spanbox: Command, trained: Path) -> None:
        code, _, err = spanbox("evaluate", trained, "--data", "test.jsonl", "--examples", 251)
        assert (code, "--examples" in err, "equal to 250" in err) == (2, True, True)

    def test_evaluate_tells_what_it_worked_around(
        self, spanbox: Command, trained: Path, scenes: Path, faulty: Path
    ) -> None:
        record = Manifest(faulty / "test.jsonl")[0]
        (faulty / record.image).write_bytes(b"")
        code, out, _ = spanbox("evaluate", trained, "--data", faulty / "test.jsonl", "--out", "m.json")
        assert code == 0
        assert "broken image" in out
        assert f"{record.id}: " in out

    def test_evaluate_prints_ids_as_they_are(self, spanbox: Command, trained: Path, faulty: Path) -> None:
        """Neither markup nor control characters of the terminal."""

        def worked_around(record: dict[str, Any]) -> None:
            record["id"] = "[/b]\x1b[31m"
            first_box(record)[2] = 900.0

        change_line(faulty / "test.jsonl", 1, worked_around)
        data = (faulty / "test.jsonl").rename(faulty / "[b]test.jsonl")
        outcome = spanbox("evaluate", trained, "--data", data, "--out", "m.json", "--occlusion", "0")
        assert outcome.code == 0, outcome.err
        assert r"[/b]\x1b[31m: " in outcome.out
        assert "clipped box" in outcome.out
        assert "\x1b[31m" not in outcome.out

    @pytest.mark.parametrize("option", ["--out", "--predictions"])
    def test_evaluate_checks_its_outputs_first(
        self, option: str, spanbox: Command, trained: Path, scenes: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        outcome = spanbox("evaluate", trained, "--data", scenes / "test.jsonl", option, tmp_path / "file" / "x.json")
        assert outcome.code == 2
        assert "cannot be written" in outcome.err
        assert "encoding" not in outcome.err
        assert (tmp_path / "file").read_text() == ""

    def test_show_checks_its_output_first(self, spanbox: Command, scenes: Path, tmp_path: Path) -> None:
        outcome = spanbox("data", "show", scenes / "test.jsonl", "--out", tmp_path)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "cannot be written" in outcome.err

    def test_inverted_boxes_can_be_left_out_and_are_counted(self, spanbox: Command, faulty: Path) -> None:
        change_line(faulty / "train.jsonl", 3, lambda record: first_box(record).reverse())
        code, _, err = spanbox("train", "demo", *overrides(faulty, "data.inverted_boxes=drop", "train.steps=1"))
        assert code == 0
        assert f"{faulty}/train.jsonl: 1 boxes without an area are left out" in err

    def test_demo(self, spanbox: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "HELD_OUT", 12)
        small = [*miniature.TOWERS, *miniature.SCHEDULE, "train.steps=2"]
        code, out, _ = spanbox("demo", "--dir", "here", "--n", 16, *small)
        assert code == 0
        assert "across_set" in out
        assert json.loads(Path("here/demo/metrics.json").read_text())["retrieval.t2i.r1.count"] > 0


class TestMistakes:
    """Each has a short message without a traceback, and exit code 2."""

    def refused(self, outcome: Outcome, *parts: object) -> None:
        assert outcome.code == 2
        assert outcome.err.startswith("spanbox: ")
        assert "Traceback" not in outcome.err
        for part in parts:
            assert str(part) in outcome.err

    def test_unknown_key(self, spanbox: Command, scenes: Path) -> None:
        outcome = spanbox("train", "demo", *overrides(scenes, "train.batchsize=4"))
        self.refused(outcome, "train.batchsize: unknown key; the nearest known one is train.batch_size")

    def test_batch_of_one(self, spanbox: Command, scenes: Path) -> None:
        outcome = spanbox("train", "demo", *overrides(scenes, "train.batch_size=1"))
        self.refused(outcome, "train.batch_size: Input should be greater than or equal to 2; found 1")

    def test_unknown_recipe(self, spanbox: Command) -> None:
        self.refused(spanbox("train", "dmeo"), "dmeo: no such config file or recipe; recipes are demo, gmner, pairs")

    def test_unknown_metric(self, spanbox: Command, scenes: Path) -> None:
        outcome = spanbox("train", "demo", *overrides(scenes, "train.best_metric=retrieval.t2i.recall1"))
        self.refused(
            outcome,
            "train.best_metric: 'retrieval.t2i.recall1' cannot choose a checkpoint. Did you mean 'retrieval.t2i.r1'?",
        )

    def test_line_that_is_no_json(self, spanbox: Command, faulty: Path) -> None:
        with (faulty / "train.jsonl").open("a") as file:
            file.write('{"id": "x", "image"\n')
        self.refused(
            spanbox("train", "demo", *overrides(faulty)), f"{faulty}/train.jsonl, line 33: the line: is not JSON"
        )

    def test_offset_past_the_text(self, spanbox: Command, faulty: Path) -> None:
        change_line(faulty / "train.jsonl", 5, lambda record: record["entities"][1].update(end=999))
        outcome = spanbox("train", "demo", *overrides(faulty))
        self.refused(outcome, f"{faulty}/train.jsonl, line 5: entities[1]: ", ", 999) is not a span of a text of ")

    def test_inverted_box(self, spanbox: Command, faulty: Path) -> None:
        change_line(faulty / "train.jsonl", 3, lambda record: first_box(record).reverse())
        outcome = spanbox("train", "demo", *overrides(faulty))
        self.refused(outcome, f"{faulty}/train.jsonl, line 3: ", "has no area", "set data.inverted_boxes=drop in train")

    def test_missing_image_folder(self, spanbox: Command, faulty: Path) -> None:
        shutil.rmtree(faulty / "images" / "train")
        self.refused(spanbox("train", "demo", *overrides(faulty)), f"there is no folder {faulty}/images/train")

    def test_too_many_broken_images(self, spanbox: Command, faulty: Path) -> None:
        for record in Manifest(faulty / "train.jsonl"):
            (faulty / record.image).unlink()
        outcome = spanbox("train", "demo", *overrides(faulty))
        self.refused(outcome, f"{faulty}/train.jsonl: 20 images in a row cannot be read")

    @pytest.mark.parametrize("text", ["", "\n\n"])
    def test_empty_manifest(self, text: str, spanbox: Command, faulty: Path) -> None:
        (faulty / "train.jsonl").write_text(text)
        self.refused(spanbox("train", "demo", *overrides(faulty)), f"{faulty}/train.jsonl: the manifest is empty")

    def test_missing_manifest(self, spanbox: Command) -> None:
        self.refused(spanbox("train", "demo"), "runs/demo-data/train.jsonl: no such manifest")

    def test_nothing_to_resume(self, spanbox: Command, scenes: Path) -> None:
        outcome = spanbox("train", "demo", "--resume", *overrides(scenes))
        self.refused(outcome, "run: nothing to resume, checkpoints/ holds no complete checkpoint")

    def test_resuming_with_another_architecture(self, spanbox: Command, scenes: Path) -> None:
        assert spanbox("train", "demo", *overrides(scenes, "train.steps=1")).code == 0
        outcome = spanbox("train", "demo", "--resume", *overrides(scenes, "model.dim=24"))
        self.refused(outcome, "another architecture than the config asks for", "(16,) in the checkpoint")

    @pytest.mark.parametrize("path", ["gmner", "pairs"])
    def test_missing_models(self, path: str, spanbox: Command, scenes: Path) -> None:
        outcome = spanbox("train", path, *miniature.paths(scenes, Path("run")), *miniature.SCHEDULE)
        self.refused(outcome, "models/bert-base-uncased")

    def test_no_card(self, spanbox: Command, scenes: Path) -> None:
        self.refused(
            spanbox("train", "demo", *overrides(scenes, "train.device=gpu")), "train.device: 'gpu' is not a device"
        )

    def test_evaluate_nothing(self, spanbox: Command, scenes: Path) -> None:
        self.refused(spanbox("evaluate", "run", "--data", scenes / "test.jsonl"), "run: no checkpoint here")

    def test_evaluate_on_nothing(self, spanbox: Command, trained: Path) -> None:
        self.refused(spanbox("evaluate", trained, "--data", "no.jsonl"), "no.jsonl: no such manifest")

    def test_evaluate_a_damaged_checkpoint(self, spanbox: Command, trained: Path, scenes: Path, tmp_path: Path) -> None:
        damaged = shutil.copytree(trained / "checkpoints" / "best", tmp_path / "damaged")
        (damaged / "model.safetensors").write_bytes(b"half")
        outcome = spanbox("evaluate", damaged, "--data", scenes / "test.jsonl")
        self.refused(outcome, "damaged/model.safetensors: cannot be read")

    def test_predictions_in_place_of_a_manifest(self, spanbox: Command, trained: Path, faulty: Path) -> None:
        manifest = faulty / "test.jsonl"
        before = manifest.read_bytes()
        outcome = spanbox("evaluate", trained, "--data", manifest, "--out", "out", "--predictions", manifest)
        self.refused(outcome, "is read by this command, so it is not replaced")
        assert manifest.read_bytes() == before

    def test_a_page_in_place_of_a_manifest(self, spanbox: Command, faulty: Path) -> None:
        manifest = faulty / "test.jsonl"
        self.refused(spanbox("data", "show", manifest, "--out", manifest), "is not a .html file, so it is not replaced")

    def test_unknown_language(self, spanbox: Command) -> None:
        self.refused(spanbox("data", "demo", "out", "--lang", "fr"), "'fr' is not a language of the demo")

    @pytest.mark.parametrize("arguments", [["fly"], ["train"], ["train", "demo", "--fast"], ["evaluate", "run"]])
    def test_usage(self, arguments: list[str], spanbox: Command) -> None:
        code, _, err = spanbox(*arguments)
        assert code == 2
        assert "Usage: " in err
        assert "Traceback" not in err


def test_the_command_that_continues_a_run_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = Trained(Path("my runs/小"), is_main=True, step=3, finished=False, best={}, incidents={})
    with pytest.raises(typer.Exit):
        exit_unless_finished(stopped, ["train", str(stopped.run_dir / "config.yaml"), "--resume"])
    assert capsys.readouterr().err.splitlines()[1] == "  spanbox train 'my runs/小/config.yaml' --resume"
