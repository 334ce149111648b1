"""`spanbox config show` and `spanbox config schema`."""

import json
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from spanbox.terminal import make_console

app = typer.Typer(help="Show the settings of a run, or all settings with their meaning.", no_args_is_help=True)


@app.command()
def show(
    config: Annotated[str, typer.Argument(help="a recipe (demo, gmner, pairs, published) or a YAML file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, for example train.batch_size=256")
    ] = None,
) -> None:
    """Print the complete config of a run with these settings, as YAML.

    spanbox config show gmner train.batch_size=256
    """
    from spanbox.config import dump_config, load_config

    print(dump_config(load_config(config, overrides or [])), end="")


@app.command()
def schema(
    key: Annotated[str | None, typer.Argument(help="a key or a section, for example train.optimiser")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the whole schema as JSON Schema, for editors")] = False,
) -> None:
    """List the keys of the config as `key=default`, with their meanings: all of them, or one key or section.

    spanbox config schema train.optimiser
    """
    from spanbox.config import RunConfig, keys_of

    if as_json:
        print(json.dumps(RunConfig.model_json_schema(), indent=1))
        return
    console = make_console()
    for name, default, meaning in keys_of(key):
        console.print(Text.assemble((name, "bold"), f"={default}"), soft_wrap=True)
        console.print(Padding(Text(meaning), (0, 0, 0, 4), expand=False))
