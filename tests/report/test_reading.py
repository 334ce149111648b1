import json
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_folders
from spanbox.errors import CheckpointError
from spanbox.report import reading
from spanbox.report.page import make_report
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


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", DEEP),
        ("metrics.json", '{"a": ' + "9" * 6000 + "}"),
        ("metrics.json", " " * (8 * 2**20 + 1)),
        ("config.yaml", DEEP),
        ("config.yaml", "a: !!python/object/apply:os.system [id]"),
        ("evaluation/audit.json", '{"test": {"pairs": 1e999}}'),
        ("evaluation/audit.json", '{"test": {"pairs": "x"}}'),
        ("evaluation/examples.json", '{"manifest": "x", "retrieval": {"other": []}}'),
        ("evaluation/examples.json", '{"manifest": "x", "similarity": {"coarse": {"ids": ["a"], "matrix": [[1, 2]]}}}'),
        (
            "evaluation/examples.json",
            '{"manifest": "x", "similarity": {"fine": {"spans": [{"id": "a", "entity": 0}], "regions": [], '
            '"matrix": [[]], "linked": [[]], "same_identity": [[]]}}}',
        ),
        ("evaluation/examples.json", '{"manifest": "x", "heatmaps": [{"id": "a", "entity": 0, "maps": {"a": 1}}]}'),
    ],
)
def test_hostile_files_are_named_and_left_out(tmp_path: Path, name: str, content: str) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    (folder / name).write_text(content)
    run = read_run(folder)
    assert [problem.partition(":")[0] for problem in run.problems] == [name]
    assert len(run.problems[0]) < 400
    assert make_report([folder], "en").html


@pytest.mark.parametrize("values", [np.array([np.inf]), np.zeros((2, 2)), np.array(["a"]), np.zeros(3)])
def test_outcomes_that_do_not_match_are_left_out(tmp_path: Path, values: Any) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    arrays = {"a/values": values, "a/image": np.zeros(1, dtype=np.int64)}
    np.savez(folder / "evaluation" / "outcomes.npz", **arrays)
    assert len(read_run(folder).problems) == 1


def test_an_archive_that_unpacks_to_much_is_left_out(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    with zipfile.ZipFile(folder / "evaluation" / "heatmaps.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0/similarity.npy", bytes(65 * 2**20))
    run = read_run(folder)
    assert run.heatmaps == {}
    assert "MiB" in run.problems[0]


def test_values_of_a_wrong_type_in_config_and_log_do_no_harm(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    (folder / "config.yaml").write_text("train: {steps: many, minutes: [1]}\ndata: {train: {a: 1}}\n")
    lines = [
        '{"step": 1e400}',
        '{"step": true, "kind": "train"}',
        '{"step": 5, "kind": "train", "loss": "x", "lr": []}',
    ]
    lines += ['{"step": 6, "kind": "train", "seconds": null, "incidents": {"a": "b", "c": 2}}', "[" * 5000, "\0", "3"]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(folder)
    assert (run.step, run.seconds, run.is_finished) == (6, 0.0, True)
    assert run.training[-1]["incidents"] == {"c": 2}
    assert make_report([folder], "zh").html


def test_text_that_no_page_can_hold_is_replaced(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    metrics = json.loads((folder / "metrics.json").read_text())
    name = "matching.within_image.type.\ud800\x00"
    (folder / "metrics.json").write_text(json.dumps(metrics | run_folders.score(name, 0.5)))
    html = make_report([folder], "en").html
    assert html.encode()
    assert "\x00" not in html


def test_a_long_log_is_thinned_and_keeps_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LOG_LINES", 8)
    lines = [json.dumps({"step": step, "kind": "train", "loss": 1.0}) for step in range(1, 102)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    steps = [line["step"] for line in read_run(tmp_path).training]
    assert 4 <= len(steps) <= 9
    assert (steps[0], steps[-1]) == (1, 101)
    assert len({later - earlier for earlier, later in pairwise(steps[:-1])}) == 1


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


def test_runs_of_the_same_name_are_distinguished(tmp_path: Path) -> None:
    folders = [run_folders.write_run(tmp_path / part / "run") for part in ("a", "b")]
    runs, _ = read_folders(folders)
    assert [run.name for run in runs] == [str(folder) for folder in folders]
