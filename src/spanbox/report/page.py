"""The report as one HTML page that needs nothing else: no network, no other file.

What comes from data is escaped by Jinja2, and the page's content security policy forbids requests and other scripts.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from spanbox.documents import dump_yaml
from spanbox.metric_names import BREAKDOWNS, better_direction, is_part, is_rate
from spanbox.report import plots, scores
from spanbox.report.examples import Box, HeatmapExample, Match, Retrieval
from spanbox.report.figures import COLOURS, Figure, dash_of
from spanbox.report.pictures import Album, Picture, heat_inside, heat_source
from spanbox.report.reading import Ablation, Run, read_folders
from spanbox.report.scores import Difference, Score, parse_scores
from spanbox.report.text import Language, Texts, number, percent, points, signed, similarity, texts
from spanbox.terminal import command

SHOWN = {"retrieval": 18, "matching": 24, "heatmaps": 8}
"""Number of examples of each kind on a page; several runs share them."""

GROUPS_SHOWN = 8  # of a breakdown, the lowest; the others are behind a click


LABEL_HEIGHT, LABEL_WIDTH = 0.12, 0.3  # room for a label, as shares of a picture


@dataclass(frozen=True)
class RunView:
    """A run with everything that the page shows of it."""

    run: Run
    first: Run
    index: int  # of its colour, dash and mark
    share: int  # number of runs on the page
    t: Texts
    figure_t: Texts
    manifest: Path | None = None  # of the evaluation, where it was moved

    @cached_property
    def scores(self) -> dict[str, Score]:
        return parse_scores(self.run.metrics)

    @cached_property
    def album(self) -> Album | None:
        folder = self.run.folder / "evaluation"
        return Album(self.run.examples, folder, self.manifest) if self.run.examples else None

    @cached_property
    def missing_pictures(self) -> str:
        """A sentence if images of the examples are missing, with the remedy; empty otherwise."""
        count, total, first = self.album.missing if self.album else (0, 0, "")
        if not count:
            return ""
        return self.t("pictures_missing", count=number(count), total=number(total), first=first)

    @property
    def is_first(self) -> bool:
        return self.run is self.first

    @property
    def check_command(self) -> str:
        """The command that checks the training data."""
        data = self.run.config.get("data")
        train = str(data.get("train", "TRAIN.jsonl")) if isinstance(data, dict) else "TRAIN.jsonl"
        return command("data", "check", train)

    @property
    def measure_command(self) -> str:
        """The command that measures the model."""
        folder, data = self.run.folder, self.run.data or "TEST.jsonl"
        if self.run.is_gmner:
            return command("gmner", "score", folder, data)
        return command("evaluate", folder, "--data", data)

    @property
    def unfinished(self) -> str:
        """The progress of a run that has not reached its end, or the reason why it ended early; empty otherwise."""
        if self.run.stopped_early:
            return self.t("stopped_early", step=number(self.run.step))
        if self.run.is_finished:
            return ""
        if self.run.minutes_set is not None:
            return self.t(
                "unfinished_minutes", done=f"{self.run.seconds / 60:.1f}", minutes=number(self.run.minutes_set)
            )
        return self.t("unfinished", step=number(self.run.step), steps=number(self.run.steps_set))

    def headline(self, level: str) -> list[Score]:
        return scores.headline(self.scores, level)

    def difference(self, name: str) -> Difference | None:
        """Difference to the first run; None for that run itself."""
        return None if self.is_first else scores.difference(self.run, self.first, name)

    def breakdowns(self) -> dict[str, tuple[list[tuple[str, Score]], list[tuple[str, Score]]]]:
        """Breakdowns by kind: the groups, lowest first, and those with too few queries to compare."""
        found = {kind: scores.breakdown(self.scores, kind) for kind in BREAKDOWNS}
        return {kind: groups for kind, groups in found.items() if any(groups)}

    def weakest(self) -> tuple[str, Score] | None:
        """The group of entities with the lowest score, among those with enough queries."""
        groups = [
            (self.t("curve_of", quantity=self.t.measures[kind], part=self.t.group(kind, group)), score)
            for kind, (members, _) in self.breakdowns().items()
            for group, score in members
        ]
        return min(groups, key=lambda pair: pair[1].value, default=None)

    @cached_property
    def matrices(self) -> dict[str, Figure]:
        similarity = self.run.examples.similarity if self.run.examples else None
        figures = {}
        if similarity and similarity.coarse and similarity.coarse.matrix:
            figures["coarse"] = plots.coarse_matrix(self.run, similarity.coarse, self.figure_t)
        if similarity and similarity.fine and similarity.fine.matrix:
            figures["fine"] = plots.fine_matrix(self.run, similarity.fine, self.figure_t)
        return figures

    def retrievals(self) -> dict[str, list[Retrieval]]:
        """Retrieval examples by direction, equally many of each kind."""
        found = self.run.examples.retrieval if self.run.examples else {}
        return {direction: _some_of_each(found[direction], self._shown("retrieval") // 2) for direction in found}

    def matches(self) -> list[Match]:
        """Matching examples, wrong ones first."""
        found = self.run.examples.matching if self.run.examples else []
        half = -(-self._shown("matching") // 2)
        right, wrong = [m for m in found if m.right][:half], [m for m in found if not m.right][:half]
        return [match for match in (*wrong, *right) if match.candidates]

    def heatmaps(self) -> list[tuple[HeatmapExample, dict[str, NDArray[np.float32]]]]:
        """Examples that have maps, spread evenly over all of them, which are in the order of the matches."""
        found = self.run.examples.heatmaps if self.run.examples else []
        with_maps = [(one, {way: self.run.heatmaps.get(key) for way, key in one.maps.items()}) for one in found]
        kept = [(one, {way: heat for way, heat in maps.items() if heat is not None}) for one, maps in with_maps]
        there = [(one, maps) for one, maps in kept if maps]
        return there[:: -(-len(there) // self._shown("heatmaps")) or 1]

    def incidents(self) -> dict[str, int]:
        """Counts of the incidents in the training data, from the last line of the log."""
        return dict(self.run.training[-1].get("incidents", {})) if self.run.training else {}

    def picture_figures(self) -> list[Figure]:
        """The matches and heatmaps as figures for files."""
        if self.album is None:
            return []
        figures = []
        for index, match in enumerate(self.matches()):
            name = plots.slug(f"match-{index + 1:02d}-{'right' if match.right else 'wrong'}-{self.run.name}")
            figures.append((self.album[match.id], plots.match_figure(name, self.album[match.id], match)))
        for index, (example, maps) in enumerate(self.heatmaps()):
            name, picture = plots.slug(f"heatmap-{index + 1:02d}-{self.run.name}"), self.album[example.id]
            figures.append((picture, plots.heatmap_figure(name, picture, example, maps, self.figure_t)))
        return [figure for picture, figure in figures if picture.image]

    def _shown(self, sort: str) -> int:
        return max(1, SHOWN[sort] // self.share)


@dataclass(frozen=True)
class Report:
    """A page and the figures on it."""

    html: str
    figures: list[Figure]
    notes: list[str]  # problems for the terminal


def make_report(folders: Sequence[Path], language: Language, manifest: Path | None = None) -> Report:
    """The report of runs, and of ablations, side by side.

    Args:
        folders: of runs and ablations; the first run is the reference.
        language: of the texts.
        manifest: of the evaluation, where it is no longer at the place that the runs name.

    Raises:
        CheckpointError: a folder is neither a run nor an ablation.
    """
    t = texts(language)
    runs, ablations = read_folders(folders)
    figure_t = plots.figure_texts(t)
    views = [RunView(run, runs[0], index, len(runs), t, figure_t, manifest) for index, run in enumerate(runs)]
    training, validation = plots.training_curves(runs, figure_t), plots.validation_curves(runs, figure_t)
    dots = {ablation.name: plots.ablation_dots(ablation, figure_t) for ablation in ablations}
    script = (files("spanbox.report") / "templates" / "page.js").read_text(encoding="utf-8").strip()
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            t=t,
            views=views,
            ablations=ablations,
            names=t("list_joint").join([run.name for run in runs] + [ablation.name for ablation in ablations]),
            training=training,
            validation=validation,
            dots=dots,
            metric_names=[name for name in _union(view.scores for view in views) if not is_part(name)],
            config_differences=_differing([run.config for run in runs]),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            today=date.today().isoformat(),
            version=version("spanbox"),
        )
    )
    figures = [*training, *validation, *(figure for found in dots.values() for figure in found)]
    for view in views:
        figures += [*view.matrices.values(), *view.picture_figures()]
    problems = [t("problem", problem=problem) for view in views for problem in view.run.problems]
    return Report(
        html, named_apart(figures), [*problems, *(view.missing_pictures for view in views if view.missing_pictures)]
    )


def named_apart(figures: Sequence[Figure]) -> list[Figure]:
    """Figures with unique file names, case ignored: a repeated name gets a number.

    Names of runs, types and variants lose characters in names of files: those of two emoji are the same.
    """
    taken: set[str] = set()
    named = []
    for figure in figures:
        numbered = (f"{figure.name}-{place}" for place in count(2))
        name = next(name for name in chain([figure.name], numbered) if name.casefold() not in taken)
        taken.add(name.casefold())
        named.append(replace(figure, name=name))
    return named


def shown(name: str, value: float | None) -> str:
    """A metric's value with its unit."""
    return percent(value) if is_rate(name) else number(value)


