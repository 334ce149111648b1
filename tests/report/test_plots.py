from pathlib import Path

import msgspec
import numpy as np
import pytest

import run_folders
from spanbox.report import plots
from spanbox.report.examples import Candidate, Examples, Match
from spanbox.report.pictures import Album
from spanbox.report.reading import Run, read_ablation, read_run
from spanbox.report.text import texts

EN = texts("en")


def a_run(name: str = "run", steps: tuple[int, ...] = (10, 20), **values: float) -> Run:
    lines = tuple(run_folders.log_line(step, **values) for step in steps)
    return Run(name, Path(name), training=lines)


def test_one_run_has_its_levels_in_one_figure() -> None:
    figures = plots.training_curves([a_run()], EN)
    assert [figure.name for figure in figures] == [
        "curve-loss",
        "curve-temperature",
        "curve-lr",
        "curve-pairs_per_second",
        "curve-data_wait",
    ]
    assert "coarse from 0.1 to 0.05" in figures[0].alt
    assert "total from 0.2 to 0.1" in figures[0].alt
    assert "10.0 %" in figures[-1].alt


def test_terms_of_a_fusion_are_named_in_the_language_of_the_page() -> None:
    run = a_run(**{"loss.fusion": 0.5, "loss.fusion_parts": 0.25})
    (loss, *_) = plots.training_curves([run], texts("zh"))
    assert "融合从" in loss.alt
    assert "融合，片段与区域从" in loss.alt


def test_several_runs_have_a_figure_for_each_quantity() -> None:
    figures = plots.training_curves([a_run("first"), a_run("second", (10, 20, 30))], EN)
    assert [figure.name for figure in figures][:3] == ["curve-loss", "curve-loss.coarse", "curve-loss.fine"]
    assert "first from" in figures[0].alt
    assert "second from" in figures[0].alt
    assert "steps 10 to 30" in figures[0].alt


def test_what_is_not_finite_is_not_drawn() -> None:
    assert plots.training_curves([Run("run", Path("run"), training=({"step": 1, "loss": float("nan")},))], EN) == []
    (figure,) = plots.training_curves(
        [Run("run", Path("run"), training=({"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}))], EN
    )
    assert "steps 2 to 2" in figure.alt


def test_a_run_without_a_log_has_no_curves() -> None:
    assert plots.training_curves([Run("run", Path("run"))], EN) == []
    assert plots.validation_curves([Run("run", Path("run"))], EN) == []


def test_validation_shows_the_headline_metrics(tmp_path: Path) -> None:
    run = read_run(run_folders.write_run(tmp_path / "run"))
    names = [figure.name for figure in plots.validation_curves([run], EN)]
    assert names == ["curve-validation.retrieval", "curve-validation.matching"]
    both = [figure.name for figure in plots.validation_curves([run, run], EN)]
    assert both == ["curve-validation.retrieval.t2i.r1", "curve-validation.matching.within_image"]


def test_validation_of_a_gmner_model() -> None:
    line = {"step": 10, "gmner.f1": 0.5, "mner.f1": 0.75, "mner.recall": 0.7}
    (figure,) = plots.validation_curves([Run("run", Path("run"), validation=(line,))], EN)
    assert figure.name == "curve-validation.gmner"
    assert "GMNER, F1 from 50.0 %" in figure.alt
    assert "MNER, F1 from 75.0 %" in figure.alt


def test_matrices_say_how_often_the_brightest_is_right() -> None:
    examples = msgspec.convert(run_folders.examples(Path("x.jsonl"), boxes=True), Examples)
    assert examples.similarity is not None
    assert examples.similarity.coarse is not None
    assert examples.similarity.fine is not None
    assert "in 4 of 4 rows" in plots.coarse_matrix(a_run(), examples.similarity.coarse, EN).alt
    fine = plots.fine_matrix(a_run('a "run"'), examples.similarity.fine, EN)
    assert "in 1 of 1 rows" in fine.alt
    assert fine.name == "similarity-fine-a-run"


def test_an_ablation_has_a_figure_for_each_metric(tmp_path: Path) -> None:
    (figure,) = plots.ablation_dots(read_ablation(run_folders.write_ablation(tmp_path / "plan")), EN)
    assert figure.name == "ablation-plan-retrieval.t2i.r1"
    assert "plain 70.0 %" in figure.alt
    assert "&lt;b&gt;other" in figure.inline()


def test_a_region_is_right_chosen_instead_or_another() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    other, linked, chosen = Candidate(box, 0.2, False), Candidate(box, 0.5, True), Candidate(box, 0.9, False)
    styled = plots.styled_candidates(Match("a", 0, False, [other, linked, chosen]))
    assert styled == [("other", other), ("chosen", chosen), ("linked", linked)]


def test_pictures_for_papers(tmp_path: Path) -> None:
    examples = msgspec.convert(run_folders.examples(run_folders.write_data(tmp_path), boxes=True), Examples)
    album = Album(examples, tmp_path)
    heat = {"similarity": np.eye(2, dtype=np.float32), "rollout": np.eye(2, dtype=np.float32)}
    match = plots.match_figure("match", album["pair-1"], examples.matching[1])
    heatmap = plots.heatmap_figure("heatmap", album["pair-0"], examples.heatmaps[0], heat, EN)
    for figure in (match, heatmap):
        assert all(path.stat().st_size > 2000 for path in figure.write(tmp_path / "figures"))


def test_without_a_chinese_font_figures_are_drawn_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "can_draw", str.isascii)
    assert plots.figure_texts(texts("zh")).language == "en"
    assert plots.drawable("公园", "pair-1") == "pair-1"
    assert plots.drawable("公园", "图文对 1") == ""
    monkeypatch.setattr(plots, "can_draw", bool)
    assert plots.figure_texts(texts("zh")).language == "zh"


@pytest.mark.parametrize(
    ("text", "name"), [("a/b c", "a-b-c"), ("../..", "figure"), ("加菲猫", "加菲猫"), ("a.b", "a.b")]
)
def test_names_of_files_are_harmless(text: str, name: str) -> None:
    assert plots.slug(text) == name


def test_a_region_without_a_score_is_not_the_chosen_one() -> None:
    candidates = [Candidate((0, 0, 1, 1), score, linked=False) for score in (float("nan"), 0.1, 0.4)]
    match = Match("a", 0, right=False, candidates=candidates)
    assert [style for style, _ in plots.styled_candidates(match)] == ["other", "other", "chosen"]
