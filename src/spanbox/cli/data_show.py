"""`spanbox data show`: a page of samples."""

from pathlib import Path
from typing import Annotated

import typer

from spanbox.errors import ConfigError


def show(
    manifest: Annotated[Path, typer.Argument(help="manifest (JSON Lines)")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write")] = Path("samples.html"),
    n: Annotated[int, typer.Option("--n", min=1, help="how many pairs, spread over the manifest")] = 12,
    views: Annotated[bool, typer.Option("--views", help="a masked view of each kind beside each image")] = False,
    augmented: Annotated[
        bool, typer.Option("--augmented", help="augmented samples beside each, by data.augment or the standard presets")
    ] = False,
    size: Annotated[int, typer.Option("--size", min=16, help="side of the images in pixels")] = 224,
    patch: Annotated[
        int | None, typer.Option("--patch", min=1, help="with --views: side of a hidden cell in pixels, by default 16")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="for example data.views.ratio=0.5"),
    ] = None,
) -> None:
    """Make a page of samples as the model gets them: boxes on images, spans in sentences, views, augmented samples.

    spanbox data show runs/demo-data/train.jsonl --views --out views.html

    spanbox data show runs/demo-data/train.jsonl --augmented data.augment.image.preset=strong
    """
    if patch is not None and not views:
        raise ConfigError("--patch: has no effect without --views")
    from spanbox.wiring.showing import show_samples

    count = show_samples(
        manifest,
        out,
        n=n,
        with_views=views,
        with_augmented=augmented,
        size=size,
        patch=patch or 16,
        overrides=overrides or [],
    )
    print(f"{count} pairs of {manifest}: open {out}")
