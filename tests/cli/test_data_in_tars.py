"""A data set whose images are in tars is checked, shown, trained on, resumed and evaluated as one in folders."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

import miniature
from command import Command
from spanbox.data.manifest import Manifest, write_manifest
from spanbox.data.tar_index import index_path
from spanbox.files import remove_entry

SHARDS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("folders"), languages=("en", "zh"))


@pytest.fixture
def tars(folders: Path, tmp_path: Path) -> Path:
    """The same pairs; the images of a manifest in three tars."""
    out = tmp_path / "tars"
    (out / "shards").mkdir(parents=True)
    for split in ("train", "val", "test"):
        manifest = Manifest(folders / f"{split}.jsonl")
        archives = [tarfile.open(out / "shards" / f"{split}-{i}.tar", "w") for i in range(SHARDS)]  # noqa: SIM115
        records = []
        for number, record in enumerate(manifest):
            archive, name = archives[number % SHARDS], Path(record.image).name
            archive.add(manifest.image_path(record), name)
            image = f"shards/{split}-{number % SHARDS}.tar/{name}"
            records.append(msgspec.structs.replace(record, image=image, group=record.group_key))
        for archive in archives:
            archive.close()
        write_manifest(out / f"{split}.jsonl", records)
    return out


def losses(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "loss" in key} for line in lines]


def test_check_show_and_sample(spanbox: Command, folders: Path, tars: Path) -> None:
    found, expected = (
        spanbox("data", "check", *(folder / f"{split}.jsonl" for split in ("train", "val", "test")))
        for folder in (tars, folders)
    )
    assert (found.code, expected.code) == (0, 0)
    assert found.out.splitlines()[1:] == expected.out.splitlines()[1:]
    assert len(list((tars / "shards").glob("*.index.npy"))) == 3 * SHARDS
    for folder in (tars, folders):
        assert spanbox("data", "show", folder / "test.jsonl", "--n", 4, "--out", f"{folder.name}.html").code == 0
    pages = [Path(f"{folder.name}.html").read_text().partition("</h1>")[2] for folder in (tars, folders)]
    assert pages[0] == pages[1]
    assert spanbox("data", "sample", tars / "train.jsonl", "new/small.jsonl", "--n", 5).code == 0
    assert spanbox("data", "check", "new/small.jsonl").code == 0


def test_training_resuming_and_evaluation(spanbox: Command, folders: Path, tars: Path) -> None:
    for folder, name, workers in ((folders, "a", 0), (tars, "b", 2)):
        overrides = miniature.demo_overrides(folder, Path(name), f"data.workers={workers}")
        assert spanbox("train", "demo", *overrides).code == 0
    assert losses(Path("a")) == losses(Path("b"))
    shutil.copytree("b", "c", symlinks=True)
    for name in ("step-000006", "last", "best"):
        remove_entry(Path("c/checkpoints") / name)
    assert spanbox("train", "c/config.yaml", "--resume", "run.dir=c").code == 0
    weights = [Path(name, "checkpoints/step-000006/model.safetensors").read_bytes() for name in ("a", "b", "c")]
    assert weights[0] == weights[1] == weights[2]
    for folder, name in ((folders, "a"), (tars, "b")):
        assert spanbox("evaluate", name, "--data", folder / "test.jsonl", "--device", "cpu").code == 0
        assert spanbox("embed", name, folder / "test.jsonl", f"{name}.npy", "--device", "cpu").code == 0
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()
    found = [json.loads(Path(name, "metrics.json").read_text()) for name in ("a", "b")]
    retrieval = [{key: value for key, value in metrics.items() if key.startswith("retrieval")} for metrics in found]
    assert retrieval[0] == retrieval[1] != {}


def test_a_damaged_tar_stops_training_with_its_name(spanbox: Command, tars: Path) -> None:
    path = tars / "shards" / "train-1.tar"
    path.write_bytes(path.read_bytes()[:3000])
    code, out, _ = spanbox("data", "check", tars / "train.jsonl")
    assert code == 1
    assert "broken image: 11" in out
    assert "train-1.tar: is not a whole tar" in out
    code, _, err = spanbox("train", "demo", *miniature.demo_overrides(tars, Path("run")))
    assert code == 2
    assert "train-1.tar" in err
    assert not index_path(path).exists()
