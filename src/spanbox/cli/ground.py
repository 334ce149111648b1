"""`spanbox ground`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanbox.cli.show import print_unknown_words
from spanbox.errors import DataError, OutputError

if TYPE_CHECKING:  # importing it would bring PyTorch in, which takes seconds
    from spanbox.api import Grounding
    from spanbox.data.manifest import Box
    from spanbox.spans import CharSpan

MOST_NAMED = 10


def ground(
    model: Annotated[
        Path, typer.Argument(metavar="RUN", help="a run folder (its best checkpoint) or a checkpoint folder")
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="an image")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="a sentence with its spans in brackets, or a phrase")],
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="BOXES.json",
            help=r"candidates: [\[x0, y0, x1, y1], ...] in pixels; default: boxes from the heatmap",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="PICTURE.png", help="picture with spans and boxes; JSON beside it")
    ] = Path("grounded.png"),
    threshold: Annotated[
        float | None, typer.Option(help="score from which the image shows a span; default: chosen by validation")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    r"""Mark in an image the box of each span of a sentence, or report that the image does not show it.

    Writes the picture with boxes and spans in matching colours, and a JSON file beside it.

        spanbox ground runs/first photo.jpg "a \[red kite] above a \[boat]"
    """
    import spanbox
    from spanbox.data.images import load_image
    from spanbox.files import check_no_input, check_writable_file, replacing, write_json
    from spanbox.report.grounding_picture import grounding_picture, undrawn_characters

    if out.suffix != ".png":
        raise OutputError(f"{out}: expected a file that ends in .png")
    for path in (out, out.with_suffix(".json")):
        check_no_input(path, [image, boxes])
        check_writable_file(path, path.suffix)
    plain, spans = read_brackets(text)
    candidates = None if boxes is None else _read_boxes(boxes)
    loaded = spanbox.load(model, device)
    result = loaded.ground(image, plain, spans, candidates, threshold=threshold)
    print_unknown_words(loaded, plain)
    _print_undrawn(undrawn_characters(plain))
    picture = grounding_picture(load_image(image), plain, _marked(result))
    with replacing(out) as file:
        picture.save(file, "PNG")
    write_json(out.with_suffix(".json"), result.to_dict())
    for span in result.spans:
        box = "none" if span.best is None else " ".join(f"{edge:z.0f}" for edge in span.best.box)
        score = f"{span.candidates[0].score:z.3f}" if span.candidates else "no box"
        print(f"{span.text}: {box} ({score})")
    print(f"written to {out} and {out.with_suffix('.json')}")


def _print_undrawn(characters: list[str]) -> None:
    """Print on stderr which characters the picture lacks; nothing where it has all."""
    if characters:
        from matplotlib import get_cachedir

        print(
            f"no installed font has {' '.join(characters[:MOST_NAMED])}: the picture shows empty boxes in their place. "
            f"Chinese needs a font such as Noto Sans CJK (after installing it, remove fontlist-*.json in "
            f"{get_cachedir()}); most emoji cannot be drawn",
            file=sys.stderr,
        )


def read_brackets(text: str) -> "tuple[str, list[CharSpan] | None]":
    """A sentence without the brackets around its spans, and the spans; None without brackets.

    Raises:
        DataError: brackets that are not closed, not opened, nested or empty.
    """
    plain, spans, opened = "", [], None
    for character in text:
        if character == "[" and opened is None:
            opened = len(plain)
        elif character == "]" and opened is not None and len(plain) > opened:
            spans.append((opened, len(plain)))
            opened = None
        elif character in "[]":
            raise DataError(f"{text!r}: brackets surround a span, as in 'a [red kite] above a [boat]'")
        else:
            plain += character
    if opened is not None:
        raise DataError(f"{text!r}: a bracket is not closed")
    return plain, spans or None


def _marked(result: "Grounding") -> "list[Any]":
    from spanbox.report.grounding_picture import Marked

    marked = []
    for span in result.spans:
        best = span.best
        marked.append(Marked(span.start, span.end, best.box if best else None, best.score if best else None))
    return marked


def _read_boxes(path: Path) -> "list[Box]":
    from spanbox.documents import DocumentError, read_json
    from spanbox.wiring.encoding import box_of

    try:
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"found {type(content).__name__}")
        return [box_of(box) for box in content]
    except (DataError, DocumentError, OSError, ValueError) as error:
        raise DataError(f"{path}: expected JSON as [[x0, y0, x1, y1], ...] in pixels ({error})") from None
