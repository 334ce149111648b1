"""Curves, matrices and plots of ablations by matplotlib: inline SVG for the page, PNG and SVG for papers.

Text stays text in the SVG. The page's figures have CSS variables in place of colours, so that they read on a
light and on a dark page. Lines differ by dash as well as by colour.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from html import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import numpy as np
from numpy.typing import NDArray

from spanbox.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's colours, distinct for the colour-blind; the strongest on white first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, SOFT, RULE = "#1b1f24", "#5b6470", "#d9dde2"

POINTS = 400  # of a curve: more make the page heavy and are not visible
WIDTH = 3.9  # inches
LEAST_LOG = 1e-30  # smallest value on a logarithmic axis
LARGEST_CELL = 1e6  # of a matrix; a cell beyond it, or one that is not finite, stays empty
LEGEND_ROW = 0.165  # inches
LEGEND_CHARACTERS = 52  # of a row; Chinese ones count twice
LEGEND_LINE = 6  # characters that the line of a label takes
ROW_CHARACTERS = 32  # of the label of a row
CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Droid Sans Fallback"),
)


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    style: int  # colour and dash


@dataclass(frozen=True)
class Figure:
    """A figure: a name for its files, a description in words, and the function that draws it."""

    name: str
    alt: str
    draw: Callable[[], "Canvas"]

    def inline(self) -> str:
        """The figure as an SVG element for a page that defines `--ink`, `--soft`, `--rule` and `--c0` to `--c5`."""
        return _for_page(self._saved("svg", transparent=True).decode(), self.name, self.alt)

    def write(self, folder: Path) -> list[Path]:
        """Write the figure as NAME.png and NAME.svg, on white."""
        paths = [folder / f"{self.name}.{format}" for format in ("png", "svg")]
        for path in paths:
            with replacing(path) as file:
                file.write(self._saved(path.suffix[1:], facecolor="white"))
        return paths

    def _saved(self, format: str, **options: Any) -> bytes:
        from matplotlib import rc_context

        file = io.BytesIO()
        metadata = {"svg": {"Date": None, "Creator": None, "Format": None, "Type": None}, "png": {"Software": None}}
        with rc_context(_style(self.name)):
            self.draw().savefig(file, format=format, dpi=200, metadata=metadata[format], **options)
        return file.getvalue()


def curves(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    step: str,
    alt: str,
    log: bool = False,
    from_zero: bool = False,
    share: bool = False,
) -> Figure:
    """Values over the steps of a run.

    Args:
        step: label of the horizontal axis.
        log: logarithmic values, where all are above zero.
        from_zero: show the values from zero, and so how much they change.
        share: values are shares of one, shown in percent.
    """

    def draw() -> "Canvas":
        labels = [shortened(one.label, LEGEND_CHARACTERS - LEGEND_LINE) for one in series] if len(series) > 1 else []
        canvas, axes = _canvas(WIDTH, 2.5 + LEGEND_ROW * max(0, _legend_rows(labels) - 1))
        for one in series:
            steps, heights = _thinned(one.steps, one.values)
            colour, dash = COLOURS[one.style % len(COLOURS)], DASHES[dash_of(one.style)]
            marker = MARKERS[dash_of(one.style)] if len(steps) <= 12 else ""
            axes.plot(steps, heights, color=colour, linestyle=dash, linewidth=1.5, marker=marker, ms=4)
        values = [value for one in series for value in one.values]
        if log and min(values) > LEAST_LOG:
            _log_scale(axes, min(values), max(values))
        elif from_zero or min(values) == max(values):
            axes.set_ylim(0, 1.1 * max(values) or 1)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.locator_params(axis="x", integer=True)
        reached = {step for one in series for step in one.steps}
        if len(reached) == 1:
            axes.set_xticks(list(reached), [f"{step:,.0f}" for step in reached])
        axes.set_xlabel(step)
        _title(axes, title, labels)
        return canvas

    return Figure(name, alt, draw)


def dash_of(style: int) -> int:
    """Index of the dash pattern of a style: it changes with each round of the colours, so that 36 styles differ."""
    return (style + style // len(COLOURS)) % len(DASHES)


def matrix(
    name: str,
    title: str,
    values: Sequence[Sequence[float]],
    right: NDArray[np.bool_],
    also_right: NDArray[np.bool_] | None = None,
    *,
    rows: str,
    columns: str,
    alt: str,
) -> Figure:
    """Similarities as a grid of colours. Rows and columns are numbered from 1.

    Args:
        right: cells with a small square.
        also_right: cells with a small circle.
    """
    grid = np.asarray(values, dtype=np.float64)
    grid = np.where(np.abs(grid) <= LARGEST_CELL, grid, np.nan)
    marks = [("s", right)] + ([("o", also_right)] if also_right is not None else [])

    def draw() -> "Canvas":
        canvas, axes = _canvas(WIDTH, WIDTH * min(1.3, 0.35 + 0.72 * grid.shape[0] / grid.shape[1]))
        image = axes.imshow(grid, cmap="cividis", interpolation="nearest")
        size = 130 / max(grid.shape)
        for (marker, cells), (colour, scale) in product(marks, (("black", 1.0), ("white", 0.6))):
            y, x = cells.nonzero()
            axes.scatter(x, y, s=(scale * size * 0.55) ** 2, marker=marker, facecolor="none", edgecolor=colour, lw=1)
        for axis, count, label in ((axes.xaxis, grid.shape[1], columns), (axes.yaxis, grid.shape[0], rows)):
            every = math.ceil(count / 16)
            axis.set_ticks(range(0, count, every), [str(index + 1) for index in range(0, count, every)])
            axis.set_label_text(label)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        bar = canvas.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelcolor=SOFT)
        _title(axes, title)
        return canvas

    return Figure(name, alt, draw)


def dots(name: str, title: str, variants: Sequence[tuple[str, Sequence[float]]], *, alt: str, share: bool) -> Figure:
    """A row for each variant: a small dot for each seed, a large one for their mean, a line for the standard
    deviation."""

    def draw() -> "Canvas":
        canvas, axes = _canvas(WIDTH, 0.85 + 0.34 * len(variants))
        for row, (_, values) in enumerate(variants):
            colour, mean = COLOURS[row % len(COLOURS)], float(np.mean(values))
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axes.plot([mean - spread, mean + spread], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([mean], [row], MARKERS[row % len(MARKERS)], color=colour, ms=8)
            axes.plot(values, [row - 0.26] * len(values), ".", color=SOFT, ms=5)
        axes.set_yticks(range(len(variants)), [shortened(label, ROW_CHARACTERS) for label, _ in variants])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(variants) - 0.5, -0.6)
        axes.grid(visible=False, axis="y")
        if share:
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        axes.locator_params(axis="x", nbins=5)
        _title(axes, title)
        return canvas

    return Figure(name, alt, draw)


@cache
def fonts() -> tuple[str, ...]:
    """Families to draw text with: matplotlib's own, and the first installed one that has Chinese."""
    from matplotlib import font_manager

    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *[family for family in CHINESE_FONTS if family in installed][:1])


