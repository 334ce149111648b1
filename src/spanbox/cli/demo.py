"""`spanbox demo`: draw scenes, train on them, evaluate and report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from spanbox.cli.data_demo import draw_demo, parse_languages
from spanbox.cli.report import report
from spanbox.cli.show import print_metrics
from spanbox.cli.train import exit_unless_finished
from spanbox.errors import ConfigError
from spanbox.terminal import make_console

if TYPE_CHECKING:  # importing it would bring PyTorch in, which takes seconds
    from spanbox.config import RunConfig

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
    folder: Annotated[
        Path, typer.Option("--dir", help="folder for data and runs; replaces those of an earlier demo")
    ] = Path("runs"),
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="also train the coarse level alone, at its own best learning rate, and print both results"
        ),
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
    given = overrides or []
    configs = [_config(folder / "demo", data, given)]
    if compare:
        baseline = [f"train.optimiser.lr={BASELINE_LR}", *given, "loss.fine.weight=0"]
        configs.append(_config(folder / "demo-coarse", data, baseline))
    draw_demo(data, n, HELD_OUT, DemoSettings(languages=parse_languages(lang)))
    results = [_train_and_evaluate(config, data / "test.jsonl") for config in configs]
    if compare:
        _print_side_by_side(*results)
    else:
        print_metrics(results[0], "on held-out scenes, combinations of objects never seen in training")
    print(f"data: {data}   run: {folder / 'demo'}   metrics: {folder / 'demo' / 'metrics.json'}")
    print(f"a model to use: spanbox.load({str(folder / 'demo')!r})")
    report([Path(config.run.dir) for config in configs], "zh" if lang == "zh" else "en", folder / "demo/report.html")


def _config(run: Path, data: Path, overrides: list[str]) -> "RunConfig":
    """The config of a run of the demo, which replaces the one of an earlier demo.

    Raises:
        ConfigError: a wrong setting, or `run` holds a run on other data.
    """
    from spanbox.config import load_config
    from spanbox.documents import quoted

    paths = {"data.train": data / "train.jsonl", "data.val": data / "val.jsonl", "run.dir": run}
    config = load_config("demo", [*(f"{key}={quoted(str(path))}" for key, path in paths.items()), *overrides])
    if Path(config.run.dir) != run:
        raise ConfigError(f"run.dir: the demo trains in {run}; choose another folder with --dir")
    earlier = run / "config.yaml"
    if not config.run.overwrite and earlier.exists():
        trained_on = load_config(str(earlier)).data.train or ""
        if Path(trained_on).resolve() != Path(config.data.train or "").resolve():
            raise ConfigError(
                f"{run}: holds a run on {trained_on}; choose another --dir, or replace the run with run.overwrite=true"
            )
    return config.model_copy(update={"run": config.run.model_copy(update={"overwrite": True})})


def _train_and_evaluate(config: "RunConfig", test: Path) -> dict[str, float]:
    from spanbox.wiring import evaluate_to_folder, train

    trained = train(config)
    exit_unless_finished(trained, ["train", str(trained.run_dir / "config.yaml"), "--resume"])
    return evaluate_to_folder(trained.run_dir, test)[0].metrics


def _print_side_by_side(both: dict[str, float], coarse: dict[str, float]) -> None:
    table = Table(title="on held-out scenes")
    for heading in ("", "coarse and fine", "coarse alone"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, meaning in HEADLINES.items():
        table.add_row(meaning, f"{both[name]:z.3f}", f"{coarse[name]:z.3f}")
    make_console().print(table)
