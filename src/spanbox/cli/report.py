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
        Path | None,
        typer.Option(
            "--out", help="HTML file; default: report.html in the run folder, or in the working folder for several runs"
        ),
    ] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="folder for the figures as PNG and SVG")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="manifest of the evaluation, for the pictures, if it was moved")
    ] = None,
) -> None:
    """Write the report of a run as one HTML page: metrics with intervals, curves, examples, heatmaps, data, setup.

    It is a single file that needs no network. Several runs are shown side by side, with their differences:

        spanbox report runs/demo

        spanbox report runs/first runs/second --lang zh --figures figures
    """
    from spanbox.errors import DataError
    from spanbox.files import check_writable_file, check_writable_folder, write_text
    from spanbox.report.page import make_report
    from spanbox.report.reading import check_folders

    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    check_folders(runs)
    if data is not None and not data.is_file():
        raise DataError(f"{data}: no such manifest; --data names the JSON Lines file that was evaluated")
    check_writable_file(path, ".html")
    if figures:
        check_writable_folder(figures)
    made = make_report(runs, lang, data)
    write_text(path, made.html)
    if figures:
        for figure in made.figures:
            figure.write(figures)
        print(f"{len(made.figures)} figures in {figures}, as PNG and SVG")
    for note in made.notes:
        print(note)
    print(f"{path} ({len(made.html) / 1e6:.1f} MB): open it in a browser")