def shown_difference(name: str, value: float) -> str:
    """A difference of a metric; of rates in percentage points."""
    return points(value) if is_rate(name) else signed(value)


def ablation_cell(ablation: Ablation, variant: str, metric: str) -> dict[str, Any] | None:
    """A variant's mean and spread, its paired difference with its standard error, and the number of seeds in which it
    is ahead; None for a metric that has no better direction."""
    row = ablation.row(variant, metric)
    if row is None:
        return None
    seeds, direction = len(row.values), better_direction(metric)
    several = seeds > 1
    return {
        "mean": float(np.mean(row.values)),
        "spread": float(np.std(row.values, ddof=1)) if several else None,
        "difference": float(np.mean(row.differences)),
        "error": float(np.std(row.differences, ddof=1) / seeds**0.5) if several else None,
        "ahead": sum(direction * value > 0 for value in row.differences) if direction else None,
        "seeds": seeds,
        "is_first": variant == ablation.variants[0],
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spanbox.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "ablation_cell": ablation_cell,
        "colours": len(COLOURS),
        "dash_of": dash_of,
        "heat_inside": heat_inside,
        "heat_source": heat_source,
        "is_rate": is_rate,
        "map_label": plots.map_label,
        "label_place": label_place,
        "marked": marked,
        "same_data": scores.same_data,
        "styled_candidates": plots.styled_candidates,
        "shaded": shaded,
        "shown": shown,
        "groups_shown": GROUPS_SHOWN,
        "least_queries": scores.LEAST_QUERIES,
        "shown_difference": shown_difference,
    }
    environment.filters |= {"percent": percent, "number": number, "similarity": similarity, "yaml": dump_yaml}
    return environment


