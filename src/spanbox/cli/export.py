"""`spanbox export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Target = Literal["transformers", "onnx", "sentence-transformers"]


def export(
    model: Annotated[
        Path, typer.Argument(metavar="RUN", help="a run folder (its best checkpoint) or a checkpoint folder")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="new folder for the exported model")],
    to: Annotated[Target, typer.Option("--to", help="library that will open it")] = "transformers",
    licence: Annotated[
        str | None, typer.Option(metavar="NAME", help="licence identifier for the model card, such as apache-2.0")
    ] = None,
) -> None:
    """Write a trained model as a folder that other libraries open without spanbox, with a model card.

    transformers: both encoders, the layers after them, and the pair as a VisionTextDualEncoderModel where that is
    possible. sentence-transformers: the sentence encoder. onnx: both encoders with their layers, compared with PyTorch.

        spanbox export runs/first exported --to transformers
    """
    import spanbox
    from spanbox.export import export_model

    notes = export_model(spanbox.load(model), to, out, licence)
    for note in notes:
        print(note)
    print(f"written to {out}; README.md there has an example")
