"""`spanbox data mine`: the hard neighbours of every pair, for the sampler of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

from spanbox.cli.show import print_incidents
from spanbox.errors import ConfigError
from spanbox.terminal import make_console

if TYPE_CHECKING:  # importing it would bring PyTorch in, which takes seconds
    from spanbox.data.neighbours import By, SearchName
    from spanbox.evaluation.mining import Mined


def mine(
    model: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="a run folder (its best checkpoint) or a checkpoint folder")
    ],
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="manifest of the pairs to train on")],
    out: Annotated[Path, typer.Option("--out", help="file for the neighbours, .npy; data.neighbours=FILE uses it")],
    k: Annotated[int, typer.Option("--k", min=1, help="neighbours of a pair")] = 15,
    by: Annotated[
        str,
        typer.Option(
            help="which features are the queries: sentences, images, spans or regions; coarse: the first two, fine: "
            "the last two, both: all"
        ),
    ] = "both",
    margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="skip negatives above this fraction of the positive's similarity, such as 0.95: they may be right",
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            help="exact: all pairs are compared; approximate: finds most of the nearest, in less time where there are "
            "hundreds of thousands of pairs (needs faiss)"
        ),
    ] = "exact",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Find for each pair the other pairs that a trained model most easily confuses with it.

    Pairs that may be right are left out: the same image, the same sentence, the same entity. A run with the file draws
    a pair and its neighbours into one batch:

        spanbox data mine runs/first train.jsonl --out neighbours.npy

        spanbox train gmner data.train=train.jsonl data.neighbours=neighbours.npy
    """
    from spanbox.data.neighbours import MiningSettings
    from spanbox.wiring.mining import mine_checkpoint

    settings = MiningSettings(count=k, by=_parse_by(by), margin=margin, search=_parse_search(search))
    result = mine_checkpoint(model, manifest, out, settings, device)
    _print_similarity(result.mined)
    print_incidents(result.incidents)
    print(f"{result.mined.short:.1%} of the pairs have fewer than {k} neighbours")
    print(f"written to {out}")


def _parse_by(text: str) -> "By":
    from spanbox.evaluation.mining import KINDS

    if text not in KINDS:
        raise ConfigError(f"--by: {text!r} is not a choice; expected one of {', '.join(KINDS)}")
    return cast("By", text)


def _parse_search(text: str) -> "SearchName":
    from spanbox.wiring.mining import SEARCHES

    if text not in SEARCHES:
        raise ConfigError(f"--search: {text!r} is not a search; expected one of {', '.join(SEARCHES)}")
    return cast("SearchName", text)


def _print_similarity(mined: "Mined") -> None:
    table = Table(title="mean similarity")
    for column in ("queries", "positive", "mined negative"):
        table.add_column(column, justify="left" if column == "queries" else "right")
    for kind, similarity in mined.similarity.items():
        table.add_row(kind, f"{similarity.positive:z.3f}", f"{similarity.negative:z.3f}")
    make_console().print(table)
