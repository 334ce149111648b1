"""`spanbox data annotate`: entities and objects for a manifest that has none, by a tagger and a detector."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from spanbox.errors import ConfigError
from spanbox.progress import progress_of
from spanbox.terminal import command


def annotate(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="manifest to annotate; it is not changed")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="manifest with entities and objects to write, .jsonl")],
    tagger: Annotated[
        str | None,
        typer.Option(
            metavar="spacy:PIPELINE|MODULE:FUNCTION",
            help="fills entities: a pipeline of spaCy, or a Python function that turns a list of texts into a list of "
            "lists of {start, end, type}",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|MODULE:FUNCTION",
            help="fills objects: folder of a zero-shot detector of transformers (OWL-ViT, OWLv2, Grounding DINO), or a "
            "Python function that turns a list of images and a list of their labels into a list of lists of "
            "{box, score, label}",
        ),
    ] = None,
    spans: Annotated[
        Literal["entities", "noun-phrases", "both"], typer.Option(help="spans to take from the spaCy pipeline")
    ] = "entities",
    labels: Annotated[
        str, typer.Option(metavar="A,B,...", help="objects to detect in every image; default: the pair's entities")
    ] = "",
    link: Annotated[
        bool, typer.Option("--link", help="boxes found by the text of an entity without a box become its boxes")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="replace entities and objects that are there; their boxes are lost")
    ] = False,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="score from which a zero-shot detection counts")] = 0.2,
    most: Annotated[int, typer.Option(min=1, help="objects of an image, those of the highest scores")] = 100,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="IoU from which a box repeats a better one of the same label")
    ] = 0.7,
    batch_size: Annotated[int, typer.Option(min=1, help="texts or images that a model gets at a time")] = 16,
    device: Annotated[str, typer.Option(help="device of a zero-shot detector: auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Add entities and objects to a manifest with a tagger and a detector.

    Pairs that have some are left as they are. What was found is kept in OUT.annotations: after an interruption the same
    command goes on from there.

        spanbox data annotate captions.jsonl annotated.jsonl --tagger spacy:en_core_web_sm --spans noun-phrases

        spanbox data annotate captions.jsonl annotated.jsonl --tagger my_module:tag --detector grounding-dino --link
    """
    if tagger is None and detector is None:
        raise ConfigError("give a --tagger, a --detector, or both")
    if detector is None and (labels or link):
        raise ConfigError(f"{'--labels' if labels else '--link'} needs a --detector, which finds boxes")
    if spans != "entities" and not (tagger or "").startswith("spacy:"):
        raise ConfigError(f"--spans {spans} needs a pipeline of spaCy, --tagger spacy:PIPELINE")
    from spanbox.data.auto_annotate import AutoAnnotation, Options
    from spanbox.wiring.annotating import make_detector, make_tagger

    names = tuple(name.strip() for name in re.split("[,，、]", labels) if name.strip())
    work = AutoAnnotation(
        manifest,
        out,
        tagger=make_tagger(tagger, spans),
        detector=make_detector(detector, device, threshold),
        options=Options(names, link, replace, most, overlap),
        batch_size=batch_size,
    )
    if len(work.cache):
        print(f"{len(work.cache):,} results from {work.cache.path}")
    with progress_of("annotating") as on_progress:
        work.run(on_progress)
    print(f"{work.pairs:,} pairs")
    for kind, count in sorted(work.counts.items()):
        if count:
            print(f"  {kind}: {count:,}")
    print(f"written to {out}. Next: {command('data', 'check', out)}")
