"""Features that an evaluation uses again or makes anew, and its audit of the data."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
import torch

from evaluations import LIGHT, read, replace
from spanbox.data.audit import audit
from spanbox.data.manifest import Manifest, write_manifest
from spanbox.errors import DataError
from spanbox.evaluation.extract import FeatureBank, extract_parts
from spanbox.wiring import Evaluated, evaluate_to_folder, load
from spanbox.wiring.building import open_manifest
from spanbox.wiring.embedding import embed, embed_to_disk, evaluation_dataset, features_folder


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


class TestFeatures:
    def test_are_used_again(self, copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, _ = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        before = [times(folder) for folder in sorted((copied / "evaluation").glob("features-*"))]
        assert len(before) == 2  # of the test and of the validation data
        monkeypatch.setattr("spanbox.wiring.embedding.extract_parts", self.not_again)
        again, _ = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert [times(folder) for folder in sorted((copied / "evaluation").glob("features-*"))] == before
        assert again.metrics == first.metrics

    @staticmethod
    def not_again(*arguments: Any) -> Any:
        raise AssertionError("features are there")

    def test_come_with_what_was_met_in_the_data(self, copied: Path, copied_scenes: Path) -> None:
        broken = Manifest(copied_scenes / "test.jsonl")[0]
        (copied_scenes / broken.image).write_bytes(b"")
        runs = [evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu") for _ in range(2)]
        for evaluated, _ in runs:
            assert [(incident.kind, incident.sample) for incident in evaluated.incidents] == [
                ("broken image", broken.id)
            ]

    @pytest.mark.parametrize("change", ["manifest", "image", "checkpoint", "settings", "damage", "half"])
    def test_are_made_anew(self, change: str, copied: Path, copied_scenes: Path) -> None:
        manifest = copied_scenes / "test.jsonl"
        checkpoint = (copied / "checkpoints" / "best").resolve()

        def evaluate() -> Evaluated:
            return evaluate_to_folder(copied, manifest, options=LIGHT, device="cpu")[0]

        evaluate()
        folder = features_folder(copied / "evaluation", manifest)
        before = times(folder)
        changes: dict[str, Callable[[], object]] = {
            "manifest": lambda: write_manifest(manifest, Manifest(manifest)[:11]),
            "image": lambda: (copied_scenes / Manifest(manifest)[3].image).touch(),
            "checkpoint": lambda: (checkpoint / "model.safetensors").touch(),
            "settings": lambda: replace(checkpoint / "config.yaml", "proposals: 2", "proposals: 1"),
            "damage": lambda: (folder / "regions.npy").write_bytes((folder / "regions.npy").read_bytes()[:-4]),
            "half": lambda: (folder / "bank.json").unlink(),
        }
        changes[change]()
        metrics = evaluate().metrics
        after = times(folder)
        assert after.keys() == before.keys()
        assert all(after[name] != before[name] for name in after)
        assert metrics["retrieval.t2i.r1.count"] == (11 if change == "manifest" else 12)

    def test_are_no_use_without_the_images(self, copied: Path, copied_scenes: Path) -> None:
        evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")
        for record in Manifest(copied_scenes / "test.jsonl"):
            (copied_scenes / record.image).unlink()
        with pytest.raises(DataError, match="none of its images can be read"):
            evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")


def test_two_at_once_take_turns(
    copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of two checkpoints lie in one folder: none may be replaced while another evaluation reads them."""
    manifest = scenes / "test.jsonl"
    loaded = [load(copied / "checkpoints" / step, "cpu") for step in ("step-000003", "step-000006")]
    datasets = [evaluation_dataset(each, open_manifest(each.config, str(manifest), "")) for each in loaded]
    expected = [embed(each, data)[0] for each, data in zip(loaded, datasets, strict=True)]
    meeting = Barrier(2)

    def slow_parts(*arguments: Any, **options: Any) -> Iterator[FeatureBank]:
        with suppress(BrokenBarrierError):
            meeting.wait(0.2)
            raise AssertionError("both encode at once")
        yield from extract_parts(*arguments, **options)

    monkeypatch.setattr("spanbox.wiring.embedding.extract_parts", slow_parts)
    monkeypatch.setattr("spanbox.files.PATIENCE", 0.0)
    folder = features_folder(copied / "evaluation", manifest)
    with ThreadPoolExecutor(2) as pool:
        found = [
            pool.submit(embed_to_disk, each, data, folder, keep_states=False)
            for each, data in zip(loaded, datasets, strict=True)
        ]
        for stored, own in zip(found, expected, strict=True):
            assert torch.equal(stored.result().bank.spans, own.spans)
    assert "evaluation: another command writes here; waiting for it" in capsys.readouterr().err


class TestAudit:
    def test_counts_each_part_and_what_is_wrong_in_all(self, evaluated: Path) -> None:
        audit = read(evaluated / "evaluation" / "audit.json")
        assert audit.keys() == {"train", "val", "test", "all"}
        assert [audit[part]["pairs"] for part in ("train", "val", "test")] == [32, 12, 12]
        assert audit["all"]["pairs"] == 56
        assert audit["test"]["entities"] == audit["test"]["entities_with_box"] + audit["test"]["entities_without_box"]

    def test_findings(self, copied: Path, copied_scenes: Path) -> None:
        """The training scenes are looked for where the config has them, the test scenes where they are."""
        manifest = copied_scenes / "test.jsonl"
        (copied_scenes / Manifest(manifest)[0].image).unlink()
        evaluate_to_folder(copied, manifest, options=LIGHT, device="cpu")
        audit = read(copied / "evaluation" / "audit.json")
        assert audit["all"]["missing image"] == 1

    def test_manifests_that_are_gone(self, copied: Path, copied_scenes: Path, scenes: Path) -> None:
        for name in ("train", "val"):
            replace(
                (copied / "checkpoints" / "best" / "config.yaml").resolve(), str(scenes / f"{name}.jsonl"), "no.jsonl"
            )
        evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert read(copied / "evaluation" / "audit.json").keys() == {"test", "all"}

    def test_is_made_again_where_a_manifest_or_an_image_changed(
        self, copied: Path, copied_scenes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest, audited = copied_scenes / "test.jsonl", 0

        def counting(*args: Any, **options: Any) -> Any:
            nonlocal audited
            audited += 1
            return audit(*args, **options)

        def evaluate() -> dict[str, Any]:
            evaluate_to_folder(copied, manifest, options=LIGHT, device="cpu")
            content: dict[str, Any] = read(copied / "evaluation" / "audit.json")
            return content

        monkeypatch.setattr("spanbox.wiring.auditing.audit", counting)
        first = evaluate()
        assert (evaluate(), audited) == (first, 1)
        (copied_scenes / Manifest(manifest)[0].image).unlink()
        assert (evaluate()["all"]["missing image"], audited) == (1, 2)
        lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
        manifest.write_text("".join(lines[1:]), encoding="utf-8")
        assert (evaluate()["test"]["pairs"], audited) == (len(lines) - 1, 3)

    def test_the_validation_data_themselves(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        evaluate_to_folder(run, scenes / "val.jsonl", tmp_path, LIGHT, "cpu")
        audit = read(tmp_path / "evaluation" / "audit.json")
        assert audit.keys() == {"train", "test", "all"}
        assert "id used twice" not in audit["all"]
