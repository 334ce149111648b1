"""`spanbox data`: what is printed, what is written, and the exit code."""

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from spanbox.cli import data
from spanbox.data.manifest import Entity, Manifest, Record, write_manifest
from spanbox.errors import ConfigError, DataError, OutputError

app = typer.Typer()
app.add_typer(data.app, name="data")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def good(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    entity = Entity(2, 5, "animal", boxes=((0.0, 0.0, 40.0, 30.0),))
    write_manifest(tmp_path / "train.jsonl", [Record("1", "a.png", "a cat", lang="en", entities=(entity,))])
    return tmp_path / "train.jsonl"


def test_a_good_manifest_exits_with_0(good: Path) -> None:
    code, output = run("data", "check", good)
    assert code == 0
    lines = [line.split() for line in output.splitlines()]
    assert ["pairs", "1"] in lines
    assert ["type", "animal", "1"] in lines
    assert ["language", "en", "1"] in lines
    assert "No problems found." in output
    assert "Problems" not in output
    assert not list(good.parent.glob("*.json"))  # nothing is written beside the data


def test_a_bad_one_exits_with_1_and_names_the_places(good: Path) -> None:
    with good.open("a") as file:
        file.write('{"id":"1","image":"none.png","text":"x [red]y[/red]"}\nnonsense\n')
    code, output = run("data", "check", good)
    assert code == 1
    assert "  wrong line: 1 (training stops here; fix or remove the line)" in output
    assert f"    {good}:3: the line: is not JSON" in output
    assert f"    {good}:2: none.png: no such file" in output
    assert f"    {good}:2: as in line 1" in output
    assert "3 problems." in output.splitlines()
    assert "3 problems." in output


def test_long_lists_are_cut(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [Record(str(i), f"{i}.png", str(i)) for i in range(30)])
    _, output = run("data", "check", tmp_path / "m.jsonl")
    assert "missing image: 30 (" in output
    assert "    and 25 more" in output
    assert "--json PATH writes a full report with all of them." in output


def test_several_manifests_get_a_column_each_and_a_sum(good: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "train.jsonl"
    write_manifest(other, [Record("2", "../a.png", "a cat")])
    code, output = run("data", "check", good, other)
    assert code == 1
    lines = [line.split() for line in output.splitlines()]
    assert [str(good), str(other), "all"] in lines  # the names alone would be the same
    assert ["pairs", "1", "1", "2"] in lines
    assert "image in two manifests: 1" in output
    assert "\n  same text in two manifests: 1" in output.partition("Notes")[2]


def test_fast_says_what_it_left_out(good: Path) -> None:
    code, output = run("data", "check", good, "--fast")
    assert code == 0
    assert "--fast: images were neither decoded nor compared by content." in output


def test_the_full_report_goes_where_it_is_asked_for(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [Record(str(i), f"gone{i}.png", str(i)) for i in range(8)])
    path = tmp_path / "new" / "report.json"
    code, output = run("data", "check", tmp_path / "m.jsonl", "--json", path)
    assert code == 1
    assert f"Full report: {path}" in output
    (problem,) = json.loads(path.read_text())["problems"]
    assert [place["line"] for place in problem["examples"]] == list(range(1, 9))
    assert path.read_text().count("no such file") == 8


def test_a_report_that_cannot_be_written_is_refused_before_the_images_are_read(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "audit", lambda *_, **__: pytest.fail("the audit began"))
    for path in (tmp_path, good / "report.json"):
        with pytest.raises(OutputError, match="cannot be written"):
            run("data", "check", good, "--json", path)


@pytest.mark.parametrize(
    ("option", "needs"), [(("check", "--max-tokens", 40), "--tokenizer"), (("show", "--patch", 8), "--views")]
)
def test_options_without_effect_are_refused(option: tuple[object, ...], needs: str, good: Path) -> None:
    with pytest.raises(ConfigError, match=f"{option[1]}: has no effect without {needs}"):
        run("data", *option, good)


def test_one_file_for_two_reports_is_refused_before_the_work_begins(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "report"
    with pytest.raises(OutputError, match="is named for two outputs of this command"):
        run("data", "check", good, "--json", path, "--html", path)
    assert not path.exists()


@pytest.mark.parametrize("text", ["[/b]", "[red]x", "[link=x]", "\x1b[2J", "\u009b2J"])
def test_markup_and_control_characters_of_a_manifest_are_printed_as_text(tmp_path: Path, text: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    record = Record(text, "a.png", f"cat {text}", lang=text, entities=(Entity(0, 3, text), Entity(0, 3, text)))
    write_manifest(tmp_path / "m.jsonl", [record, record, Record("3", text, text)])
    code, output = run("data", "check", tmp_path / "m.jsonl")
    assert code == 1
    shown = text if text.isprintable() else ascii(text)[1:-1]
    for line in (f"type {shown} ", f"language {shown} ", f"{shown}: no such file"):
        assert line in output
    assert "\x1b" not in output
    assert "\x9b" not in output


def test_a_missing_manifest_is_an_error_for_main_to_print(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        run("data", "check", tmp_path / "none.jsonl")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(good: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    code, output = run("data", "check", good)
    assert code == 0
    assert "checking" in output
    assert "1/1" in output


@pytest.fixture
def gmner(tmp_path: Path) -> Path:
    source = tmp_path / "Twitter10000_v2.0"
    for name in ("txt", "xml", "images"):
        (source / name).mkdir(parents=True)
    for name in ("train", "dev", "test"):
        (source / "txt" / f"{name}.txt").write_text(f"IMGID:{name}\nTom\tB-PER\nran\tO\n\n")
    Image.new("RGB", (40, 30)).save(source / "images" / "train.jpg")
    (source / "xml" / "train.xml").write_text(
        "<annotation><object><name>Tom</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
        "</object></annotation>"
    )
    return source


def test_import_writes_manifests_and_tells_what_is_missing(gmner: Path, tmp_path: Path) -> None:
    code, output = run("data", "import", "twitter-gmner", gmner, tmp_path / "out")
    assert code == 0
    assert [Manifest(tmp_path / "out" / f"{name}.jsonl")[0].id for name in ("train", "val", "test")] == [
        "train",
        "dev",
        "test",
    ]
    lines = [line.split() for line in output.splitlines()]
    assert ["train.jsonl", "val.jsonl", "test.jsonl"] in lines
    assert ["boxes", "1", "0", "0"] in lines
    assert f"images from {gmner / 'images'}" in output
    assert "proposals from nowhere: no such folder was found" in output
    assert "  missing image: 1 in val.jsonl, 1 in test.jsonl" in output
    assert f"All are listed in {tmp_path / 'out' / 'import.json'}" in output
    assert f"Next: spanbox data check {tmp_path / 'out' / 'train.jsonl'}" in output


def test_import_options_reach_the_importer(gmner: Path, tmp_path: Path) -> None:
    (gmner / "xml").rename(tmp_path / "boxes")
    (gmner / "images").rename(tmp_path / "pictures")
    code, _ = run(
        *("data", "import", "twitter-gmner", gmner / "txt" / "train.txt", tmp_path / "out"),
        *("--boxes", tmp_path / "boxes", "--images", tmp_path / "pictures", "--copy-images", "--types", "coarse"),
    )
    assert code == 0
    record = Manifest(tmp_path / "out" / "train.jsonl")[0]
    assert record.entities[0].boxes == ((1.0, 2.0, 9.0, 8.0),)
    assert (tmp_path / "out" / record.image).is_file()


def test_an_unknown_choice_is_refused(gmner: Path, tmp_path: Path) -> None:
    code, output = run("data", "import", "twitter-gmner", gmner, tmp_path / "out", "--types", "medium")
    assert code == 2
    assert "coarse" in output


@pytest.mark.parametrize(
    "arguments", [("data",), ("data", "import"), ("data", "check"), ("data", "import", "twitter-gmner")]
)
def test_help_shows_examples(arguments: tuple[str, ...]) -> None:
    code, output = run(*arguments, "--help")
    assert code == 0
    if arguments[-1] in ("check", "twitter-gmner"):
        assert "Example:" in output
        assert f"spanbox {' '.join(arguments)}" in output
