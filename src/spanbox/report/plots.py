"""The figures of a report: from runs to curves, matrices, dots and pictures with boxes."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spanbox.metric_names import is_rate
from spanbox.report.examples import Box, Candidate, CoarseSimilarity, FineSimilarity, HeatmapExample, Match
from spanbox.report.figures import COLOURS, Figure, Series, can_draw, curves, dots, matrix
from spanbox.report.pictures import Picture, dimmed, heat_image
from spanbox.report.reading import Ablation, Run
from spanbox.report.scores import HEADLINE
from spanbox.report.text import Texts, number, percent, similarity, texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MOST_LINES = 12  # of a figure
LONGEST_SLUG = 200  # file systems take names of 255 bytes, with the ending and the mark of a partial file
GROUPS = ("loss", "temperature", "weight")  # quantities of the log that have a value for each level
SINGLES = ("lr", "pairs_per_second", "data_wait")
SHARES = frozenset({"data_wait"})
FROM_ZERO = frozenset({"pairs_per_second", "data_wait"})
VALIDATED = {
    "retrieval": HEADLINE["coarse"],
    "matching": HEADLINE["fine"],
    "gmner": ("gmner.f1", "mner.f1", "eeg.f1"),
}

Lines = Sequence[dict[str, Any]]


def figure_texts(wanted: Texts) -> Texts:
    """The texts to draw with: English where no installed font has the characters of the wanted ones."""
    sample = "".join(wanted.sentences.values()) + "".join(wanted.families.values())
    return wanted if can_draw(sample) else texts("en")


def drawable(*choices: str) -> str:
    """The first text of which the installed fonts have all characters; empty if there is none."""
    return next(filter(can_draw, choices), "")


def training_curves(runs: Sequence[Run], t: Texts) -> list[Figure]:
    """One run: each quantity with all its levels. Several runs: each quantity of each level, with all runs."""
    keys = list(dict.fromkeys(key for run in runs for line in run.training for key in line))
    quantities = [
        (group, [key for key in keys if key == group or key.startswith(f"{group}.")][:MOST_LINES])
        for group in (*GROUPS, *SINGLES)
    ]
    figures = []
    for quantity, found in quantities:
        title = t(f"curve_{quantity}")
        if len(runs) > 1:
            for key in found:
                lines = [_series(_run(run, index), run.training, key, index) for index, run in enumerate(runs)]
                figures += _curves(key, _title(title, key, quantity, t), lines, quantity, t)
        elif found:
            parts = [(key.removeprefix(quantity).lstrip(".") or "total", key) for key in found]
            parts.sort(key=lambda part: part[0] == "total")  # last, so that a level has one style in every figure
            lines = [_series(_part(part, t), runs[0].training, key, style) for style, (part, key) in enumerate(parts)]
            figures += _curves(quantity, title, lines, quantity, t)
    return figures


def validation_curves(runs: Sequence[Run], t: Texts) -> list[Figure]:
    """The headline metrics over the steps."""
    figures = []
    for family, names in VALIDATED.items():
        found = [name for name in names if any(name in line for run in runs for line in run.validation)]
        if len(runs) > 1:
            for name in found:
                lines = [_series(_run(run, i), run.validation, name, i) for i, run in enumerate(runs)]
                title = t("curve_validation", metric=t.metric(name))
                figures += _curves(f"validation.{name}", title, lines, name, t, share=True)
        elif found:
            lines = [_series(t.metric(name), runs[0].validation, name, i) for i, name in enumerate(found)]
            title = t(f"curve_{family}")
            figures += _curves(f"validation.{family}", title, lines, family, t, share=True)
    return figures


def coarse_matrix(run: Run, example: CoarseSimilarity, t: Texts) -> Figure:
    right = np.eye(len(example.ids), dtype=bool)
    axes = t("axis_sentence"), t("axis_image")
    return _matrix(run, "coarse", example.matrix, right, axes, t)


def fine_matrix(run: Run, example: FineSimilarity, t: Texts) -> Figure:
    shape = len(example.spans), len(example.regions)
    linked, same = (np.asarray(mask, dtype=bool).reshape(shape) for mask in (example.linked, example.same_identity))
    return _matrix(run, "fine", example.matrix, linked, (t("axis_span"), t("axis_region")), t, also_right=same)


def ablation_dots(ablation: Ablation, t: Texts) -> list[Figure]:
    """A figure for each metric."""
    figures: list[Figure] = []
    for metric in ablation.metrics:
        rows = [row for row in ablation.rows if row.metric == metric]
        shown = percent if is_rate(metric) else number
        means = t("list_joint").join(f"{row.variant} {shown(float(np.mean(row.values)))}" for row in rows)
        variants = [(drawable(row.variant, str(i + 1)), row.values) for i, row in enumerate(rows)]
        alt = t("dots_alt", metric=t.metric(metric), values=means)
        name = slug(f"ablation-{ablation.name}-{metric}")
        title = drawable(t.metric(metric), str(len(figures) + 1))
        figures.append(dots(name, title, variants, alt=alt, share=is_rate(metric)))
    return figures


def match_figure(name: str, picture: Picture, match: Match) -> Figure:
    """An image with its regions: solid if linked to the entity, dashed if chosen by mistake, dotted otherwise."""

    def draw() -> "Canvas":
        canvas, (axes,) = _pictures([picture], [drawable(picture.words_of(match.entity), picture.id)])
        for style, candidate in styled_candidates(match):
            _frame(axes, picture, candidate.box, style, "" if style == "other" else similarity(candidate.score))
        return canvas

    return Figure(name, picture.id, draw)


def heatmap_figure(name: str, picture: Picture, example: HeatmapExample, maps: dict[str, Any], t: Texts) -> Figure:
    """An image with the entity's box, beside it each of its heatmaps."""

    def draw() -> "Canvas":
        labels = [drawable(picture.words_of(example.entity), picture.id)]
        labels += [drawable(map_label(way, t), way) for way in maps]
        canvas, axes = _pictures([picture] * (1 + len(maps)), labels)
        assert picture.image is not None
        extent = (-0.5, picture.image.width - 0.5, picture.image.height - 0.5, -0.5)
        for one, heat in zip(axes[1:], maps.values(), strict=True):
            one.imshow(dimmed(picture.image))
            one.imshow(heat_image(heat), extent=extent, interpolation="bilinear")
        for one in axes:
            for box in picture.boxes_of(example.entity):
                _frame(one, picture, box, "linked", "")
        return canvas

    return Figure(name, picture.id, draw)


