"""Progress: plain lines on stderr without a terminal, bars on one."""

import pytest

from spanbox import progress
from spanbox.progress import Progress, progress_of, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_and_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", 30) as shown:
        for done in range(1, 31):
            clock[0] += 1.0
            shown.update(done, f"loss {done}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "training 10/30  loss 10  20 s left",
        "training 20/30  loss 20  10 s left",
        "training 30/30  loss 30",
    ]


def test_a_budget_of_time_that_the_last_step_exceeds_has_nothing_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("training, seconds", 60) as shown:
        clock[0] += 64.0
        shown.update(64)
    assert capsys.readouterr().err == "training, seconds 64/60\n"


def test_the_remaining_time_does_not_count_what_was_done_before(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("training", 1000, start=900) as shown:
        clock[0] += 20.0
        shown.update(910)
    assert capsys.readouterr().err == "training 910/1000  180 s left\n"


def test_the_last_detail_stays(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", 2) as shown:
        shown.update(1, "loss 0.5")
        shown.update(2)
    assert capsys.readouterr().err == "training 2/2  loss 0.5\n"


def test_a_note_is_one_unchanged_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[red]not a colour[/red] :smile: " + 30 * "words "
    with Progress("training", 1) as shown:
        shown.note(text)
    assert capsys.readouterr().err == f"{text}\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Progress("training", 4, start=1) as shown:
        shown.update(3, "loss 0.5")
        shown.note("step 3: saved")
        shown.update(4)
    err = capsys.readouterr().err
    assert "4/4" in err
    assert "step 3: saved" in err
    assert "loss 0.5" in err


def test_items_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == "reading 3/3\n"


def test_the_total_is_known_only_during_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of("checking") as show:
        show(1, 3)
        show(3, 3)
    assert capsys.readouterr().err == "checking 3/3\n"


def test_nothing_is_shown_without_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of("checking"):
        pass
    assert capsys.readouterr().err == ""


class TestPart:
    def test_is_shown_only_if_it_takes_long(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        with Progress("training", 100) as whole:
            with whole.part("encoding", 2) as quick:
                quick.update(2)
            with whole.part("encoding", 30) as slow:
                for done in (15, 30):
                    clock[0] += 10.0
                    slow.update(done, "images")
            whole.update(100)
        assert capsys.readouterr().err.splitlines() == [
            "encoding 15/30  images  10 s left",
            "encoding 30/30  images",
            "training 100/100",
        ]

    def test_of_a_quiet_progress_is_quiet(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        with Progress("training", 100, quiet=True) as whole, whole.part("encoding", 30) as part:
            clock[0] += 60.0
            part.update(30)
        assert capsys.readouterr().err == ""

    def test_is_a_second_bar_until_it_ends(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        with Progress("training", 4) as whole:
            with whole.part("encoding", 7) as part:
                part.update(7)
            whole.update(4)
        err = capsys.readouterr().err
        assert "0/7" in err
        assert "encoding" not in err.rpartition("training")[2]
        assert "4/4" in err.rpartition("training")[2]
