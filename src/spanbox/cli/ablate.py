"""`spanbox ablate`: comparison of variants of a recipe over several seeds."""

from pathlib import Path
from typing import Annotated

import typer


def ablate(
    plan: Annotated[Path, typer.Argument(help="YAML file: recipe, variants, seeds, steps or minutes, test, metrics")],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the runs; default: runs/NAME-OF-THE-PLAN")
    ] = None,
) -> None:
    """Compare variants of a recipe over several seeds.

    Trains every variant with every seed for the same steps or minutes, and prints mean, spread and the paired
    difference to the first variant. An interrupted plan continues with the missing runs:

        spanbox ablate benchmarks/plans/accumulation-demo.yaml
    """
    from spanbox.ablation import load_plan, markdown, run_plan, write_csv
    from spanbox.files import check_writable_folder, write_text

    loaded = load_plan(plan)
    folder = out or Path("runs") / plan.stem
    check_writable_folder(folder)
    rows = run_plan(loaded, folder)
    table = markdown(loaded, rows)
    write_text(folder / "table.md", table + "\n")
    write_csv(rows, loaded, folder / "table.csv")
    budget = f"{loaded.steps} steps" if loaded.steps else f"{loaded.minutes:g} minutes"
    print(f"{len(loaded.seeds)} seeds, {budget} each; in brackets the paired difference to the first variant\n")
    print(table)
    print(f"\nwritten to {folder}/table.md and table.csv")
