"""Where an evaluation is written, and that a failed one leaves the one before."""

import errno
import shutil
from pathlib import Path

import pytest

from evaluations import LIGHT, read
from spanbox.errors import OutputError
from spanbox.wiring import EvaluationOptions, evaluate_to_folder
from spanbox.wiring.embedding import features_folder

FILES = {"metrics.json", "evaluation"}


class TestPlaces:
    def test_into_the_run(self, copied: Path, scenes: Path) -> None:
        before = {path.name for path in copied.iterdir()}
        _, path = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert path == copied / "metrics.json"
        assert {path.name for path in copied.iterdir()} - before == FILES
        assert {path.name for path in (copied / "evaluation").iterdir()} == {
            "outcomes.npz",
            "examples.json",
            "heatmaps.npz",
            "audit.json",
            "audit.inputs.json",
            ".lock",
            *(features_folder(Path(), scenes / f"{name}.jsonl").name for name in ("test", "val")),
        }

    def test_of_a_checkpoint_of_a_run_into_the_run(self, copied: Path, scenes: Path) -> None:
        checkpoint = copied / "checkpoints" / "step-000003"
        _, path = evaluate_to_folder(checkpoint, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert path == copied / "metrics.json"
        assert read(path)["checkpoint"] == "step-000003"
        assert "metrics.json" not in {path.name for path in checkpoint.iterdir()}

    def test_of_a_checkpoint_named_from_its_folder(
        self, copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for folder, name in (("", "step-000003"), ("step-000003", ".")):
            monkeypatch.chdir(copied / "checkpoints" / folder)
            _, path = evaluate_to_folder(Path(name), scenes / "test.jsonl", options=LIGHT, device="cpu")
            assert path == copied / "metrics.json"
            assert "metrics.json" not in {path.name for path in (copied / "checkpoints" / "step-000003").iterdir()}

    def test_of_a_checkpoint_alone_into_its_folder(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        alone = shutil.copytree(run / "checkpoints" / "last", tmp_path / "alone")
        _, path = evaluate_to_folder(alone, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert path == alone / "metrics.json"
        assert (alone / "evaluation" / "outcomes.npz").exists()

    def test_elsewhere(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        _, path = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "deep" / "out", LIGHT, "cpu")
        assert path == tmp_path / "deep" / "out" / "metrics.json"
        assert {path.name for path in path.parent.iterdir()} == FILES
        assert not FILES & {path.name for path in run.iterdir()}

    def test_the_figures_alone(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        _, path = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "deep" / "m.json", LIGHT, "cpu")
        assert [path.name for path in path.parent.iterdir()] == ["m.json"]
        assert "matching.presence.f1" in read(path)
        assert not FILES & {path.name for path in run.iterdir()}

    def test_where_nothing_can_be_written(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "metrics.json").mkdir()
        with pytest.raises(OutputError, match=r"file: cannot be written .* name another place"):
            evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "file", LIGHT, "cpu")
        with pytest.raises(OutputError, match=r"metrics.json: cannot be written"):
            evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, LIGHT, "cpu")
        options = EvaluationOptions(examples=0, occlusion=0, predictions=tmp_path)
        with pytest.raises(OutputError, match=r"cannot be written .* is a folder"):
            evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "m.json", options, "cpu")

    def test_a_full_disk_leaves_the_evaluation_before(
        self, copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def content() -> dict[str, bytes]:
            return {str(path): path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()}

        evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        before = content()
        monkeypatch.setattr("spanbox.wiring.evaluating.write_audit", full)
        with pytest.raises(OutputError, match=r"evaluation: cannot be written \(No space left on device\)"):
            evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert content() == before

    def test_two_manifests_of_one_name(self, copied: Path, scenes: Path, tmp_path: Path) -> None:
        """Their features do not replace each other."""
        other = shutil.copytree(scenes, tmp_path / "other") / "test.jsonl"
        for manifest in (scenes / "test.jsonl", other):
            evaluate_to_folder(copied, manifest, options=EvaluationOptions(None, 0, 0), device="cpu")
        assert len(list((copied / "evaluation").glob("features-test-*"))) == 2
