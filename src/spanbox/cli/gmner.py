"""`spanbox gmner`: train, predict, score."""

from pathlib import Path
from typing import Annotated

import typer

from spanbox.cli.score import print_scores
from spanbox.cli.show import print_incident_counts, print_incidents
from spanbox.cli.train import exit_unless_finished
from spanbox.errors import ConfigError
from spanbox.terminal import make_console, plain

app = typer.Typer(
    no_args_is_help=True,
    help="Find the entities of sentences, with their types and regions, on pretrained towers (docs/gmner.md).",
)

Model = Annotated[Path, typer.Argument(metavar="RUN", help="a run of `spanbox gmner train`, or a checkpoint of one")]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="manifest of the pairs")]
TextOnly = Annotated[
    bool, typer.Option("--text-only", help="find entities in the texts alone; images are not read, boxes are null")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]

FIGURES = ("precision", "recall", "f1")


@app.command()
def train(
    data: Annotated[
        str | None, typer.Argument(metavar="[TRAIN]", help="manifest with types, boxes and `objects` to train on")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="config values, for example train.steps=2000"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder of the new run")] = Path("runs/ner"),
    val: Annotated[
        Path | None, typer.Option("--val", help="manifest to validate on and to choose the best checkpoint by")
    ] = None,
    pretrained: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="pretrained run or checkpoint to start from")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="instead of --from: a recipe or YAML file; its towers as downloaded, or random"
        ),
    ] = None,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="learn to find entities in the texts alone; no image is read")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the run in --out from its last checkpoint; needs no TRAIN")
    ] = False,
) -> None:
    """Train heads and towers to find entities, their types and their regions.

    A CRF tags the tokens; each entity chooses one of the `objects` of its image, or none. Validation is by the official
    F1 (`spanbox score`):

        spanbox gmner train train.jsonl --val val.jsonl --from runs/first --out runs/ner train.steps=1000

        spanbox gmner train --out runs/ner --resume
    """
    from spanbox.documents import quoted
    from spanbox.wiring import GmnerStart, config_to_resume, train_gmner

    changes = list(overrides or [])
    if resume:
        if data is not None and "=" in data:  # the first KEY=VALUE, in the place of TRAIN
            changes, data = [data, *changes], None
        if data is not None or val is not None or pretrained is not None or recipe is not None or text_only:
            raise ConfigError("--resume continues a run as it began; give only --out, and KEY=VALUE to change settings")
        config = config_to_resume(out, changes)
    else:
        if data is None:
            raise ConfigError("gmner train: give the manifest to train on; see `spanbox gmner train --help`")
        if (pretrained is None) == (recipe is None):
            raise ConfigError("gmner train: give either --from RUN (a pretrained run) or --recipe RECIPE (its towers)")
        start = GmnerStart(pretrained, recipe, text_only=text_only)
        paths = {"data.train": data, "run.dir": out, **({"data.val": val} if val else {})}
        config = start.config([*(f"{key}={quoted(str(path))}" for key, path in paths.items()), *changes])
    trained = train_gmner(config, pretrained)
    exit_unless_finished(trained, ["gmner", "train", "--out", str(trained.run_dir), "--resume"])
    print_incident_counts(trained.incidents)
    for task in ("gmner", "mner", "eeg"):
        if f"{task}.f1" in trained.best:
            figures = "  ".join(f"{name} {100 * trained.best[f'{task}.{name}']:.2f}" for name in FIGURES)
            make_console().print(plain(f"{task.upper()}, best checkpoint, on {config.data.val}: {figures}"))
    print(f"run folder: {trained.run_dir}")


@app.command()
def predict(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file for the predictions")] = Path("predictions.jsonl"),
    text_only: TextOnly = False,
    device: Device = "auto",
) -> None:
    """Write the entities of a manifest's texts and their regions, as `spanbox score` reads them.

    Example:

        spanbox gmner predict runs/ner test.jsonl --out predictions.jsonl
    """
    from spanbox.wiring import predict_gmner

    found = predict_gmner(model, data, out=out, text_only=text_only, device=device)
    print_incidents(found.incidents)
    print(f"{found.entities:,} entities, {found.boxes:,} with a region; written to {out}")


@app.command()
def score(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="JSON file for all metrics")] = Path("scores.json"),
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="also write the predictions")
    ] = None,
    text_only: TextOnly = False,
    device: Device = "auto",
) -> None:
    """Predict, and score by the official GMNER, MNER and EEG measures; without regions by MNER alone.

    Example:

        spanbox gmner score runs/ner test.jsonl
    """
    from spanbox.files import check_no_input, check_no_other_output, check_writable_file, write_json
    from spanbox.wiring import predict_gmner

    check_no_input(out, [data])
    check_no_other_output(out, [predictions])
    check_writable_file(out, ".json")
    found = predict_gmner(model, data, out=predictions, text_only=text_only, device=device)
    rows = [row for row in found.scores.counts if found.grounds or row.startswith("mner")]
    figures = found.scores.metrics()
    metrics = {name: value for name, value in figures.items() if name.startswith(tuple(f"{row}." for row in rows))}
    print_scores(metrics, rows, found.scores.notes, f"{model} on {data}")
    print_incidents(found.incidents)
    content = {"model": str(model), "data": str(data), **metrics}
    write_json(out, content)
    print(f"written to {out}")
