"""`spanbox data demo`: draw the scenes of the demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from spanbox.errors import ConfigError
from spanbox.processes import available_cores
from spanbox.progress import Progress

if TYPE_CHECKING:  # importing PyTorch takes seconds
    from spanbox.data.demo import DemoSettings, Split
    from spanbox.data.demo_sentences import Language


def draw(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the manifests and the images")],
    n: Annotated[int, typer.Option("--n", min=1, help="training scenes")] = 32_000,
    held_out: Annotated[int, typer.Option(min=1, help="scenes of val.jsonl, and of test.jsonl")] = 500,
    lang: Annotated[str, typer.Option(help="language of the sentences: en, zh, or en,zh for both")] = "en",
    concepts: Annotated[int, typer.Option(help="number of different objects, 10 to 826")] = 120,
    size: Annotated[int, typer.Option(min=64, help="side of a scene in pixels")] = 192,
    seed: Annotated[int, typer.Option(min=0, help="seed of the scenes")] = 0,
    siblings: Annotated[
        int,
        typer.Option(min=0, help="number of scenes after each held-out one that differ from it in only one object"),
    ] = 0,
    relations: Annotated[
        Literal["one", "several"] | None,
        typer.Option(
            help="scenes in pairs that differ only in the places of two objects (A left of B, and B left of A); a "
            "sentence states one relation or several"
        ),
    ] = None,
    art: Annotated[
        Path | None,
        typer.Option(help="font with colour emoji that draws the objects, in another style than the demo's artwork"),
    ] = None,
) -> None:
    """Draw scenes with sentences, exact spans and exact boxes, as a normal manifest.

    Held-out scenes show combinations of objects that no training scene shows:

        spanbox data demo my-scenes --n 32000 --lang en,zh

    The same objects in an unseen style, as a test of generalisation:

        spanbox data demo other-style --n 1 --art NotoColorEmoji.ttf

    Relation scenes come with the neighbours that put both scenes of a pair into one batch:

        spanbox data demo my-relations --relations one

        spanbox train demo data.train=my-relations/train.jsonl data.val=my-relations/val.jsonl \
data.neighbours=my-relations/train.partners.npy run.dir=runs/relations
    """
    from spanbox.data.demo import DemoSettings

    draw_demo(
        out,
        n,
        held_out,
        DemoSettings(concepts, parse_languages(lang), size, seed, siblings, relations, str(art) if art else None),
    )


def draw_demo(out: Path, n: int, held_out: int, settings: "DemoSettings") -> None:
    """Draw all splits into `out`, with progress."""
    from spanbox.data.demo import write_demo

    counts: dict[Split, int] = {"train": n, "val": held_out, "test": held_out}
    with Progress("drawing scenes", sum(counts.values())) as progress:
        manifests = write_demo(out, counts, settings, workers=available_cores(), on_drawn=progress.update)
    for split, manifest in manifests.items():
        print(f"{manifest}: {counts[split]:,} scenes")


def parse_languages(text: str) -> "tuple[Language, ...]":
    from spanbox.data.demo_sentences import Language

    languages = tuple(part.strip() for part in text.split(","))
    for language in languages:
        if language not in get_args(Language):
            raise ConfigError(f"--lang: {language!r} is not a language of the demo; expected en, zh or en,zh")
    return cast(tuple[Language, ...], languages)
