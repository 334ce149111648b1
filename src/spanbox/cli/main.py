"""The `spanbox` command: its verbs, and what becomes of an error."""

import os
import sys

# Nothing is downloaded at run time; the hub's client reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import typer

from spanbox.cli import (
    ablate,
    config,
    data,
    data_demo,
    data_mine,
    data_show,
    demo,
    evaluate,
    losses,
    plan,
    report,
    score,
    train,
)
from spanbox.errors import SpanboxError

HELP = """Teach an image encoder and a text encoder which words mean which pixels.

Start here:

    spanbox demo                         learn from built-in scenes, in about three minutes

On your own data:

    spanbox data check my.jsonl          look for faults before the first step (format: docs/data.md)

    spanbox plan gmner model.text.path=DIR model.vision.path=DIR     what fits into memory

    spanbox train gmner data.train=my.jsonl model.text.path=DIR model.vision.path=DIR

    spanbox evaluate runs/gmner --data held-out.jsonl

Every setting is a key of the config: `spanbox config schema` lists them, `key=value` on the command line sets them.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("evaluate")(evaluate.evaluate)
app.command("score")(score.score)
app.command("report")(report.report)
app.command("losses")(losses.losses)
app.command("ablate")(ablate.ablate)
data.app.command("demo")(data_demo.draw)
data.app.command("mine")(data_mine.mine)
data.app.command("show")(data_show.show)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")


def main() -> None:
    """Run the command. An error that the user can mend is printed without a traceback, exit code 2."""
    try:
        app()
    except SpanboxError as error:
        print(f"spanbox: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
