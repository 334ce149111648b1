"""HTML page for looking at pairs: images with boxes, sentences with spans, by section.

The page is one file without external resources; all text is escaped. Boxes differ in the style of their lines, not only
in colour.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple

from spanbox.data.manifest import Box
from spanbox.data.thumbnails import data_uri, load_thumbnail
from spanbox.errors import DataError

Style = Literal["present", "proposed", "other"]
LINES: dict[Style, str] = {
    "present": 'stroke="#D55E00" stroke-width="2.5"',
    "proposed": 'stroke="#0072B2" stroke-width="2.5" stroke-dasharray="7 4"',
    "other": 'stroke="#888" stroke-width="1.2" stroke-dasharray="2 3"',
}
SIDE = 320  # of a picture, in pixels

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
section { margin: 2rem 0; }
h2 { font-size: 1.1rem; margin: 0; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); margin-top: .8rem; }
article { border: 1px solid var(--line); border-radius: 10px; padding: .8rem; overflow-wrap: anywhere; }
h3 { font-size: .85rem; margin: 0 0 .5rem; }
.picture { position: relative; margin-bottom: .4rem; }
.picture img { width: 100%; display: block; border-radius: 6px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
p { margin: .3rem 0; }
.detail { font-size: .85rem; }
.key { display: inline-block; width: 2.2rem; height: .8rem; vertical-align: middle; }
mark { color: inherit; background: none; border-bottom: 3px solid #D55E00; }
"""


class Mark(NamedTuple):
    """A box to draw."""

    box: Box  # in pixels of the image as shown
    style: Style = "present"
    label: str = ""


class Card(NamedTuple):
    """A pair to look at."""

    title: str
    images: Sequence[Path]  # the boxes are drawn on the first
    text: str = ""
    span: tuple[int, int] = (0, 0)  # of the text, marked
    marks: Sequence[Mark] = ()
    details: Sequence[str] = ()


class Section(NamedTuple):
    """Cards under a heading."""

    heading: str
    remark: str
    cards: Sequence[Card]


def review_page(title: str, introduction: str, sections: Iterable[Section]) -> str:
    """The page as HTML. An image that cannot be read is replaced by the reason."""
    keys = "".join(
        f'<p><svg class="key" viewBox="0 0 36 12"><path d="M0 6H36" {line}/></svg> {style}</p>'
        for style, line in LINES.items()
    )
    body = "".join(_section(section) for section in sections)
    head = f'<!doctype html><html><head><meta charset="utf-8"><title>{escape(title)}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    start = f"<h1>{escape(title)}</h1><p>{escape(introduction)}</p>{keys}"
    return f"{head}{view}<style>{STYLE}</style></head><body>{start}{body}</body></html>"


def _section(section: Section) -> str:
    cards = "".join(_card(card) for card in section.cards)
    heading = f"<h2>{escape(section.heading)}</h2><p>{escape(section.remark)}</p>"
    return f'<section>{heading}<div class="cards">{cards}</div></section>'


def _card(card: Card) -> str:
    pictures = "".join(_picture(path, () if place else card.marks) for place, path in enumerate(card.images))
    start, end = card.span
    marked = f"<mark>{escape(card.text[start:end])}</mark>" if end > start else ""
    text = f"<p>{escape(card.text[:start])}{marked}{escape(card.text[end:])}</p>"
    details = "".join(f'<p class="detail">{escape(detail)}</p>' for detail in card.details)
    return f"<article><h3>{escape(card.title)}</h3>{pictures}{text}{details}</article>"


def _picture(path: Path, marks: Sequence[Mark]) -> str:
    try:
        image, (width, height) = load_thumbnail(path, SIDE)
    except DataError as error:
        return f'<p class="detail">{escape(str(error))}</p>'
    drawn = "".join(_box(mark) for mark in marks)
    overlay = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{drawn}</svg>'
    return f'<div class="picture"><img alt="{escape(path.name)}" src="{data_uri(image, quality=80)}">{overlay}</div>'


def _box(mark: Mark) -> str:
    x0, x1 = sorted((mark.box[0], mark.box[2]))
    y0, y1 = sorted((mark.box[1], mark.box[3]))
    place = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
    title = f"<title>{escape(mark.label)}</title>" if mark.label else ""
    return f'<rect {place} fill="none" {LINES[mark.style]} vector-effect="non-scaling-stroke">{title}</rect>'
