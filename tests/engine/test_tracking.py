"""The log that survives a crash, and the tally that stops a run on broken data."""

import json
from pathlib import Path
from typing import Any

import pytest

from spanbox.engine.tracking import IncidentTally, JsonLog
from spanbox.errors import OutputError, TrainingError
from spanbox.structures import Incident


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_steps(path: Path, steps: range) -> None:
    log = JsonLog(path, 0)
    for step in steps:
        log.write(step, "train", {"loss": step / 10})


class TestJsonLog:
    def test_one_object_a_line_step_first(self, tmp_path: Path) -> None:
        log = JsonLog(tmp_path / "log.jsonl", 0)
        log.write(20, "train", {"loss": 0.5})
        log.write(20, "validation", {"retrieval.t2i.r1": 0.25})
        lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert lines[0] == '{"step": 20, "kind": "train", "loss": 0.5}'
        assert lines[1] == '{"step": 20, "kind": "validation", "retrieval.t2i.r1": 0.25}'

    def test_each_line_is_on_disk_at_once(self, tmp_path: Path) -> None:
        log = JsonLog(tmp_path / "log.jsonl", 0)
        log.write(1, "train", {})
        assert len(read(tmp_path / "log.jsonl")) == 1

    def test_a_new_run_starts_an_empty_log(self, tmp_path: Path) -> None:
        write_steps(tmp_path / "log.jsonl", range(1, 4))
        JsonLog(tmp_path / "log.jsonl", 0)
        assert read(tmp_path / "log.jsonl") == []

    def test_a_resumed_run_drops_later_lines(self, tmp_path: Path) -> None:
        write_steps(tmp_path / "log.jsonl", range(1, 6))
        log = JsonLog(tmp_path / "log.jsonl", 3)
        log.write(4, "train", {"loss": -1.0})
        assert [(line["step"], line["loss"]) for line in read(tmp_path / "log.jsonl")] == [
            (1, 0.1),
            (2, 0.2),
            (3, 0.3),
            (4, -1.0),
        ]

    def test_the_last_line_was_cut_off_by_a_crash(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        write_steps(path, range(1, 3))
        with path.open("a", encoding="utf-8") as file:
            file.write('{"step": 3, "ki')
        log = JsonLog(path, 3)
        log.write(4, "train", {})
        assert [line["step"] for line in read(path)] == [1, 2, 4]

    @pytest.mark.parametrize(
        "damage",
        ["{", '{"step": 2}', '{"step": "2", "kind": "train"}', "[2]", "2", "null", "\x00\x00", "\udcff", "[" * 99_999],
    )
    def test_a_damaged_line_in_the_middle_costs_no_other_line(self, damage: str, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        write_steps(path, range(1, 5))
        lines = path.read_bytes().splitlines()
        lines[1] = damage.encode(errors="surrogateescape")
        path.write_bytes(b"\n".join(lines) + b"\n")
        log = JsonLog(path, 3)
        assert [line["step"] for line in log.lines()] == [1, 3]
        assert path.read_bytes() == b"\n".join(lines[:3]) + b"\n", "the damaged line stays"

    @pytest.mark.parametrize("name", ["a\u2028b", "a\u2029b", "a\u0085b", "a\x0bb", "a\nb", "人物", "\ud800", "😀"])
    def test_odd_characters_come_back_and_cost_no_line(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        log = JsonLog(path, 0)
        for step in (1, 2, 3):
            log.write(step, "validation", {name: step / 10})
        assert len(path.read_text(encoding="utf-8").splitlines()) == 3
        resumed = JsonLog(path, 2)
        assert [(line["step"], line[name]) for line in resumed.lines()] == [(1, 0.1), (2, 0.2)]

    def test_a_full_disk_is_a_plain_error(self, tmp_path: Path) -> None:
        log = JsonLog(tmp_path / "log.jsonl", 0)
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").symlink_to("/dev/full")
        with pytest.raises(OutputError, match=r"log\.jsonl: cannot be written \(No space left"):
            log.write(1, "train", {})

    def test_resuming_without_a_log(self, tmp_path: Path) -> None:
        JsonLog(tmp_path / "log.jsonl", 3)
        assert read(tmp_path / "log.jsonl") == []

    def test_a_crash_while_resuming_leaves_the_old_log(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_steps(tmp_path / "log.jsonl", range(1, 4))

        def crash(*arguments: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(Path, "replace", crash)
        with pytest.raises(OutputError, match="no space"):
            JsonLog(tmp_path / "log.jsonl", 2)
        assert [line["step"] for line in read(tmp_path / "log.jsonl")] == [1, 2, 3]


def broken(*samples: str) -> list[Incident]:
    return [Incident("broken image", sample, f"{sample}.jpg: cut off") for sample in samples]


class TestIncidentTally:
    def test_counts_each_kind_once_a_sample(self) -> None:
        tally = IncidentTally(1000, 0.01)
        for _epoch in range(3):
            tally.add([Incident("clipped box", "a", "first"), Incident("clipped box", "a", "second"), *broken("a")])
            tally.add([Incident("clipped box", "b", "")])
        assert tally.counts() == {"clipped box": 2, "broken image": 1}

    def test_a_restored_tally_goes_on_counting(self) -> None:
        first, second = IncidentTally(200, 0.01), IncidentTally(200, 0.01)
        first.add([*broken("a", "b"), Incident("clipped box", "a", "")])
        second.restore(first.state())
        second.add([*broken("a"), Incident("clipped box", "c", "")])
        assert second.counts() == {"broken image": 2, "clipped box": 2}
        with pytest.raises(TrainingError, match="3 images cannot be read"):
            second.add(broken("d"))

    def test_nothing_met(self) -> None:
        tally = IncidentTally(10, 0.0)
        tally.add([])
        assert tally.counts() == {}

    def test_one_percent_is_allowed_and_one_more_stops_with_the_list(self) -> None:
        tally = IncidentTally(200, 0.01)
        tally.add(broken("a", "b", "a"))
        with pytest.raises(TrainingError) as raised:
            tally.add(broken("c"))
        message = str(raised.value)
        assert message.startswith("3 images cannot be read, more than data.broken_limit=0.01 allows (2):")
        assert all(f"  {sample}: {sample}.jpg: cut off" in message for sample in "abc")
        assert "spanbox data check" in message

    def test_the_list_is_not_endless(self) -> None:
        tally = IncidentTally(100, 0.0)
        with pytest.raises(TrainingError) as raised:
            tally.add(broken(*(f"pair-{i}" for i in range(70))))
        assert str(raised.value).startswith("70 images")
        assert str(raised.value).count("cut off") == IncidentTally.EXAMPLES

    @pytest.mark.parametrize(
        ("size", "limit", "allowed"), [(100, 0.29, 29), (100, 0.01, 1), (99, 0.01, 0), (10, 1.0, 10)]
    )
    def test_a_share_of_whole_images_is_exact(self, size: int, limit: float, allowed: int) -> None:
        assert IncidentTally(size, limit).allowed == allowed

    def test_no_broken_image_is_allowed_at_limit_zero(self) -> None:
        with pytest.raises(TrainingError, match=r"allows \(0\)"):
            IncidentTally(1000, 0.0).add(broken("a"))

    def test_all_may_be_broken_at_limit_one(self) -> None:
        tally = IncidentTally(2, 1.0)
        tally.add(broken("a", "b"))
        assert tally.counts() == {"broken image": 2}

    def test_other_incidents_never_stop(self) -> None:
        tally = IncidentTally(2, 0.0)
        tally.add([Incident("clipped box", "a", ""), Incident("truncated span", "b", "")])
        assert tally.counts() == {"clipped box": 1, "truncated span": 1}
