"""`spanbox explore`."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from spanbox.cli.show import print_untrained
from spanbox.errors import ConfigError, OutputError


def explore(
    models: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN]", help="one run or checkpoint, or two side by side")
    ],
    data: Annotated[Path, typer.Option("--data", help="manifest of the pairs to search in")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0: a free one")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Open a local page: search pairs by sentence or image, point at a word to see its heatmap.

    Only this machine can reach the page, and it loads nothing from elsewhere. Ctrl-C ends it.

        spanbox explore runs/first --data test.jsonl
    """
    if len(models) > 2:
        raise ConfigError(f"{len(models)} models; give one, or two to see them side by side")
    from spanbox.explore.opening import open_session
    from spanbox.explore.server import ExplorerServer

    session = open_session(models, data, device)
    for searched in session.models:
        print_untrained(searched.model, "coarse")
        print_untrained(searched.model, "fine")
    try:
        server = ExplorerServer(session, port)
    except OSError as error:
        raise OutputError(f"--port {port}: {error.strerror or error}; leave it out for a free one") from None
    with server, suppress(KeyboardInterrupt):
        print(f"open {server.url} in a browser; Ctrl-C ends it", flush=True)
        server.serve_forever()