def map_label(way: str, t: Texts) -> str:
    """The label of a kind of heatmap."""
    return t.sentences.get(f"map_{way}", way)


def styled_candidates(match: Match) -> list[tuple[str, Candidate]]:
    """The candidates with their styles; linked and chosen ones are drawn last, above the others.

    `linked`: it shows the entity; `chosen`: it has the highest score and does not; `other`.
    """
    scores = [-math.inf if math.isnan(each.score) else each.score for each in match.candidates]
    best = match.candidates[scores.index(max(scores))]
    styles = ["linked" if one.linked else "chosen" if one is best else "other" for one in match.candidates]
    order = ("other", "chosen", "linked")
    return sorted(zip(styles, match.candidates, strict=True), key=lambda styled: order.index(styled[0]))


def slug(text: str) -> str:
    """`text` as a file name, of at most LONGEST_SLUG bytes."""
    plain = re.sub(r"[^\w.-]+", "-", text).encode()[:LONGEST_SLUG].decode(errors="ignore")
    return plain.strip("-.") or "figure"


FRAMES = {"linked": (COLOURS[2], "-", 2.0), "chosen": (COLOURS[1], "--", 2.0), "other": ("#ffffff", ":", 1.2)}


def _frame(axes: "Axes", picture: Picture, box: Box, style: str, label: str) -> None:
    from matplotlib.patches import Rectangle

    assert picture.image is not None
    width, height = picture.image.size
    colour, dash, line = FRAMES[style]
    x, y = box[0] * width - 0.5, box[1] * height - 0.5
    sides = (box[2] - box[0]) * width, (box[3] - box[1]) * height
    axes.add_patch(Rectangle((x, y), *sides, fill=False, edgecolor="#222222", linewidth=line + 1.2, alpha=0.6))
    axes.add_patch(Rectangle((x, y), *sides, fill=False, edgecolor=colour, linewidth=line, linestyle=dash))
    if label:
        plate = {"facecolor": "#222222", "edgecolor": "none", "alpha": 0.8, "pad": 1.2}
        axes.text(x + 3, y + 3, label, color="white", fontsize=7, va="top", bbox=plate, clip_on=True)


