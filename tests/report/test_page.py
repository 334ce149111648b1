import base64
import hashlib
import html as html_module
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_folders
from spanbox.report.examples import Box
from spanbox.report.figures import Figure
from spanbox.report.page import label_place, make_report, shaded

URLS = {"src", "href", "xlink:href", "action", "poster", "data", "srcset"}


class Page(HTMLParser):
    """What a page would fetch, run or show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.urls: list[str] = []
        self.scripts = 0
        self.sections: dict[str, str] = {}
        self.without_alt = 0
        self.handlers: list[str] = []
        self._section = ""
        self._ignored = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.urls += [values[name] or "" for name in values.keys() & URLS]
        self.handlers += [name for name in values if name.startswith("on")]
        self.scripts += tag == "script"
        self.without_alt += tag == "img" and "alt" not in values
        self._ignored = tag in ("script", "style")
        if tag == "section":
            self._section = values["id"] or ""
            self.sections[self._section] = ""

    def handle_endtag(self, tag: str) -> None:
        self._ignored = self._ignored and tag not in ("script", "style")
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._section and not self._ignored:
            self.sections[self._section] += data


def page(*folders: Path, language: str = "en") -> Page:
    return Page(make_report(folders, "zh" if language == "zh" else "en").html)


@pytest.fixture(autouse=True)
def _simple_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else, and is tested by itself and in the browser."""
    monkeypatch.setattr(Figure, "inline", lambda self: f'<svg id="{self.name}"></svg>')


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return run_folders.write_data(tmp_path / "data")


@pytest.fixture
def evaluated(tmp_path: Path, manifest: Path) -> Path:
    return run_folders.write_run(tmp_path / "run", manifest=manifest)


ABSENT = {
    "result": "No metrics yet",
    "weakness": "No metrics by type",
    "training": "No curves",
    "similarity": "No matrices",
    "retrieval": "No examples of retrieval",
    "matching": "No matches",
    "heatmaps": "No heatmaps",
    "data": "No audit",
    "setup": "No versions",
}


@pytest.mark.parametrize("section", ABSENT)
def test_a_section_is_there_or_says_why_not(tmp_path: Path, evaluated: Path, section: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "log.jsonl").touch()
    assert ABSENT[section] in page(empty).sections[section]
    assert ABSENT[section] not in page(evaluated).sections[section]


def test_what_is_absent_names_the_command_that_brings_it(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run")
    assert f"spanbox evaluate {folder} --data TEST.jsonl" in page(folder).sections["heatmaps"]


def test_a_command_is_quoted_for_the_shell(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "my run")
    assert f"spanbox evaluate '{folder}' --data TEST.jsonl" in page(folder).sections["result"]


def test_a_gmner_run_names_its_own_command_and_shows_its_validation(tmp_path: Path) -> None:
    folder = tmp_path / "ner"
    folder.mkdir()
    (folder / "config.yaml").write_text("train: {steps: 10, best_metric: gmner.f1}")
    lines = [run_folders.log_line(10), {"step": 10, "kind": "validation", "gmner.f1": 0.5, "mner.f1": 0.75}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sections = page(folder).sections
    for name in ("result", "weakness", "figures", "similarity", "retrieval", "matching", "heatmaps"):
        assert "This is a GMNER model" in sections[name]
        assert f"spanbox gmner score {folder} TEST.jsonl" in sections[name]
    assert "spanbox evaluate" not in "".join(sections.values())
    assert "No validation curves" not in sections["training"]


def test_data_without_entities_have_no_heatmaps(tmp_path: Path, manifest: Path) -> None:
    """The file of heatmaps is there, and evaluating again would not fill it."""
    folder = run_folders.write_run(tmp_path / "run", manifest=manifest, boxes=False)
    np.savez(folder / "evaluation" / "heatmaps.npz")
    heatmaps = page(folder).sections["heatmaps"]
    assert "the evaluation data has no entities" in heatmaps
    assert "spanbox evaluate" not in heatmaps


def test_the_result_comes_first_with_interval_chance_and_baseline(evaluated: Path) -> None:
    found = page(evaluated)
    assert next(iter(found.sections)) == "result"
    result = found.sections["result"]
    for words in (
        "75.0 %",
        "65.0 % to 85.0 %",
        "chance 25.0 %",
        "trivial baseline 30.0 %",
        "40 queries",
        "Above chance",
    ):
        assert words in result
    assert "Weakest group: type: <script>" in result


def test_pictures_matches_heatmaps_and_numbers_are_shown(evaluated: Path) -> None:
    found = page(evaluated)
    assert "rank 7" in found.sections["retrieval"]
    assert "0.60" in found.sections["matching"]
    assert "66.7 % inside the box" not in found.sections["matching"]
    assert "100.0 % inside the box, peak inside" in found.sections["heatmaps"]
    assert "no image that Pillow can read" in found.sections["retrieval"]
    assert "a card" in found.sections["setup"]
    assert found.without_alt == 0


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ([], [("一只红猫", None)]),
        ([(2, 4, 0.5), (0, 1, 0.1)], [("一", 0.1), ("只", None), ("红猫", 0.5), ("", None)]),
        ([(0, 2, 0.3), (1, 3, 0.4)], [("一只", 0.3), ("红猫", None)]),  # the second overlaps
        ([(3, 9, 0.3), (-2, 1, 0.2), (1, 1, 0.1)], [("一只红猫", None)]),  # none is an interval of the text
    ],
)
def test_words_are_pieces_of_the_sentence(words: Any, pieces: Any) -> None:
    assert list(shaded("一只红猫", words)) == pieces


