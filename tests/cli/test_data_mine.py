"""`spanbox data mine`: from a run and a manifest to the neighbours of its pairs."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import miniature
from command import Command
from spanbox.data.manifest import Manifest, write_manifest
from spanbox.data.neighbours import MiningSettings, load_neighbours
from spanbox.errors import ConfigError, DataError
from spanbox.structures import stable_id
from spanbox.wiring import Trained, load, train
from spanbox.wiring.embedding import evaluation_dataset
from spanbox.wiring.mining import mine


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(miniature.demo_config(scenes, tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture
def spanbox(spanbox: Command) -> Command:
    """Runs `spanbox data mine`."""
    return partial(spanbox, "data", "mine")


def test_writes_neighbours_that_a_sampler_can_use(spanbox: Command, run: Trained, scenes: Path, tmp_path: Path) -> None:
    manifest = Manifest(scenes / "train.jsonl")
    code, out, err = spanbox(run.run_dir, manifest.path, "--out", "mined/neighbours.npy", "--k", 5, "--margin", 0.99)
    assert (code, err.count("encoding 32/32"), err.count("searching 128/128")) == (0, 1, 1)
    for kind in ("sentences", "images", "spans", "regions"):
        assert kind in out
    assert "written to mined/neighbours.npy" in out
    neighbours = load_neighbours(tmp_path / "mined" / "neighbours.npy", manifest.path, len(manifest))
    assert neighbours.shape == (32, 5)
    for pair, row in enumerate(neighbours.tolist()):
        found = [neighbour for neighbour in row if neighbour >= 0]
        assert len(set(found)) == len(found)
        assert pair not in found
    described = json.loads((tmp_path / "mined" / "neighbours.npy.json").read_text(encoding="utf-8"))
    assert (described["by"], described["margin"], described["k"], described["pairs"]) == ("both", 0.99, 5, 32)
    assert described["checkpoint"].endswith(("step-000003", "step-000006"))


@pytest.mark.parametrize("by", ["sentences", "images", "spans", "regions", "coarse", "fine"])
def test_asks_by_what_it_is_reported(spanbox: Command, run: Trained, scenes: Path, by: str) -> None:
    code, out, _ = spanbox(run.run_dir, scenes / "test.jsonl", "--out", "n.npy", "--by", by, "--k", 2)
    assert code == 0
    assert ("sentences" in out, "images" in out) == (by in ("sentences", "coarse"), by in ("images", "coarse"))
    assert ("spans" in out, "regions" in out) == (by in ("spans", "fine"), by in ("regions", "fine"))


def test_a_corpus_of_one_pair(spanbox: Command, run: Trained, scenes: Path, tmp_path: Path) -> None:
    """It has no wrong pair: nothing is found, and that is said."""
    one = scenes / "one.jsonl"
    write_manifest(one, list(Manifest(scenes / "test.jsonl"))[:1])
    code, out, _ = spanbox(run.run_dir, one, "--out", "n.npy", "--k", 3)
    assert code == 0
    assert "100.0% of the pairs have fewer than 3 neighbours" in out
    assert (load_neighbours(tmp_path / "n.npy", one, 1) == -1).all()


def test_more_neighbours_than_there_are_pairs(spanbox: Command, run: Trained, scenes: Path, tmp_path: Path) -> None:
    """Places for them would take 5 TB."""
    manifest = Manifest(scenes / "test.jsonl")
    code, out, _ = spanbox(run.run_dir, manifest.path, "--out", "n.npy", "--k", 10**10, "--by", "coarse")
    assert code == 0
    assert "100.0% of the pairs have fewer than 10000000000 neighbours" in out
    assert load_neighbours(tmp_path / "n.npy", manifest.path, len(manifest)).shape == (len(manifest), len(manifest))


def test_pairs_with_a_broken_image_have_no_neighbours_and_are_nobodys(
    spanbox: Command, run: Trained, scenes: Path, tmp_path: Path
) -> None:
    """The others keep their places in the manifest."""
    whole = Manifest(scenes / "test.jsonl")
    spanbox(run.run_dir, whole.path, "--out", "whole.npy", "--k", 11, "--by", "sentences")
    copied = Manifest(shutil.copytree(scenes, tmp_path / "scenes") / "test.jsonl")
    for place in (0, 7):
        copied.image_path(copied[place]).write_bytes(b"no image")
    code, out, _ = spanbox(run.run_dir, copied.path, "--out", "broken.npy", "--k", 11, "--by", "sentences")
    assert code == 0
    assert "broken image" in out
    before = load_neighbours(tmp_path / "whole.npy", whole.path, 12)
    after = load_neighbours(tmp_path / "broken.npy", copied.path, 12)
    for place in range(12):
        kept = [] if place in (0, 7) else [n for n in before[place].tolist() if n not in (-1, 0, 7)]
        assert [n for n in after[place].tolist() if n >= 0] == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "n.npy", "--by", "words"], "--by: 'words' is not a choice; expected one of sentences, images"),
        (["--out", "n.npy", "--search", "nearly"], "--search: 'nearly' is not a search; expected one of exact, approx"),
        (["--out", "."], "cannot be written"),
        (["--out", "n.npy", "--k", "0"], "--k"),
        (["--out", "n.npy", "--margin", "2"], "--margin"),
    ],
)
def test_mistakes_are_reported(
    spanbox: Command, run: Trained, scenes: Path, arguments: list[str], message: str
) -> None:
    code, _, err = spanbox(run.run_dir, scenes / "test.jsonl", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert "encoding" not in err, "before the long work"


def test_the_approximate_search_of_a_small_corpus_misses_nothing(
    spanbox: Command, run: Trained, scenes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("faiss", reason='pip install "spanbox[faiss]"')
    manifest = Manifest(scenes / "train.jsonl")
    for search in ("exact", "approximate"):
        code, *_ = spanbox(run.run_dir, manifest.path, "--out", f"{search}.npy", "--k", 31, "--search", search)
        assert code == 0
    exact, found = (
        load_neighbours(tmp_path / f"{search}.npy", manifest.path, len(manifest)) for search in ("exact", "approximate")
    )
    assert np.array_equal(np.sort(found, axis=1), np.sort(exact, axis=1))
    described = json.loads((tmp_path / "approximate.npy.json").read_text(encoding="utf-8"))
    assert described["search"] == "approximate"


def test_the_approximate_search_without_faiss(
    spanbox: Command, run: Trained, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is encoded, and before a run begins that would mine with it."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    code, _, err = spanbox(run.run_dir, scenes / "test.jsonl", "--out", "n.npy", "--search", "approximate")
    assert code == 2
    assert 'pip install "spanbox[faiss]"' in err
    assert "encoding" not in err
    mining = ["data.mining.every=1", "data.mining.search=approximate"]
    with pytest.raises(ConfigError, match="needs faiss"):
        train(miniature.demo_config(scenes, tmp_path / "run", *mining))
    assert not (tmp_path / "run").exists()


def test_between_epochs_the_model_of_the_run_mines(run: Trained, scenes: Path) -> None:
    """The same neighbours again, nothing of the random state used, and nobody's own image or sentence among them."""
    loaded = load(run.run_dir)
    manifest = Manifest(scenes / "train.jsonl")
    dataset = evaluation_dataset(loaded, manifest)
    state = torch.random.get_rng_state()
    first = mine(loaded, dataset, MiningSettings(count=4))
    again = mine(loaded, dataset, MiningSettings(count=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.neighbours.dtype == np.int32
    assert np.array_equal(first.neighbours, again.neighbours)
    wording = [stable_id(record.text.casefold()) for record in manifest]
    for pair, row in enumerate(first.neighbours.tolist()):
        assert all(wording[pair] != wording[neighbour] for neighbour in row if neighbour >= 0)


def test_a_run_trains_beside_mined_neighbours_and_resumes(
    scenes: Path, run: Trained, tmp_path: Path, spanbox: Command
) -> None:
    mined = tmp_path / "neighbours.npy"
    assert spanbox(run.run_dir, scenes / "train.jsonl", "--out", mined, "--k", "3")[0] == 0
    beside = [f"data.neighbours={mined}", "data.hard_share=0.5", "train.save_every=3"]
    train(miniature.demo_config(scenes, tmp_path / "whole", *beside))
    train(miniature.demo_config(scenes, tmp_path / "plain"))
    train(miniature.demo_config(scenes, tmp_path / "cut", *beside, "train.steps=3"))
    train(miniature.demo_config(scenes, tmp_path / "cut", *beside, "train.resume=true"))

    def losses(name: str) -> list[float]:
        lines = (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]

    assert losses("whole") != losses("plain")
    assert len(losses("cut")) == len(losses("whole")) == 6


def test_neighbours_of_another_manifest_are_refused(
    scenes: Path, run: Trained, tmp_path: Path, spanbox: Command
) -> None:
    mined = tmp_path / "neighbours.npy"
    assert spanbox(run.run_dir, scenes / "val.jsonl", "--out", mined, "--k", "3")[0] == 0
    with pytest.raises(DataError, match="mine again"):
        train(miniature.demo_config(scenes, tmp_path / "run", f"data.neighbours={mined}"))


def test_a_wrong_file_of_neighbours_costs_no_earlier_run(scenes: Path, tmp_path: Path) -> None:
    train(miniature.demo_config(scenes, tmp_path / "run"))
    before = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    wrong = ["run.overwrite=true", f"data.neighbours={tmp_path}/missing.npy"]
    with pytest.raises(DataError):
        train(miniature.demo_config(scenes, tmp_path / "run", *wrong))
    assert (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8") == before
    assert (tmp_path / "run" / "checkpoints" / "last").exists()
