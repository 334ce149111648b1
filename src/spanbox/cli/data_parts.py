"""`spanbox data split`, `merge`, `sample` and `card`."""

from pathlib import Path
from typing import Annotated

import typer

from spanbox.errors import ConfigError
from spanbox.files import check_writable_file, check_writable_folder, removing_new_folders, write_text

DEFAULT_SHARES = "train=0.8,val=0.1,test=0.1"


def split_command(
    manifest: Annotated[Path, typer.Argument(help="manifest to split; it is not changed")],
    out: Annotated[Path, typer.Argument(help="folder for the manifests of the splits")],
    shares: Annotated[str, typer.Option(help="name and share of each split")] = DEFAULT_SHARES,
    seed: Annotated[int, typer.Option(min=0, help="seed; another one gives another split")] = 0,
) -> None:
    """Split a manifest by group, so that no image is in two splits, stratified by language and types.

    spanbox data split all.jsonl splits --shares train=0.8,val=0.1,test=0.1
    """
    from spanbox.data.partition import split

    with removing_new_folders(out):
        check_writable_folder(out)
        counts = split(manifest, out, _shares(shares), seed=seed)
    for name, count in counts.items():
        print(f"{out / name}.jsonl: {count:,} pairs")


def merge_command(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="manifests to join")],
    out: Annotated[Path, typer.Option("--out", help="the new manifest")],
) -> None:
    """Join manifests: ids are made unique, and `source` names the file where a pair has none.

    spanbox data merge coco/train.jsonl flickr/train.jsonl --out train.jsonl
    """
    from spanbox.data.partition import merge

    with removing_new_folders(out.parent):
        check_writable_file(out, ".jsonl")
        print(f"{out}: {merge(manifests, out):,} pairs")


def sample_command(
    manifest: Annotated[Path, typer.Argument(help="manifest to draw from")],
    out: Annotated[Path, typer.Argument(help="the new manifest")],
    n: Annotated[
        int, typer.Option("--n", min=1, help="number of pairs; a few more, since groups are not divided")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="seed; another one gives another sample")] = 0,
) -> None:
    """Draw a random sample of a manifest, in whole groups.

    spanbox data sample train.jsonl small.jsonl --n 1000
    """
    from spanbox.data.partition import sample

    with removing_new_folders(out.parent):
        check_writable_file(out, ".jsonl")
        print(f"{out}: {sample(manifest, out, n, seed=seed):,} pairs")


def card_command(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="manifests of one data set")],
    out: Annotated[Path, typer.Option("--out", help="Markdown file to write")] = Path("DATASET.md"),
    title: Annotated[str, typer.Option(help="heading of the dataset card")] = "Data set",
    licence: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE=TEXT", help="licence of a source; may be repeated")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="read only the headers of the images")] = False,
) -> None:
    """Write a dataset card: counts, types, languages, sources with licences, and the findings of the audit.

    spanbox data card train.jsonl val.jsonl --licence "coco=CC BY 4.0" --out DATASET.md
    """
    from spanbox.data.audit import audit
    from spanbox.data.card import dataset_card
    from spanbox.progress import progress_of

    licences = dict(_named(text, "--licence SOURCE=TEXT") for text in licence or [])
    with removing_new_folders(out.parent):
        check_writable_file(out, ".md")
        with progress_of("checking") as on_progress:
            report = audit(manifests, decode=not fast, on_progress=on_progress)
        write_text(out, dataset_card(title, report, licences))
    print(f"written to {out}")


def _shares(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, value = _named(part, "--shares NAME=NUMBER,NAME=NUMBER")
        if name in shares:
            raise ConfigError(f"--shares {text}: {name!r} is given twice")
        try:
            shares[name] = float(value)
        except ValueError:
            shares[name] = -1.0
        if not 0 < shares[name] < float("inf") or not name.replace("-", "_").isidentifier():
            raise ConfigError(
                f"--shares {text}: {part!r} is not a name with a share above 0; write it as in {DEFAULT_SHARES}"
            )
    return shares


def _named(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r}: expected {form}")
    return name.strip(), value.strip()