def test_everything_from_the_data_is_escaped(tmp_path: Path, manifest: Path) -> None:
    folder = run_folders.write_run(tmp_path / """a "quoted" 'run' <b>&""", manifest=manifest)
    plan = run_folders.write_ablation(tmp_path / "<plan>")
    found = page(folder, plan)
    assert found.scripts == 1
    assert found.handlers == []
    assert run_folders.SCRIPT not in found.html
    assert html_module.escape(run_folders.SCRIPT) in found.html
    assert run_folders.SCRIPT in found.sections["matching"]
    assert "<b>other</b>" in found.sections["ablations"]


def test_nothing_is_fetched_and_only_the_own_script_runs(evaluated: Path) -> None:
    found = page(evaluated)
    assert found.urls
    assert all(url.startswith(("data:", "#")) for url in found.urls)
    assert "@import" not in found.html
    assert not re.search(r"url\((?!#)", found.html)
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', found.html)[0]
    (script,) = re.findall(r"<script>(.*?)</script>", found.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_used_once_and_links_lead_somewhere(tmp_path: Path, evaluated: Path, manifest: Path) -> None:
    other = run_folders.write_run(tmp_path / "other", manifest=manifest)
    html = page(evaluated, other, run_folders.write_ablation(tmp_path / "plan")).html
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_a_run_that_is_still_going_says_so(tmp_path: Path) -> None:
    assert "Step 20 of 40" in page(run_folders.write_run(tmp_path / "run", steps=20)).html
    folder = run_folders.write_run(tmp_path / "clock")
    (folder / "config.yaml").write_text(json.dumps({"train": {"minutes": 2}}))
    assert "0.7 of 2 minutes" in page(folder).html


def test_a_run_that_stopped_early_is_not_still_going(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", steps=20)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 20, "kind": "early stop", "since_best": 3}\n')
    html = page(folder).html
    assert "Stopped early after step 20" in html
    assert "still going" not in html


def test_a_run_that_went_on_after_an_early_stop_is_like_any_other(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", steps=20)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 10, "kind": "early stop", "since_best": 3}\n')
    html = page(folder).html
    assert "Stopped early" not in html
    assert "Step 20 of 40" in html


def test_figures_may_have_no_intervals(tmp_path: Path) -> None:
    metrics = {"retrieval.i2t.r1": 0.5, "retrieval.i2t.count": 8, "retrieval.i2t.r1.chance": 0.125}
    (tmp_path / "metrics.json").write_text(json.dumps({"checkpoint": "step-1", "data": "x.jsonl"} | metrics))
    result = page(tmp_path).sections["result"]
    for words in ("50.0 %", "no interval", "chance 12.5 %", "No interval was computed"):
        assert words in result


def test_without_boxes_the_fine_level_is_absent_and_not_zero(tmp_path: Path, manifest: Path) -> None:
    found = page(run_folders.write_run(tmp_path / "run", manifest=manifest, boxes=False))
    assert "no entities with boxes" in found.sections["result"]
    assert "No matches" in found.sections["matching"]
    assert "75.0 %" in found.sections["result"]


def test_damaged_files_are_named_on_the_page(evaluated: Path) -> None:
    (evaluated / "evaluation" / "examples.json").write_text("{")
    assert "evaluation/examples.json" in page(evaluated).html


def test_runs_on_the_same_data_are_compared_with_intervals(tmp_path: Path, evaluated: Path, manifest: Path) -> None:
    better = run_folders.write_run(tmp_path / "better", manifest=manifest, offset=0.125)
    found = page(evaluated, better)
    assert "figures" not in found.sections
    assert re.search(r"▲ \+12\.5 \[\+\d\.\d to \+1\d\.\d\]", found.sections["comparison"])
    assert "No interval: the metric is not a mean over queries (such as a median" in found.sections["comparison"]
    assert "against run: ▲ +12.5" in " ".join(found.sections["result"].split())
    assert "against run: +12.5 (no interval)" in " ".join(found.sections["result"].split())


def test_runs_on_other_data_are_not_compared(tmp_path: Path, evaluated: Path) -> None:
    other = run_folders.write_run(tmp_path / "other", manifest=run_folders.write_data(tmp_path / "data-2"))
    metrics = json.loads((other / "metrics.json").read_text())
    (other / "evaluation" / "outcomes.npz").unlink()
    found = page(evaluated, other)
    assert f"other was evaluated on other data ({metrics['data']})" in found.sections["comparison"]
    assert "[" not in found.sections["result"]


def test_an_ablation_by_itself(tmp_path: Path) -> None:
    found = page(run_folders.write_ablation(tmp_path / "plan"))
    assert list(found.sections) == ["ablations"]
    words = " ".join(found.sections["ablations"].split())
    assert "70.0 % ± 10.0 %" in words
    assert "+13.3 ± 3.3, ahead in 3 of 3" in words


@pytest.mark.parametrize(
    ("metric", "ahead"),
    [
        ("retrieval.t2i.median_rank", "ahead in 1 of 3"),
        ("retrieval.t2i.mean_rank", "ahead in 1 of 3"),
        ("embedding.fine.uniformity.spans", "ahead in 1 of 3"),
        ("retrieval.t2i.map", "ahead in 2 of 3"),
        ("matching.within_image.type.median_rank", "ahead in 2 of 3"),
        ("embedding.coarse.modality_gap", ""),
        ("matching.presence.threshold", ""),
    ],
)
def test_a_variant_is_ahead_where_its_value_is_better(tmp_path: Path, metric: str, ahead: str) -> None:
    rows = [
        f"{name},{metric},{seed},0.5,{difference}"
        for name, differences in (("plain", (0, 0, 0)), ("other", (0.1, 0.2, -0.1)))
        for seed, difference in enumerate(differences)
    ]
    (tmp_path / "table.csv").write_text("variant,metric,seed,value,difference\n" + "\n".join(rows) + "\n")
    assert re.findall(r"ahead in \d of \d", page(tmp_path).sections["ablations"]) == [ahead] * bool(ahead)


def test_configs_are_compared_key_by_key(tmp_path: Path) -> None:
    folders = [run_folders.write_run(tmp_path / name) for name in ("a", "b")]
    assert "The configs are the same." in page(*folders).sections["setup"]
    (folders[1] / "config.yaml").write_text(json.dumps({"seed": 1, "train": {"steps": 40}}))
    setup = page(*folders).sections["setup"]
    assert "The configs are the same." not in setup
    assert "train.lr" in setup


def test_in_chinese(evaluated: Path) -> None:
    found = page(evaluated, language="zh")
    assert '<html lang="zh-CN">' in found.html
    assert "句子与图像" in found.sections["result"]
    assert "65.0 % 至 85.0 %" in found.sections["result"]
    assert "加菲猫" in found.sections["matching"]
    assert "最弱的组：类型：<script>" in found.sections["result"]


def test_figures_are_drawn_for_each_run(tmp_path: Path, evaluated: Path) -> None:
    figures = make_report([evaluated], "en").figures
    names = [figure.name for figure in figures]
    assert len(set(names)) == len(names)
    assert {"curve-loss", "similarity-coarse-run", "similarity-fine-run", "heatmap-01-run"} <= set(names)
    assert "match-01-wrong-run" in names


def test_of_many_groups_the_weakest_are_in_sight(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    for index in range(12):
        metrics |= run_folders.score(f"matching.within_image.type.T{index}", 0.3 + index / 20)
    (evaluated / "metrics.json").write_text(json.dumps(metrics))
    in_sight, _, behind = page(evaluated).sections["weakness"].partition("5 more groups with higher values")
    assert "T6" in in_sight
    assert "T7" not in in_sight
    assert "T11" in behind


def test_figures_below_chance_are_called_so(evaluated: Path) -> None:
    name = "retrieval.i2t.r1"
    metrics = json.loads((evaluated / "metrics.json").read_text())
    (evaluated / "metrics.json").write_text(json.dumps(metrics | {name: 0.05, f"{name}.low": 0.0, f"{name}.high": 0.2}))
    result = page(evaluated).sections["result"]
    assert "Below the higher of chance and the trivial baseline" in result
    assert "低于随机水平与简单基线中的较高者" in page(evaluated, language="zh").sections["result"]


def test_groups_of_few_queries_are_listed_after_the_others_and_never_weakest(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    name = "matching.within_image.type.rare"
    (evaluated / "metrics.json").write_text(json.dumps(metrics | {name: 0.0, f"{name}.count": 5.0}))
    found = page(evaluated)
    before, _, after = found.sections["weakness"].partition("1 groups with fewer than 20 queries")
    assert "rare" not in before
    assert "rare" in after
    assert "rare" not in found.sections["result"]


def test_missing_pictures_are_reported_once_with_the_remedy(tmp_path: Path, evaluated: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    for language, words in (("en", "4 of 4 images"), ("zh", "4 张图像中缺少 4 张")):
        found = page(evaluated, language=language)
        assert found.html.count(words) == 1
        assert found.html.count(str(tmp_path / "data")) <= 8  # and not in each picture
        assert "--data" in found.html.split(words)[1][:400]
    report = make_report([evaluated], "en", tmp_path / "moved" / "pairs.jsonl")
    assert report.notes == []
    assert "images of the examples are missing" not in report.html


@pytest.mark.parametrize(
    ("box", "places"),
    [
        ((0.1, 0.5, 0.12, 0.9), "above to-right"),
        ((0.9, 0.5, 0.95, 0.9), "above to-left"),
        ((0.1, 0.0, 0.2, 0.5), "below to-right"),
        ((0.0, 0.0, 1.0, 1.0), "inside to-right"),
    ],
)
def test_labels_lie_outside_of_their_box_within_the_picture(box: Box, places: str) -> None:
    assert label_place(box) == places


def test_only_the_right_and_the_chosen_region_have_a_label(evaluated: Path) -> None:
    html = page(evaluated).html
    labels = re.findall(r'<i class="box (\w+)[^>]*>(<b>)?', html)
    assert {("linked", "<b>"), ("chosen", "<b>")} <= set(labels)
    assert ("other", "<b>") not in labels


@pytest.mark.parametrize("names", [("🚀", "🔥"), ("run 1", "run (1)"), ("实验 一", "实验+一"), ("Run", "run")])
def test_figures_of_runs_with_names_alike_are_files_of_their_own(tmp_path: Path, names: tuple[str, str]) -> None:
    data = run_folders.write_data(tmp_path / "data")
    runs = [run_folders.write_run(tmp_path / str(place) / name, manifest=data) for place, name in enumerate(names)]
    figures = make_report(runs, "en").figures
    assert len({figure.name.casefold() for figure in figures}) == len(figures)


def test_figures_of_a_run_with_a_long_chinese_name_can_be_written(tmp_path: Path) -> None:
    data = run_folders.write_data(tmp_path / "data")
    figures = make_report([run_folders.write_run(tmp_path / ("实验" * 42), manifest=data)], "en").figures
    (tmp_path / "figures").mkdir()
    assert all(path.is_file() for figure in figures[-2:] for path in figure.write(tmp_path / "figures"))
