"""`spanbox losses`: table of the losses."""

from rich.table import Table

from spanbox.terminal import make_console


def losses() -> None:
    """List the losses. Choose one for each level: loss.coarse.loss=NAME, loss.fine.loss=NAME.

    docs/mathematics.md has the formulas.
    """
    from spanbox.losses.formulas import LOSSES

    table = Table("name", "description", "options (default)", "source")
    for name, loss in LOSSES.items():
        options = ", ".join(f"{option} ({value:g})" for option, value in loss.options.items())
        table.add_row(name, loss.summary, options, loss.source)
    make_console().print(table)
