"""`spanbox data paraphrase`: further texts for the pairs of a manifest, by translation."""

from pathlib import Path
from typing import Annotated, cast

import typer

from spanbox.errors import ConfigError
from spanbox.progress import Progress
from spanbox.terminal import command


def paraphrase(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="manifest whose texts are paraphrased")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="manifest with paraphrases to write, .jsonl")],
    via: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[,DIR]",
            help="folders of Marian models, one after the other, such as en-zh and zh-en; DIR@LANGUAGE for a model "
            "with several target languages; may be repeated for further paraphrases",
        ),
    ] = None,
    translator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="a Python function that turns a list of texts into a list of texts; may be repeated",
        ),
    ] = None,
    lost: Annotated[
        str,
        typer.Option(
            help="treatment of texts that lose an entity in translation: coarse (translated as a whole, for the coarse "
            "level only) or drop"
        ),
    ] = "coarse",
    batch_size: Annotated[int, typer.Option(min=1, help="texts that a translator gets at a time")] = 32,
    device: Annotated[str, typer.Option(help="device of the models: auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Add paraphrases to a manifest, by translating its texts into another language and back.

    Entities are replaced by markers for the translation and put back afterwards, so that their spans are exact.
    Translations are kept in OUT.translations: after an interruption the same command goes on from there.

        spanbox data paraphrase train.jsonl train-more.jsonl --via opus-mt-en-zh,opus-mt-zh-en

        spanbox data paraphrase train.jsonl train-more.jsonl --translator my_module:translate
    """
    if lost not in ("coarse", "drop"):
        raise ConfigError(f"--lost: {lost!r} is not a choice; expected coarse or drop")
    from spanbox.data.back_translation import BackTranslation, Lost
    from spanbox.wiring.paraphrasing import make_translators

    translators = make_translators(via or [], translator or [], device)
    work = BackTranslation(manifest, out, translators, batch_size=batch_size, lost=cast("Lost", lost))
    if len(work.cache):
        print(f"{len(work.cache):,} translations from {work.cache.path}")
    with Progress("paraphrasing", work.pairs) as progress:
        work.run(lambda done, total, speed: progress.update(done, speed))
    print(f"{work.pairs:,} pairs, {work.translated:,} texts translated")
    for kind, count in sorted(work.counts.items()):
        print(f"  {kind}: {count:,}")
    print(f"written to {out}. Next: {command('data', 'check', out)}")
    print("data.augment.text.paraphrases=0.5 draws them in training")
