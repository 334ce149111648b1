"""The command, as the tests of its subcommands run it."""

import sys
from pathlib import Path

import pytest

from command import Command, Outcome
from spanbox.cli.main import main


@pytest.fixture
def spanbox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command in an empty folder, with output of 200 columns that is no terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["spanbox", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            main()
        code = raised.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run
