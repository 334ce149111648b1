"""`spanbox losses` lists every loss, and says so without loading anything heavy."""

import subprocess
import sys

import pytest

from spanbox.cli.losses import losses
from spanbox.losses.variants import LOSSES


def test_every_loss_with_its_settings_and_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    losses()
    lines = capsys.readouterr().out.splitlines()
    for name, loss in LOSSES.items():
        (line,) = (line for line in lines if line.startswith(f"│ {name} "))
        for part in (loss.summary, loss.source, *(f"{option} ({value:g})" for option, value in loss.options.items())):
            assert part in line


def test_help_is_quick_since_nothing_heavy_is_imported() -> None:
    script = (
        "import sys\n"
        "from spanbox.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, "losses", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "loss.coarse.loss=NAME" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
