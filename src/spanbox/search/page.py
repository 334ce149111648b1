"""The result of a search as one HTML page with pictures, which opens offline."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from spanbox.errors import DataError
from spanbox.report.pictures import thumbnail_source
from spanbox.search.index import Hit, Index

STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #c24f00; }
body { font: 16px/1.55 system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.2rem; padding: 0; }
ol { list-style: none; }
li { border: 1px solid var(--line); border-radius: 10px; padding: .7rem; }
.picture { position: relative; line-height: 0; width: fit-content; margin-bottom: .5rem; }
.picture img { max-width: 100%; border-radius: 6px; }
.picture i { box-sizing: border-box; position: absolute; border: 3px solid var(--accent); outline: 1px solid #fff; }
.score { font-variant-numeric: tabular-nums; font-weight: 600; }
.query img { max-width: 14rem; border-radius: 6px; }
small { opacity: .7; }
mark { background: none; color: inherit; border-bottom: 3px solid var(--accent); }
"""


def search_page(index: Index, query: str, query_image: Path | None, hits: Sequence[Hit]) -> str:
    """An HTML page of the hits, best first."""
    title = escape(query)
    shown = _picture(query_image, title) if query_image else f"<p>{title}</p>"
    entries = "".join(f"<li>{_entry(index, hit)}</li>" for hit in hits)
    return (
        '<!doctype html><html><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>spanbox search</h1>"
        f'<div class="query">{shown}</div><p><small>{escape(index.path.name)}, {len(index):,} {index.kind}</small></p>'
        f"<ol>{entries}</ol></body></html>"
    )


def _entry(index: Index, hit: Hit) -> str:
    values = hit.values
    words = escape(values.get("label") or values.get("text") or values["id"])
    box = [values[edge] for edge in ("x0", "y0", "x1", "y1")] if "x0" in values else None
    picture = _picture(index.image_of(hit), words, box)
    if "sentence" in values:
        sentence, start, end = values["sentence"], values["start"], values["end"]
        words = f"{escape(sentence[:start])}<mark>{words}</mark>{escape(sentence[end:])}"
    score = f'<span class="score">{hit.score:z.3f}</span>'
    return f"{picture}<div>{score} {words}</div><small>{escape(values['id'])}</small>"


def _picture(path: Path | None, alt: str, box: Sequence[float] | None = None) -> str:
    if path is None:
        return ""
    try:
        source, (width, height) = thumbnail_source(path)
    except DataError:
        return "<p><em>no image</em></p>"
    frame = ""
    if box is not None:
        left, top, right, bottom = (100 * edge / side for edge, side in zip(box, (width, height) * 2, strict=True))
        style = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
        frame = f'<i style="{style}"></i>'
    return f'<div class="picture"><img src="{source}" alt="{alt}">{frame}</div>'
