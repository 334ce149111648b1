"""`spanbox ablate`: variants of a recipe compared by several seeds."""

from pathlib import Path
from typing import Annotated

import typer


def ablate(
    plan: Annotated[Path, typer.Argument(help="YAML file: recipe, variants, seeds, budget, test, metrics")],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the runs; default: runs/NAME-OF-THE-PLAN")
    ] = None,
) -> None:
    """Try changes on a small set before paying for the large one.

    Trains every variant with every seed for the same steps or minutes, and prints mean, spread and the paired
    difference to the first variant. A plan that was interrupted goes on with what is missing:

        spanbox ablate benchmarks/plans/accumulation-demo.yaml
    """
    from spanbox.ablation import load_plan, markdown, run_plan, write_csv

    loaded = load_plan(plan)
    folder = out or Path("runs") / plan.stem
    rows = run_plan(loaded, folder)
    table = markdown(loaded, rows)
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    write_csv(rows, loaded, folder / "table.csv")
    budget = f"{loaded.steps} steps" if loaded.steps else f"{loaded.minutes:g} minutes"
    print(f"{len(loaded.seeds)} seeds, {budget} each; in brackets the paired difference to the first variant\n")
    print(table)
    print(f"\nwritten to {folder}/table.md and table.csv")
