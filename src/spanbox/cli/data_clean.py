"""`spanbox data clean`: wrong pairs and wrong boxes, found by models that were not trained on them."""

from pathlib import Path
from typing import Annotated

import typer

from spanbox.data.cleaning import FOLDS, LinkPolicy, PairPolicy

SUSPICIOUS = 0.4  # share of wrong items from which the model is more probably at fault than the data


def clean_command(
    manifest: Annotated[Path, typer.Argument(help="manifest to clean; it is not changed")],
    out: Annotated[Path, typer.Argument(help="folder for the new manifest, the verdicts and the page for review")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings of the recipe, such as train.steps=2000"),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="recipe or config that trains a model for each fold")] = None,
    run: Annotated[Path | None, typer.Option(help="run whose model has not seen the data, instead of folds")] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, max=100, help=f"number of folds, by default {FOLDS}; no image is in two")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=100, help="folds trained at the same time, by default 1")
    ] = None,
    pairs: Annotated[PairPolicy, typer.Option(help="policy for wrong pairs")] = "drop",
    links: Annotated[LinkPolicy, typer.Option(help="policy for wrong boxes")] = "relink",
    device: Annotated[str, typer.Option(help="where the pairs are scored: auto, cpu, cuda, ...")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="seed of the folds")] = 0,
) -> None:
    """Find pairs that do not belong together, wrong boxes, and entities whose box is missing.

    Every pair is scored by a model that was not trained on it. Writes OUT/NAME.jsonl with the policies applied,
    OUT/verdicts.jsonl with every verdict, and OUT/review.html with the worst cases. An interrupted cleaning continues.

    spanbox data clean train.jsonl cleaned --recipe gmner model.text.path=DIR model.vision.path=DIR
    """
    from spanbox.cleaning import clean
    from spanbox.data.cleaning import Policies

    policies = Policies(pairs=pairs, links=links)
    done = clean(
        manifest,
        out,
        recipe=recipe,
        overrides=overrides or [],
        run=run,
        folds=folds,
        jobs=jobs,
        policies=policies,
        device=device,
        seed=seed,
    )
    shares = {"pairs": done.wrong_pairs, "boxes": done.wrong_links}
    estimated = [f"{share:.1%} of the {items}" for items, share in shares.items() if share is not None]
    if estimated:
        print(f"estimated: {' and '.join(estimated)} are wrong")
    if done.links_not_judged:
        print(f"no box is judged: {done.links_not_judged}")
    if max(done.wrong_pairs or 0, done.wrong_links or 0) > SUSPICIOUS:
        print(
            "warning: a large share. A model trained too briefly or on other data flags right items as wrong. Check "
            "review.html before you use the result; train longer or on more data"
        )
    counted = {
        "pairs": done.pair_verdicts,
        "links": done.link_verdicts,
        "done": done.counts,
        "faults in the data": done.incidents,
    }
    for title, counts in counted.items():
        if counts:
            print(f"{title}: {', '.join(f'{count:,} {name}' for name, count in counts.most_common())}")
    print(f"written: {done.manifest}\nlook at: {out / 'review.html'}")
