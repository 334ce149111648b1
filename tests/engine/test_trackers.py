"""Trackers: the real packages where they are installed, and a fake one for failures."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from spanbox.engine import trackers as trackers_module
from spanbox.engine.trackers import TRACKERS, TrackedRun, TrackerName, check_installed
from spanbox.engine.tracking import RunLog
from spanbox.errors import ConfigError

CONFIG = "seed: 7\nrun:\n  dir: runs/示例\n"
CURVE = {"train/loss": {step: 1 / step for step in range(1, 7)}, "validation/retrieval.t2i.r1": {4: 0.4, 6: 0.6}}


def log_steps(folder: Path, track: tuple[TrackerName, ...], first: int, last: int) -> None:
    """A part of a run: steps `first` to `last`, with validations at 4 and 6."""
    with RunLog(folder, first - 1, track, CONFIG) as log:
        for step in range(first, last + 1):
            log.write(step, "train", {"loss": 1 / step, "incidents": {"clipped box": step}})
            if step in (4, 6):
                log.write(step, "validation", {"retrieval.t2i.r1": step / 10})


def run_in_two_parts(folder: Path, track: tuple[TrackerName, ...]) -> None:
    """Killed after step 4, resumed from the checkpoint of step 2."""
    folder.mkdir(parents=True)
    log_steps(folder, track, 1, 4)
    log_steps(folder, track, 3, 6)


class Pretended:
    """A tracker that records what is written, and fails on demand."""

    takes_back: ClassVar[bool] = False
    written: ClassVar[list[tuple[str, int, dict[str, float]]]]
    fails_at: ClassVar[int | None]

    def __init__(self, run: TrackedRun) -> None:
        if self.fails_at == 0:
            raise OSError("no space left on device")
        self.run = run

    def write(self, step: int, values: dict[str, float]) -> None:
        if step == self.fails_at:
            raise ValueError("connection reset")
        self.written.append((self.run.id, step, values))

    def close(self) -> None:
        if self.fails_at == -1:
            raise RuntimeError("too late")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[Pretended]:
    """Takes the place of wandb."""
    Pretended.written, Pretended.fails_at = [], None
    monkeypatch.setitem(TRACKERS, "wandb", Pretended)
    return Pretended


class TestWrittenLines:
    def test_numbers_by_kind_and_nothing_else(self, pretended: type[Pretended], tmp_path: Path) -> None:
        with RunLog(tmp_path, 0, ("wandb",)) as log:
            log.write(20, "train", {"loss": 0.5, "incidents": {"clipped box": 2}, "note": "words", "absent": None})
            log.write(20, "early stop", {"since_best": 3})
        ((_, step, values),) = pretended.written
        assert (step, values) == (20, {"train/loss": 0.5, "train/incidents/clipped box": 2})
        assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2

    def test_a_resumed_run_is_the_same_run_and_no_line_is_written_twice(
        self, pretended: type[Pretended], tmp_path: Path
    ) -> None:
        run_in_two_parts(tmp_path / "run", ("wandb",))
        log_steps(tmp_path / "run", ("wandb",), 5, 6)
        lines = [(step, name) for _, step, values in pretended.written for name in values]
        assert [step for step, name in lines if name == "train/loss"] == [1, 2, 3, 4, 5, 6]
        assert [step for step, name in lines if name.startswith("validation")] == [4, 6]
        assert len({run for run, _, _ in pretended.written}) == 1

    def test_a_new_run_in_the_same_folder_is_another_one(self, pretended: type[Pretended], tmp_path: Path) -> None:
        log_steps(tmp_path, ("wandb",), 1, 2)
        log_steps(tmp_path, ("wandb",), 1, 2)
        assert [step for _, step, _ in pretended.written] == [1, 2, 1, 2]
        assert len({run for run, _, _ in pretended.written}) == 2

    def test_a_tracker_added_to_a_resumed_run_gets_the_earlier_lines(
        self, pretended: type[Pretended], tmp_path: Path
    ) -> None:
        log_steps(tmp_path, (), 1, 4)
        log_steps(tmp_path, ("wandb",), 3, 4)
        assert [(step, *values)[:2] for _, step, values in pretended.written] == [
            *((step, "train/loss") for step in (1, 2, 3, 4)),
            (4, "validation/retrieval.t2i.r1"),
        ]

    def test_named_twice(self, pretended: type[Pretended], tmp_path: Path) -> None:
        log_steps(tmp_path, ("wandb", "wandb"), 1, 1)
        assert len(pretended.written) == 1

    def test_a_damaged_ledger_is_ignored(self, pretended: type[Pretended], tmp_path: Path) -> None:
        log_steps(tmp_path, ("wandb",), 1, 2)
        (tmp_path / "trackers.json").write_text('{"wandb": {"id')
        log_steps(tmp_path, ("wandb",), 3, 3)
        assert [step for _, step, _ in pretended.written] == [1, 2, 1, 2, 3]

    def test_without_trackers_there_is_no_ledger(self, tmp_path: Path) -> None:
        log_steps(tmp_path, (), 1, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]

    def test_project_and_name_are_those_of_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "实验" / "第一").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "实验" / "第一")
        run = TrackedRun(Path(), "id", 0, "")
        assert (run.project, run.name, run.config) == ("实验", "第一", {})
        assert TrackedRun(Path("/run"), "id", 0, "").project == "spanbox"


class TestFailures:
    @pytest.mark.parametrize(
        ("fails_at", "reason"),
        [
            (0, "OSError: no space left on device"),
            (2, "ValueError: connection reset"),
            (-1, "RuntimeError: too late"),
        ],
    )
    def test_they_end_no_run_and_are_printed_once(
        self,
        fails_at: int,
        reason: str,
        pretended: type[Pretended],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        pretended.fails_at = fails_at
        log_steps(tmp_path, ("wandb",), 1, 4)
        printed = capsys.readouterr().err
        assert printed == f"wandb failed ({reason}); training continues without it, log.jsonl is complete\n"
        assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5

    def test_a_resumed_run_writes_the_missed_lines(self, pretended: type[Pretended], tmp_path: Path) -> None:
        pretended.fails_at = 2
        log_steps(tmp_path, ("wandb",), 1, 4)
        pretended.fails_at = None
        log_steps(tmp_path, ("wandb",), 5, 6)
        steps = [step for _, step, values in pretended.written if "train/loss" in values]
        assert steps == [1, 2, 3, 4, 5, 6]

    def test_another_tracker_goes_on(self, pretended: type[Pretended], tmp_path: Path) -> None:
        pytest.importorskip("tensorboard", reason="pip install 'spanbox[tensorboard]'")
        pretended.fails_at = 2
        log_steps(tmp_path, ("wandb", "tensorboard"), 1, 6)
        assert tensorboard_curves(tmp_path) == CURVE

    def test_a_package_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
        with pytest.raises(
            ConfigError,
            match=r"^train\.track: trackio is not installed; run `pip install 'spanbox\[trackio\]'`, or remove",
        ):
            check_installed(("trackio",))


def tensorboard_curves(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    curves = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in CURVE}
    assert all(len(dict(points)) == len(points) for points in curves.values())  # none is shown twice
    return {name: {step: pytest.approx(value) for step, value in points} for name, points in curves.items()}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'spanbox[tensorboard]'")
    run_in_two_parts(tmp_path / "run", ("tensorboard",))
    assert tensorboard_curves(tmp_path / "run") == CURVE
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (text, *_) = events.Tensors("config/text_summary")
    assert "示例" in text.tensor_proto.string_val[0].decode()
    assert "train/incidents/clipped box" in events.Tags()["scalars"]


def wandb_records(path: Path) -> Iterator[Any]:
    """What an offline run has written: records in a log of LevelDB's format, in which each has a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at = path.read_bytes(), 7
    while at + 7 <= len(content):
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        assert kind == 1, "a record that goes on in another block: the test's run is too long"
        record = Record()
        record.ParseFromString(content[at + 7 : at + 7 + length])
        yield record
        at += 7 + length


