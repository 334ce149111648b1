"""`spanbox report`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="run folders, or folders of `spanbox ablate`; the first is the reference"
        ),
    ],
    lang: Annotated[Literal["en", "zh"], typer.Option("--lang", help="language of the report")] = "en",
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file; default: report.html in the folder, here for several")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="folder to write the figures to, as PNG and SVG")
    ] = None,
) -> None:
    """One page that shows how a run went: figures with intervals, curves, examples, heatmaps, data, setup.

    It is a single file that needs no network. Several runs stand side by side, with their differences:

        spanbox report runs/demo

        spanbox report runs/first runs/second --lang zh --figures figures
    """
    from spanbox.report.page import make_report

    made = make_report(runs, lang)
    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made.html, encoding="utf-8")
    if figures:
        for figure in made.figures:
            figure.write(figures)
        print(f"{len(made.figures)} figures in {figures}, as PNG and SVG")
    print(f"{path} ({len(made.html.encode()) / 1e6:.1f} MB): open it in a browser")
