import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from spanbox.report import figures
from spanbox.report.figures import Figure, Series, can_draw, curves, dash_of, dots, matrix, shortened


def a_curve(**options: bool) -> Figure:
    series = [Series("coarse", [10, 20, 30], [3.0, 2.0, 1.0], 0), Series("fine", [10, 20, 30], [3.0, 1.0, 0.5], 1)]
    return curves("curve-loss", "Loss", series, step="step", alt='Loss, "quoted" <b>', **options)


def a_matrix() -> Figure:
    values = np.arange(12, dtype=float).reshape(3, 4)
    return matrix("m", "Matrix", values.tolist(), np.eye(3, 4, dtype=bool), rows="rows", columns="columns", alt="m")


def some_dots() -> Figure:
    return dots("d", "Dots", [("plain", [0.5, 0.6]), ("other", [0.7])], alt="d", share=True)


FIGURES = [a_curve(), a_curve(log=True), a_curve(from_zero=True, share=True), a_matrix(), some_dots()]


@pytest.mark.parametrize("figure", FIGURES)
def test_inline_figures_are_elements_that_take_the_colours_of_the_page(figure: Figure) -> None:
    svg = figure.inline()
    root = ElementTree.fromstring(svg)  # well-formed  # noqa: S314
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == figure.alt
    assert "var(--soft)" in svg
    assert not re.search(r"<style|<metadata|<\?xml|<!DOCTYPE", svg)
    assert not any(colour in svg for colour in (*figures.COLOURS, figures.INK, figures.SOFT, figures.RULE))
    assert "<text" in svg
    assert "mathdefault" not in svg


def test_ids_of_two_figures_of_a_page_differ() -> None:
    first, second = (set(re.findall(r' id="([^"]+)"', figure.inline())) for figure in (a_matrix(), some_dots()))
    assert first
    assert second
    assert not first & second


def test_a_figure_is_drawn_the_same_twice() -> None:
    assert a_curve().inline() == a_curve().inline()


@pytest.mark.parametrize("figure", FIGURES)
def test_files_for_papers(figure: Figure, tmp_path: Path) -> None:
    png, svg = figure.write(tmp_path / "figures")
    assert (png.name, svg.name) == (f"{figure.name}.png", f"{figure.name}.svg")
    with Image.open(png) as image:
        assert image.width > 500
    assert "var(--" not in svg.read_text(encoding="utf-8")


def test_a_line_of_one_point_and_one_that_never_changes() -> None:
    for values in ([1.0], [0.0, 0.0, 0.0]):
        one = Series("x", list(range(len(values))), values, 0)
        assert "<svg" in curves("c", "C", [one], step="step", alt="c").inline()


def test_each_of_many_lines_has_a_look_of_its_own() -> None:
    looks = {(style % len(figures.COLOURS), dash_of(style)) for style in range(36)}
    assert len(looks) == 36
    assert [dash_of(style) for style in range(6)] == list(range(6))
    svg = curves("c", "C", [Series(str(i), [1, 2], [i, i], i) for i in range(7)], step="s", alt="c").inline()
    lines = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="([^"]*)"', svg)
    dashes_of_first_colour = [line.partition("stroke-dasharray")[2] for line in lines if "--c0" in line]
    assert len(set(dashes_of_first_colour)) == 2


@pytest.mark.parametrize("name", ["variant of a recipe " * 5, "/data/of/a/user/" * 12 + "run"])
def test_long_names_leave_room_for_the_plot(name: str) -> None:
    """Matplotlib warns where there is none, and warnings are errors."""
    names = [f"{name}-{place}" for place in range(2)]
    drawn = dots("d", "D", [(each, [0.1, 0.2]) for each in names], alt="d", share=True).inline()
    drawn += curves("c", "C", [Series(each, [1, 2], [1, 2], 0) for each in names], step="s", alt="c").inline()
    assert all(drawn.count(f"-{place}</text>") == 2 for place in range(2))


def test_a_shortened_label_keeps_both_ends() -> None:
    assert shortened("runs/first", 10) == "runs/first"
    assert shortened("abcdefghijklmnop", 9) == "abcd…mnop"
    assert shortened("一二三四五六七八", 9) == "一二…七八"


def test_losses_that_reach_zero_have_no_logarithmic_scale() -> None:
    assert "<svg" in curves("c", "C", [Series("x", [1, 2], [1.0, 0.0], 0)], step="s", alt="c", log=True).inline()


@pytest.mark.parametrize(
    ("low", "high"),
    [(4.1, 4.4), (2.0, 6.0), (1.1, 9.9), (0.31, 0.33), (3.0, 3.0), (0.5, 40.0), (1e-4, 9.0), (1e-9, 5.0)],
)
def test_a_logarithmic_axis_has_numbers_also_within_a_decade(low: float, high: float) -> None:
    figure = curves("c", "C", [Series("x", [1, 2], [low, high], 0)], step="s", alt="c", log=True)
    axes = figure.draw().axes[0]
    bottom, top = axes.get_ylim()
    assert bottom < low
    assert high < top
    shown = [axes.yaxis.get_major_formatter()(tick) for tick in axes.get_yticks() if bottom <= tick <= top]
    assert len(set(shown)) >= 2
    assert all(label.strip() for label in shown)


def test_one_step_has_one_number_on_the_axis() -> None:
    figure = curves("c", "C", [Series("x", [3], [0.5], 0)], step="s", alt="c")
    canvas = figure.draw()
    canvas.canvas.draw()
    assert [label.get_text() for label in canvas.axes[0].get_xticklabels()] == ["3"]


def test_both_kinds_of_right_cells_are_marked() -> None:
    right, also = np.eye(3, dtype=bool), np.eye(3, k=1, dtype=bool)
    figure = matrix("m", "M", np.zeros((3, 3)).tolist(), right, also, rows="r", columns="c", alt="m")
    marks = figure.draw().axes[0].collections
    assert [len(one.get_offsets()) for one in marks] == [3, 3, 2, 2]


@pytest.mark.parametrize("cell", [float("nan"), float("inf"), 1e300])
def test_cells_that_are_no_similarity_stay_empty(cell: float) -> None:
    for values in ([[cell, 0.5]], [[cell, cell]]):
        figure = matrix("m", "M", values, np.zeros((1, 2), dtype=bool), rows="r", columns="c", alt="m")
        assert "<svg" in figure.inline()


def test_a_long_curve_is_thinned_by_means() -> None:
    steps, values = figures._thinned(range(1000), [float(step % 2) for step in range(1000)])
    assert len(steps) == len(values) == figures.POINTS
    assert values.min() >= 0.3
    assert values.max() <= 0.7


def test_dollars_in_names_are_no_formulas() -> None:
    assert "cost $5$" in curves("c", "cost $5$", [Series("x", [1], [1.0], 0)], step="s", alt="c").inline()


def test_text_without_a_font_is_known_beforehand() -> None:
    assert can_draw("plain text, 0.5 %")
    assert not can_draw("\U0001fae8\U00016800")