@pytest.mark.slow
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install 'spanbox[wandb]'")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    folder = tmp_path / "项目" / "run"
    run_in_two_parts(folder, ("wandb",))
    wandb.teardown()  # its own process writes the files, and has now done so
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"  # or it would ask the network for its server
    curves: dict[str, dict[int, float]] = {name: {} for name in CURVE}
    runs = []
    paths = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    for record in (record for path in paths for record in wandb_records(path)):
        if record.WhichOneof("record_type") == "run":
            run = record.run
            config = {item.key: json.loads(item.value_json) for item in run.config.update}
            runs.append((run.run_id, run.project, run.display_name, config["seed"], config["run"]))
        if record.WhichOneof("record_type") == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name in CURVE.keys() & values.keys():
                assert values["_step"] not in curves[name]
                curves[name][values["_step"]] = pytest.approx(values[name])
    assert curves == CURVE
    run_id = json.loads((folder / "trackers.json").read_text())["wandb"]["id"]
    assert runs == [(run_id, "项目", "run", 7, {"dir": "runs/示例"})] * 2


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="pip install 'spanbox[trackio]', which needs Pillow below 13")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    run_in_two_parts(tmp_path / "runs" / "run", ("trackio",))
    ((name, lines),) = (
        (run["name"], sqlite_storage.SQLiteStorage.get_logs("runs", run["name"]))
        for run in sqlite_storage.SQLiteStorage.get_run_records("runs")
    )
    assert name == f"run-{json.loads((tmp_path / 'runs/run/trackers.json').read_text())['trackio']['id']}"
    curves: dict[str, list[tuple[int, float]]] = {
        key: [(line["step"], pytest.approx(line[key])) for line in lines if key in line] for key in CURVE
    }
    assert curves == {key: list(points.items()) for key, points in CURVE.items()}