def marked(picture: Picture, entity: int) -> tuple[str, str, str]:
    """The sentence before, in and after an entity."""
    start, end = picture.span_of(entity)
    return picture.text[:start], picture.text[start:end], picture.text[end:]


def shaded(text: str, words: Sequence[tuple[int, int, float]]) -> Iterator[tuple[str, float | None]]:
    """The pieces of a text in order, each with its share of the attention; None between the words."""
    end = 0
    for first, last, share in sorted(words):
        if end <= first < last <= len(text) and math.isfinite(share):
            if end < first:
                yield text[end:first], None
            yield text[first:last], share
            end = last
    yield text[end:], None


def label_place(box: Box) -> str:
    """Classes that place the label of a box outside of it, within the picture, so that it hides no object."""
    vertical = "above" if box[1] > LABEL_HEIGHT else "below" if box[3] < 1 - LABEL_HEIGHT else "inside"
    return f"{vertical} {'to-left' if box[0] > 1 - LABEL_WIDTH else 'to-right'}"


def _union(mappings: Any) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _some_of_each(found: Sequence[Retrieval], count: int) -> list[Retrieval]:
    kinds = list(dict.fromkeys(one.kind for one in found))
    each = max(1, count // max(1, len(kinds)))
    return [one for kind in kinds for one in [one for one in found if one.kind == kind][:each]]


def _differing(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The dotted keys in which configs differ, with the value of each."""
    flat = [_flat(config) for config in configs]
    rows = [(key, [one.get(key, "–") for one in flat]) for key in _union(flat)]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
