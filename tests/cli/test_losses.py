"""`spanbox losses` lists every loss."""

import pytest

from spanbox.cli.losses import losses
from spanbox.losses.formulas import LOSSES


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
