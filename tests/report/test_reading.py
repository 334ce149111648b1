import json
from pathlib import Path

import pytest

import run_folders
from spanbox.errors import CheckpointError
from spanbox.report.reading import AblationRow, read_ablation, read_folders, read_run


def test_everything_that_an_evaluated_run_has_is_read(tmp_path: Path) -> None:
    run = read_run(run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data")))
    assert (run.name, run.step, run.is_finished, run.problems) == ("run", 40, True, ())
    assert len(run.training) == 4
    assert len(run.validation) == 1
    assert run.checkpoint == "step-000040"
    assert run.metrics["retrieval.i2t.r1"] == 0.75
    assert "data" not in run.metrics
    assert len(run.outcomes["retrieval.i2t.r1"].values) == run_folders.QUERIES
    assert run.heatmaps["0/rollout"].shape == (2, 2)
    assert run.examples is not None
    assert run.examples.matching[1].candidates[1].linked
    assert run.audit["all"]["broken image"] == 1
    assert run.environment["cores"] == 2


def test_a_run_that_is_still_going(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", steps=20)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 30, "kind": "tra')  # being written
    run = read_run(folder)
    assert (run.step, run.is_finished, run.problems) == (20, False, ())
    assert run.metrics == {}
    assert run.examples is None


def test_a_run_without_any_line_yet_is_not_finished(tmp_path: Path) -> None:
    run = read_run(run_folders.write_run(tmp_path / "run", steps=0))
    assert (run.step, run.is_finished) == (0, False)


@pytest.mark.parametrize(("minutes", "finished"), [(0.5, True), (1.0, False)])
def test_a_run_by_the_clock_ends_by_the_clock(tmp_path: Path, minutes: float, finished: bool) -> None:
    folder = run_folders.write_run(tmp_path / "run")
    (folder / "config.yaml").write_text(json.dumps({"train": {"steps": 9999, "minutes": minutes}}))
    assert read_run(folder).is_finished is finished


def test_an_older_version_has_figures_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(
        '{"checkpoint": "step-1", "retrieval.i2t.r1": 0.5, "retrieval.i2t.count": 8}'
    )
    run = read_run(tmp_path)
    assert run.metrics == {"retrieval.i2t.r1": 0.5, "retrieval.i2t.count": 8.0}
    assert (run.outcomes, run.examples, run.is_finished, run.problems) == ({}, None, True, ())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "just words"),
        ("metrics.json", "{"),
        ("metrics.json", "[1]"),
        ("environment.json", "\udcff"),
        ("evaluation/examples.json", '{"manifest": 3}'),
        ("evaluation/outcomes.npz", "no archive"),
        ("evaluation/heatmaps.npz", ""),
    ],
)
def test_a_damaged_file_is_named_and_left_out(tmp_path: Path, name: str, content: str) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    (folder / name).write_text(content, errors="surrogateescape")
    run = read_run(folder)
    assert [problem.partition(":")[0] for problem in run.problems] == [name]
    assert run.step == 40


def test_an_archive_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    path = folder / "evaluation" / "outcomes.npz"
    path.write_bytes(path.read_bytes()[:-40])
    run = read_run(folder)
    assert run.outcomes == {}
    assert len(run.problems) == 1


def test_figures_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"a": NaN, "b": Infinity, "c": 1, "d": true, "e": "x"}')
    assert read_run(tmp_path).metrics == {"c": 1.0}


def test_an_ablation_is_read_in_the_place_of_a_run(tmp_path: Path) -> None:
    runs, ablations = read_folders(
        [run_folders.write_run(tmp_path / "run"), run_folders.write_ablation(tmp_path / "plan")]
    )
    assert [run.name for run in runs] == ["run"]
    assert ablations[0].variants == ("plain", "<b>other</b>")
    assert ablations[0].metrics == ("retrieval.t2i.r1",)
    assert ablations[0].row("plain", "retrieval.t2i.r1") == AblationRow(
        "plain", "retrieval.t2i.r1", (0.7, 0.6, 0.8), (0.0, 0.0, 0.0)
    )
    assert ablations[0].row("plain", "another") is None


@pytest.mark.parametrize("content", ["", "variant,metric\na,b\n", "variant,metric,seed,value,difference\na,b,0,x,0\n"])
def test_a_damaged_table_says_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(CheckpointError, match="spanbox ablate"):
        read_ablation(tmp_path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        read_folders([tmp_path / "absent"])
    with pytest.raises(CheckpointError, match=r"metrics\.json"):
        read_folders([tmp_path])


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run_folders.write_run(tmp_path / part / "run") for part in ("a", "b")]
    runs, _ = read_folders(folders)
    assert [run.name for run in runs] == [str(folder) for folder in folders]
