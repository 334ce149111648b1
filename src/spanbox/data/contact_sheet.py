"""HTML page of samples: images with boxes, sentences with spans, masked views, augmented copies.

The page is one file without external resources. All text is escaped.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spanbox.data.mask_effects import fill_pixels, view_meaning
from spanbox.data.masking import STRATEGIES, MaskSettings, MixSettings, Proposals, Strategy, draw_views
from spanbox.data.thumbnails import data_uri
from spanbox.structures import Sample

# Okabe and Ito's palette, distinguishable with colour blindness.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
MEANINGS = {1: "keeps", -1: "hides"}
HIDDEN = 96  # grey of a dropped cell

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.6 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
article { border: 1px solid var(--line); border-radius: 10px; padding: 1rem; margin: 1.2rem 0; }
h2 { font-size: 1rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: minmax(12rem, 16rem) 1fr; gap: 1rem; }
.views { display: grid; gap: .8rem; align-content: start; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
@media (max-width: 40rem) { .row { grid-template-columns: 1fr; } }
figure { margin: 0; }
.picture { position: relative; }
.picture img { width: 100%; display: block; border-radius: 6px; image-rendering: auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
mark { color: inherit; background: none; border-bottom: 3px solid var(--mark); padding-bottom: 1px; }
del { opacity: .6; }
ins { font-weight: 600; text-decoration: none; }
.absent { border-bottom-style: dotted; }
"""


def contact_sheet(
    samples: Sequence[Sample],
    title: str,
    views: MaskSettings | None,
    grid: int,
    *,
    augmented: Sequence[Sequence[Sample]] = (),
) -> str:
    """An HTML page of samples; with `views`, one masked view of each strategy beside each image.

    Args:
        samples: decoded pairs.
        augmented: changed samples of each pair, shown beside it.
        title: heading of the page.
        views: settings of the views; their count and mix are ignored.
        grid: side of a view in cells.
    """
    cards = [
        _card(sample, views, grid, np.random.default_rng((0, row)), augmented[row] if augmented else ())
        for row, sample in enumerate(samples)
    ]
    head = f'<!doctype html><html><head><meta charset="utf-8"><title>{escape(title)}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    legend = "<p>Underlined: spans, in the colour of their boxes; dotted: without a box.</p>"
    return (
        f"{head}{view}<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{legend}{''.join(cards)}</body></html>"
    )


def _card(
    sample: Sample,
    views: MaskSettings | None,
    grid: int,
    generator: np.random.Generator,
    augmented: Sequence[Sample],
) -> str:
    image = _with_boxes(sample, f"image of {sample.id}")
    drawn = "".join(_view(sample, strategy, views, grid, generator) for strategy in STRATEGIES) if views else ""
    drawn += "".join(_with_boxes(copy, f"augmented image of {sample.id}") for copy in augmented)
    columns = f'<div class="row">{image}<div class="views">{drawn}</div></div>'
    return f"<article><h2>{escape(sample.id)}</h2>{columns}</article>"


def _with_boxes(sample: Sample, alt: str) -> str:
    """The image with its boxes, the sentence with its spans, and the words that were changed in it."""
    changes = [f"<del>{escape(old)}</del> <ins>{escape(new)}</ins>" for old, new in sample.text_changes]
    caption = "<br>".join([_sentence(sample), *changes])
    return _figure(sample.pixels, _overlay(sample.regions, sample.links), caption, alt)


def _view(sample: Sample, strategy: Strategy, settings: MaskSettings, grid: int, generator: np.random.Generator) -> str:
    only = MixSettings.model_validate({name: float(name == strategy) for name in STRATEGIES})
    settings = settings.model_copy(update={"count": 1, "mix": only})
    proposals = Proposals(*sample.proposals) if sample.proposals else Proposals.none()
    picture = sample.picture_cells(grid)
    plan = draw_views(settings, grid, sample.regions, sample.links, proposals, generator, picture=picture)
    meaning = view_meaning(plan.coverage, sample.regions, sample.links, settings)
    if settings.fill == "drop":
        pixels = torch.where(_enlarged(plan.hidden[0], sample.pixels.shape[-1]), HIDDEN, sample.pixels)
    else:
        pixels = fill_pixels(sample.pixels, plan.hidden, settings.fill, generator, sample.content)[0]
    drawn = STRATEGIES[int(plan.strategy[0])]
    name = strategy if drawn == strategy else f"{strategy}, replaced by {drawn}"
    share = f"{1 - (~plan.hidden).sum() / (picture[0] * picture[1]):.0%} hidden"
    spans = [
        f"{MEANINGS[value]} {escape(text)}"
        for value, text in zip(meaning.spans[0].tolist(), sample.span_texts, strict=True)
        if value
    ]
    label = {1: "positive of the sentence", -1: "negative of the sentence", 0: "not used for the sentence"}[
        int(meaning.sentence[0])
    ]
    caption = f"<b>{name}</b>, {share}: {label}<br>{'; '.join(spans)}"
    return _figure(pixels, "", caption, f"{name} view of {sample.id}")


def _enlarged(hidden: Tensor, side: int) -> Tensor:
    """Cells (g, g) at pixel resolution, (1, S, S)."""
    rows = torch.arange(side) * hidden.shape[0] // side
    return hidden[rows][:, rows][None]


def _sentence(sample: Sample) -> str:
    """The text with its spans marked. Of overlapping spans only the first is marked."""
    parts, position = [], 0
    for index in sorted(range(len(sample.spans)), key=lambda index: sample.spans[index]):
        start, end = sample.spans[index]
        if start < position:
            continue
        kind = "" if sample.links[index].any() else ' class="absent"'
        span = f'<mark{kind} style="--mark:{_colour(index)}">{escape(sample.text[start:end])}</mark>'
        parts += [escape(sample.text[position:start]), span]
        position = end
    return "".join([*parts, escape(sample.text[position:])])


def _overlay(regions: Tensor, links: Tensor) -> str:
    """Boxes as SVG: in the colour of their span, or dashed without a span."""
    shapes = []
    for column, (x0, y0, x1, y1) in enumerate(regions.tolist()):
        spans: Sequence[int] = links[:, column].nonzero().flatten().tolist()
        line = f'stroke="{_colour(spans[0])}"' if spans else 'stroke="#888" stroke-dasharray="3 2"'
        place = f'x="{100 * x0:.2f}" y="{100 * y0:.2f}" width="{100 * (x1 - x0):.2f}" height="{100 * (y1 - y0):.2f}"'
        shapes.append(f'<rect {place} fill="none" {line} stroke-width="1.6" vector-effect="non-scaling-stroke"/>')
    return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(shapes)}</svg>'


def _figure(pixels: Tensor, overlay: str, caption: str, alt: str) -> str:
    picture = Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy())
    image = f'<img alt="{escape(alt)}" src="{data_uri(picture, quality=88)}">'
    return f'<figure><div class="picture">{image}{overlay}</div><figcaption>{caption}</figcaption></figure>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
