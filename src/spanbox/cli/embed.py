"""`spanbox embed`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from spanbox.cli.show import print_incidents, print_untrained

Kind = Literal["images", "texts", "spans", "regions"]


def embed(
    model: Annotated[
        Path, typer.Argument(metavar="RUN", help="a run folder (its best checkpoint) or a checkpoint folder")
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="a manifest, a folder of images, or a CSV file")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="file that ends in .parquet or .npy")],
    what: Annotated[Kind, typer.Option("--what", help="what to encode")] = "images",
    column: Annotated[str | None, typer.Option(help="column of a CSV file with texts or image paths")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="items to encode at a time")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Write the features of images, texts, spans or regions to a file, for `spanbox search` and other programs.

    Started again after an interruption, it goes on where it stopped; the file is the same. `torchrun` shares the work
    among processes.

        spanbox embed runs/first train.jsonl images.parquet
    """
    import spanbox
    from spanbox.engine.distributed import Ranks
    from spanbox.files import check_no_input
    from spanbox.search.embedding import check_output, embed_source, items_file
    from spanbox.search.sources import LEVELS, open_source

    check_output(out)
    check_no_input(items_file(out), [source])
    with Ranks() as ranks:
        loaded = spanbox.load(model, device)
        if ranks.is_main:
            print_untrained(loaded, LEVELS[what])
        embedded = embed_source(loaded, open_source(source, what, column), out, batch_size=batch_size, ranks=ranks)
    if embedded is not None:
        print_incidents(embedded.incidents)
        print(f"{embedded.rows} {what} written to {out}")
