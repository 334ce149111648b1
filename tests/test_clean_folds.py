"""`spanbox data clean` as a whole, in miniature: folds, resuming, outputs, refusals."""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

import miniature
from spanbox.cleaning import clean, fold_members
from spanbox.config import dump_config, load_config
from spanbox.data.cleaning import Policies
from spanbox.data.manifest import Manifest, Record, write_manifest
from spanbox.engine.stopping import StopRequest
from spanbox.errors import ConfigError, DataError, OutputError, TrainingError
from spanbox.processes import Jobs
from spanbox.wiring.training import train

OVERRIDES = [*miniature.TOWERS, *miniature.SCHEDULE]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs the commands of the folds here, which takes a tenth of the time; returns them."""
    seen: list[list[str]] = []

    def run(jobs: Jobs, name: str, commands: Sequence[Sequence[str]], output: Path) -> None:
        for command in commands:
            seen.append(list(command))
            overrides = [word for word in command[2:] if word != "--resume"]
            train(load_config(command[1], [*overrides, *(["train.resume=true"] if "--resume" in command else [])]))

    monkeypatch.setattr(Jobs, "run", run)
    monkeypatch.setattr(StopRequest, "listening", lambda self: nullcontext())  # signals need the main thread
    return seen


@pytest.mark.slow
def test_folds_are_trained_scored_and_written(scenes: Path, tmp_path: Path, in_process: list[list[str]]) -> None:
    before = (scenes / "train.jsonl").read_bytes()
    done = clean(scenes / "train.jsonl", tmp_path, recipe="demo", overrides=OVERRIDES, folds=2, device="cpu")
    assert len(in_process) == 2
    assert (scenes / "train.jsonl").read_bytes() == before
    cleaned = Manifest(done.manifest)
    assert len(cleaned) == 32 - done.counts["pairs dropped"]
    assert all(cleaned.image_path(record).is_file() for record in cleaned)
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [verdict["id"] for verdict in verdicts] == [record.id for record in Manifest(scenes / "train.jsonl")]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["policies"] == {"pairs": "drop", "links": "relink"}
    assert sum(summary["pair_verdicts"].values()) == 32
    assert "Data cleaning" in (tmp_path / "review.html").read_text()


@pytest.mark.slow
def test_no_model_scores_a_pair_that_it_was_trained_on(
    scenes: Path, tmp_path: Path, in_process: list[list[str]]
) -> None:
    clean(scenes / "train.jsonl", tmp_path, recipe="demo", overrides=OVERRIDES, folds=2, device="cpu")
    parts = [
        [
            {record.id for record in Manifest(tmp_path / "folds" / f"{part}-{fold}.jsonl")}
            for part in ("train", "held-out")
        ]
        for fold in range(2)
    ]
    for trained, held_out in parts:
        assert not trained & held_out
        assert len(trained | held_out) == 32
    assert len(parts[0][1] | parts[1][1]) == 32


@pytest.mark.slow
def test_it_continues_where_it_was_interrupted(scenes: Path, tmp_path: Path, in_process: list[list[str]]) -> None:
    options = {"recipe": "demo", "overrides": OVERRIDES, "folds": 2, "device": "cpu"}
    clean(scenes / "train.jsonl", tmp_path, **options)  # type: ignore[arg-type]
    first = (tmp_path / "verdicts.jsonl").read_bytes()
    commands = tmp_path / "folds" / "commands-1.json"
    commands.write_text(commands.read_text().replace("true", "false"))
    in_process.clear()
    clean(scenes / "train.jsonl", tmp_path, **options)  # type: ignore[arg-type]
    assert in_process == [["train", str(tmp_path / "folds" / "run-1" / "config.yaml"), "--resume"]]
    assert (tmp_path / "verdicts.jsonl").read_bytes() == first
    in_process.clear()
    clean(scenes / "train.jsonl", tmp_path, **(options | {"overrides": [*OVERRIDES, "train.steps=3"]}))  # type: ignore[arg-type]
    assert [command[-1] for command in in_process] == ["run.overwrite=true"] * 2


@pytest.mark.slow
def test_models_of_other_folds_or_settings_are_trained_again(
    scenes: Path, tmp_path: Path, in_process: list[list[str]]
) -> None:
    """They would score pairs that they were trained on."""
    recipe = tmp_path / "recipe.yaml"
    data = Path(shutil.copytree(scenes, tmp_path / "scenes")) / "train.jsonl"

    def cleaned(seed: int, steps: int = 1) -> int:
        in_process.clear()
        recipe.write_text(dump_config(load_config("demo", [*OVERRIDES, f"train.steps={steps}"])), encoding="utf-8")
        clean(data, tmp_path / "out", recipe=str(recipe), folds=2, device="cpu", seed=seed)
        return len(in_process)

    assert [cleaned(0), cleaned(0), cleaned(1)] == [2, 0, 2]
    write_manifest(data, list(Manifest(data))[1:])
    assert cleaned(1) == 2
    assert cleaned(1, steps=2) == 2


@pytest.mark.slow
def test_models_of_earlier_settings_do_not_count_after_a_start_that_failed(
    scenes: Path, tmp_path: Path, in_process: list[list[str]]
) -> None:
    """Nor after one that was interrupted before its first checkpoint."""
    options = {"recipe": "demo", "folds": 2, "device": "cpu"}
    clean(scenes / "train.jsonl", tmp_path, overrides=OVERRIDES, **options)  # type: ignore[arg-type]
    for _ in range(3):  # each would take one of the models
        with pytest.raises(ConfigError, match="needs more pairs"):
            clean(scenes / "train.jsonl", tmp_path, overrides=[*OVERRIDES, "train.batch_size=64"], **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_that_has_not_seen_the_data_scores_all_of_it(scenes: Path, tmp_path: Path) -> None:
    run = train(miniature.demo_config(scenes, tmp_path / "run")).run_dir
    policies = Policies(pairs="weight", links="weight")
    done = clean(scenes / "test.jsonl", tmp_path / "out", run=run, policies=policies, device="cpu")
    records = list(Manifest(done.manifest))
    assert len(records) == 12
    assert done.manifest.name == "test.jsonl"
    assert not (tmp_path / "out" / "folds").exists()


@pytest.mark.slow
def test_a_run_that_was_trained_on_the_data_is_refused(scenes: Path, tmp_path: Path) -> None:
    """Itself, and as what the models of the folds begin with."""
    run = train(miniature.demo_config(scenes, tmp_path / "run")).run_dir
    data = scenes / ".." / scenes.name / "train.jsonl"
    with pytest.raises(ConfigError, match=r"run: was trained on .*clean with --recipe"):
        clean(data, tmp_path / "out", run=run, device="cpu")
    started = [*OVERRIDES, f"train.start={run}"]
    with pytest.raises(ConfigError, match=r"^train\.start=.*run: was trained on"):
        clean(data, tmp_path / "out", recipe="demo", overrides=started, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_of_the_coarse_level_alone_judges_no_box(scenes: Path, tmp_path: Path) -> None:
    run = train(miniature.demo_config(scenes, tmp_path / "run", "loss.fine.weight=0")).run_dir
    done = clean(scenes / "test.jsonl", tmp_path / "out", run=run, policies=Policies(pairs="keep"), device="cpu")
    assert done.links_not_judged is not None
    assert "loss.fine.weight=0" in done.links_not_judged
    assert not done.link_verdicts
    assert [r.entities for r in Manifest(done.manifest)] == [r.entities for r in Manifest(scenes / "test.jsonl")]


@pytest.mark.slow
def test_boxes_without_an_area_are_left_out_where_the_settings_say_so(
    scenes: Path, tmp_path: Path, in_process: list[list[str]]
) -> None:
    data = Path(shutil.copytree(scenes, tmp_path / "scenes")) / "train.jsonl"
    first, *others = Manifest(data)
    flat = msgspec.structs.replace(first.entities[0], boxes=((9.0, 9.0, 9.0, 20.0),))
    write_manifest(data, [msgspec.structs.replace(first, entities=(flat, *first.entities[1:])), *others])
    options = {"recipe": "demo", "folds": 2, "device": "cpu"}
    with pytest.raises(DataError, match=r"set data\.inverted_boxes=drop"):
        clean(data, tmp_path / "out", overrides=OVERRIDES, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    drop = [*OVERRIDES, "data.inverted_boxes=drop"]
    done = clean(data, tmp_path / "out", overrides=drop, **options)  # type: ignore[arg-type]
    assert done.pair_verdicts.total() == 32
    Manifest(done.manifest)  # raises where there are boxes without an area


def test_groups_stay_together(tmp_path: Path) -> None:
    records = [Record(str(i), f"{i // 3}.png", "x") for i in range(60)]
    write_manifest(tmp_path / "m.jsonl", records)
    members = fold_members(Manifest(tmp_path / "m.jsonl"), 4, seed=0)
    assert sorted(place for own in members for place in own) == list(range(60))
    assert [len(own) for own in members] == [15] * 4
    images = [{place // 3 for place in own} for own in members]
    assert not any(one & other for i, one in enumerate(images) for other in images[:i])
    with pytest.raises(DataError, match="20 groups are too few for 11 folds"):
        fold_members(Manifest(tmp_path / "m.jsonl"), 11, seed=0)


def test_pairs_of_one_image_file_stay_together_whatever_their_groups(tmp_path: Path) -> None:
    names = [
        ("a.png", "1"),
        ("b.png", "2"),
        ("./a.png", "2"),
        ("c.png", ""),
        (f"{tmp_path}/c.png", "4"),
        ("d.png", ""),
        ("e.png", ""),
    ]
    records = [Record(str(i), image, "猫", group=group) for i, (image, group) in enumerate(names)]
    write_manifest(tmp_path / "m.jsonl", records)
    for seed in range(5):
        folds = [set(own) for own in fold_members(Manifest(tmp_path / "m.jsonl"), 2, seed)]
        assert sum(map(len, folds)) == 7
        assert all(together <= own or not together & own for together in ({0, 1, 2}, {3, 4}) for own in folds)


def test_refusals(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="give either --recipe"):
        clean(scenes / "train.jsonl", tmp_path)
    with pytest.raises(OutputError, match="is read by this command"):
        clean(scenes / "train.jsonl", scenes, recipe="demo")
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown key"):
        clean(scenes / "train.jsonl", tmp_path / "new", recipe="demo", overrides=["train.stepz=1"])
    with pytest.raises(ConfigError, match=r"train.steps=5: settings are those of --recipe"):
        clean(scenes / "train.jsonl", tmp_path / "new", run=tmp_path / "run", overrides=["train.steps=5"])
    with pytest.raises(ConfigError, match=r"demo: pairs cannot be judged: .*loss\.coarse\.weight above 0"):
        clean(scenes / "train.jsonl", tmp_path / "new", recipe="demo", overrides=["loss.coarse.weight=0"])
    with pytest.raises(ConfigError, match=r"set data\.neighbours=null"):
        clean(scenes / "train.jsonl", tmp_path / "new", recipe="demo", overrides=["data.neighbours=all.npy"])
    verdicts = shutil.copy(scenes / "train.jsonl", tmp_path / "verdicts.jsonl")
    with pytest.raises(OutputError, match="give the manifest another name"):
        clean(Path(verdicts), tmp_path / "new", recipe="demo")
    assert not (tmp_path / "new").exists()


def test_a_fold_that_fails_ends_the_cleaning(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other folds do not begin, and nothing but the folds is written."""
    started: list[str] = []

    def fail(jobs: Jobs, name: str, *_: object) -> None:
        started.append(name)
        raise TrainingError("no")

    monkeypatch.setattr(Jobs, "run", fail)
    with pytest.raises(TrainingError, match="no"):
        clean(scenes / "train.jsonl", tmp_path, recipe="demo", overrides=OVERRIDES, folds=4)
    assert "fold 0" in started
    assert len(started) < 4
    assert [path.name for path in tmp_path.iterdir()] == ["folds"]