def _pictures(pictures: Sequence[Picture], labels: Sequence[str]) -> "tuple[Canvas, list[Axes]]":
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(2.4 * len(pictures), 2.7), layout="constrained")
    row = canvas.subplots(1, len(pictures), squeeze=False)[0]
    for axes, picture, label in zip(row, pictures, labels, strict=True):
        assert picture.image is not None
        axes.imshow(picture.image)
        axes.set_axis_off()
        axes.set_title(label, fontsize=8, loc="left", wrap=True)
    return canvas, list(row)


def _matrix(
    run: Run,
    level: str,
    values: Sequence[Sequence[float]],
    right: NDArray[np.bool_],
    axes: tuple[str, str],
    t: Texts,
    *,
    also_right: NDArray[np.bool_] | None = None,
) -> Figure:
    all_right = right if also_right is None else right | also_right
    has_right = all_right.any(axis=1)
    brightest = all_right[np.arange(len(right)), np.nan_to_num(np.asarray(values), nan=-np.inf).argmax(axis=1)]
    alt = t(
        "similarity_alt",
        rows=right.shape[0],
        columns=right.shape[1],
        right=int(brightest[has_right].sum()),
        of=int(has_right.sum()),
    )
    name, title = slug(f"similarity-{level}-{run.name}"), t(f"similarity_{level}")
    return matrix(name, title, values, right, also_right, rows=axes[0], columns=axes[1], alt=alt)


def _curves(
    name: str, title: str, lines: Iterable[Series], quantity: str, t: Texts, *, share: bool = False
) -> list[Figure]:
    """The figure of some lines; none where nothing finite was logged."""
    drawn = [line for line in lines if line.steps]
    if not drawn:
        return []
    shown = percent if share or quantity in SHARES else number
    described = t("list_joint").join(
        t("curve_alt_series", label=line.label, start=shown(line.values[0]), end=shown(line.values[-1]))
        for line in drawn
    )
    first = min(line.steps[0] for line in drawn)
    last = max(line.steps[-1] for line in drawn)
    alt = t("curve_alt", title=title, first=number(first), last=number(last), series=described)
    figure = curves(
        slug(f"curve-{name}"),
        title,
        drawn,
        step=t("step"),
        alt=alt,
        log=quantity == "loss",
        from_zero=quantity in FROM_ZERO,
        share=share or quantity in SHARES,
    )
    return [figure]


def _series(label: str, lines: Lines, key: str, style: int) -> Series:
    """The finite values of a key of the log."""
    found = [
        (line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float) and np.isfinite(line[key])
    ]
    return Series(label, [step for step, _ in found], [value for _, value in found], style)


def _run(run: Run, index: int) -> str:
    return drawable(run.name, str(index + 1))


def _title(title: str, key: str, quantity: str, t: Texts) -> str:
    part = key.removeprefix(quantity).lstrip(".")
    return t("curve_of", quantity=title, part=_part(part, t)) if part else title


def _part(part: str, t: Texts) -> str:
    return t.sentences.get(f"part_{part}", part)
