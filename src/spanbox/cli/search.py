"""`spanbox search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from spanbox.cli.show import print_unknown_words, print_untrained
from spanbox.errors import DataError
from spanbox.terminal import make_console, plain

if TYPE_CHECKING:  # importing it would bring PyTorch in, which takes seconds
    from spanbox.search.index import Hit


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="file that `spanbox embed` wrote")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="a text, or the path of an image")],
    top: Annotated[int, typer.Option("--top", min=1, help="number of results")] = 10,
    html: Annotated[Path | None, typer.Option(metavar="PAGE.html", help="also write a page with pictures")] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="run or checkpoint that encodes the query; default: the index's own"),
    ] = None,
    approximate: Annotated[bool, typer.Option("--approximate", help="use faiss, for millions of items")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Find the items of an index that are nearest to a text or an image.

    The search is exact unless `--approximate` is given.

        spanbox search images.parquet "a red kite" --html found.html
    """
    import spanbox
    from spanbox.files import check_writable_file, write_text
    from spanbox.search.index import open_index
    from spanbox.search.page import search_page
    from spanbox.search.query import encode_query, query_image
    from spanbox.search.sources import LEVELS

    if html is not None:
        check_writable_file(html, ".html")
    opened = open_index(index)
    if model is None and not opened.checkpoint.is_dir():
        raise DataError(
            f"{index}: the checkpoint that made it is no longer at {opened.checkpoint}; name the run or checkpoint "
            "with --model RUN, or embed again"
        )
    loaded = spanbox.load(model or opened.checkpoint, device)
    feature = encode_query(loaded, opened, query)
    print_untrained(loaded, LEVELS[opened.kind])
    if query_image(query) is None:
        print_unknown_words(loaded, query)
    hits = opened.nearest(feature, top, approximate=approximate)
    _print(hits, query)
    if html is not None:
        write_text(html, search_page(opened, query, query_image(query), hits))
        print(f"written to {html}")


def _print(hits: "list[Hit]", query: str) -> None:
    table = Table(title=plain(query))
    for heading, justify in (("", "right"), ("score", "right"), ("item", "left"), ("text or image", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for place, hit in enumerate(hits, start=1):
        values = hit.values
        words = values.get("text") or values.get("label") or values.get("image") or ""
        table.add_row(str(place), f"{hit.score:z.3f}", plain(values["id"]), plain(words))
    make_console().print(table)