def can_draw(text: str) -> bool:
    """Whether the installed fonts have every character of `text`."""
    return all(any(ord(character) in characters for characters in _characters()) for character in text)


@cache
def _characters() -> tuple[frozenset[int], ...]:
    from matplotlib import font_manager

    paths = (font_manager.findfont(family) for family in fonts())
    return tuple(frozenset(font_manager.get_font(path).get_charmap()) for path in paths)


def _canvas(width: float, height: float) -> "tuple[Canvas, Axes]":
    """An empty matplotlib figure; sizes in inches."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots()


def _style(name: str) -> dict[Any, Any]:
    """Quiet axes; ids in the SVG that are the same in two drawings of a figure, and others in another figure."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": list(fonts()),
        "font.size": 8,
        "text.color": INK,
        "text.parse_math": False,
        "axes.edgecolor": RULE,
        "axes.labelcolor": SOFT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.formatter.useoffset": False,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
    }


def _log_scale(axes: "Axes", low: float, high: float) -> None:
    """A logarithmic vertical axis with at least two numbers on it, also for values within a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    decades = math.log10(high / low)
    axes.set_yscale("log")
    if decades < 1.3:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        pad = (high / low) ** 0.05 if high > low else 1.1
        axes.set_ylim(low / pad, high * pad)
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _title(axes: "Axes", title: str, legend: Sequence[str] = ()) -> None:
    """The title, and below it a legend of these labels, as many in a row as there is room for."""
    rows = _legend_rows(legend)
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=8 + 72 * LEGEND_ROW * rows)
    if legend:
        axes.legend(
            axes.lines,
            legend,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.985),
            ncols=math.ceil(len(legend) / rows),
            frameon=False,
            borderpad=0.1,
            columnspacing=1.2,
            fontsize=8,
        )


def _legend_rows(labels: Sequence[str]) -> int:
    """How many rows a legend needs; each label takes the room of the longest one."""
    wide = LEGEND_LINE + max(map(_width, labels), default=0)
    return math.ceil(len(labels) / max(1, LEGEND_CHARACTERS // wide))


def shortened(label: str, most: int) -> str:
    """A label of at most `most` characters, Chinese ones counted twice: the middle of a longer one is left out.

    A long label would leave no room for the plot; paths of runs differ at their ends, names of variants at either end.
    """
    if _width(label) <= most:
        return label
    end = next(end for end in range(len(label) // 2, len(label)) if _width(label[end:]) <= most // 2)
    start = next(start for start in range(end, 0, -1) if _width(label[:start]) + _width(label[end:]) < most)
    return f"{label[:start]}…{label[end:]}"


def _width(label: str) -> int:
    return sum(1 + (east_asian_width(character) in "WF") for character in label)


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `POINTS` points, each the mean of neighbours, so that no outlier is picked by chance."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    width = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / width, np.add.reduceat(y, edges[:-1]) / width


_VARIABLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    RULE: "var(--rule)",
    **{colour: f"var(--c{index})" for index, colour in enumerate(COLOURS)},
}


def _for_page(svg: str, name: str, alt: str) -> str:
    """An SVG of matplotlib as an element of a page: without prologue and global style rules, with unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    salt = blake2b(name.encode(), digest_size=4).hexdigest()
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>f{salt}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": {variable}")
    svg = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    _, _, rest = svg.partition(">")
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    head = f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="0 0 {width} {height}"'
    return f'{head} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
