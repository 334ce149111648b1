"""`spanbox config show` and `spanbox config schema`."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Look at settings before anything runs.", no_args_is_help=True)


@app.command()
def show(
    config: Annotated[str, typer.Argument(help="a recipe (demo, gmner, pairs) or a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Print the resolved config as YAML: what a run with these settings would use.

    spanbox config show gmner train.batch_size=256
    """
    from spanbox.config import dump_config, load_config

    print(dump_config(load_config(config, overrides or [])), end="")


@app.command()
def schema(as_json: Annotated[bool, typer.Option("--json", help="as JSON Schema, for editors")] = False) -> None:
    """List every key with its default and what it means."""
    from spanbox.config import RunConfig, describe_keys

    if as_json:
        print(json.dumps(RunConfig.model_json_schema(), indent=1))
        return
    table = Table("key", "default", "meaning", show_lines=False)
    for key, default, meaning in describe_keys():
        table.add_row(key, default, meaning)
    Console().print(table)
