"""`spanbox losses`: what a level can be trained with."""

from rich.console import Console
from rich.table import Table


def losses() -> None:
    """List the losses, each of which either level can have: loss.coarse.loss=NAME, loss.fine.loss=NAME.

    docs/mathematics.md states them as formulas.
    """
    from spanbox.losses.variants import LOSSES

    table = Table("name", "what it asks for", "settings of its own", "source")
    for name, loss in LOSSES.items():
        options = ", ".join(f"{option} ({value:g})" for option, value in loss.options.items())
        table.add_row(name, loss.summary, options, loss.source)
    Console().print(table)
