"""`spanbox demo`: draw scenes, train on them, evaluate and report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from spanbox.cli.data_demo import draw_demo, parse_languages
from spanbox.cli.report import report
from spanbox.cli.show import print_metrics
from spanbox.terminal import make_console

HELD_OUT = 500
# The best rate for the coarse level alone, as benchmarks/plans/compare-demo-rates.yaml found it on the validation set.
BASELINE_LR = 1e-3
HEADLINES = {
    "retrieval.i2t.r1": "image to sentence, R@1",
    "retrieval.t2i.r1": "sentence to image, R@1",
    "matching.within_image": "entity to object within the image, R@1",
    "matching.across_set.r1": "entity to object across the set, R@1",
}


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="folder for data and runs")] = Path("runs"),
    compare: Annotated[
        bool, typer.Option("--compare", help="also train the coarse level alone, at its own best rate, and print both")
    ] = False,
    lang: Annotated[str, typer.Option(help="language of the sentences: en, zh, or en,zh")] = "en",
    n: Annotated[int, typer.Option("--n", min=1, help="training scenes")] = 32_000,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings of the demo recipe")
    ] = None,
) -> None:
    """Train two small encoders on drawn scenes and evaluate them: about five minutes on two cores.

    The same as these commands, one after another:

        spanbox data demo runs/demo-data

        spanbox train demo

        spanbox evaluate runs/demo --data runs/demo-data/test.jsonl

        spanbox report runs/demo
    """
    from spanbox.data.demo import DemoSettings

    data = folder / "demo-data"
    draw_demo(data, n, HELD_OUT, DemoSettings(languages=parse_languages(lang)))
    both = _train_and_evaluate(folder / "demo", data, overrides or [])
    if compare:
        baseline = [f"train.optimiser.lr={BASELINE_LR}", *(overrides or []), "loss.fine.weight=0"]
        coarse = _train_and_evaluate(folder / "demo-coarse", data, baseline)
        _print_side_by_side(both, coarse)
    else:
        print_metrics(both, "on held-out scenes, combinations of objects never seen in training")
    print(f"data: {data}   run: {folder / 'demo'}   metrics: {folder / 'demo' / 'metrics.json'}")
    print(f"a model to use: spanbox.load({str(folder / 'demo')!r})")
    runs = [folder / "demo", folder / "demo-coarse"] if compare else [folder / "demo"]
    report(runs, "zh" if lang == "zh" else "en", folder / "demo" / "report.html")


def _train_and_evaluate(run: Path, data: Path, overrides: list[str]) -> dict[str, float]:
    from spanbox.config import load_config
    from spanbox.wiring import evaluate_to_folder, train

    paths = [f"data.train={data}/train.jsonl", f"data.val={data}/val.jsonl", f"run.dir={run}", "run.overwrite=true"]
    trained = train(load_config("demo", [*paths, *overrides]))
    if not trained.finished:
        raise typer.Exit(130)
    return evaluate_to_folder(run, data / "test.jsonl")[0].metrics


def _print_side_by_side(both: dict[str, float], coarse: dict[str, float]) -> None:
    table = Table(title="on held-out scenes")
    for heading in ("", "coarse and fine", "coarse alone"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, meaning in HEADLINES.items():
        table.add_row(meaning, f"{both[name]:z.3f}", f"{coarse[name]:z.3f}")
    make_console().print(table)
