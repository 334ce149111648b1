"""`spanbox data split`, `merge`, `sample`, `card`, `fix`, `clean` and `import`, and relevance in all of them."""

import json
import shlex
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import miniature
from command import Command
from pairs import entity
from spanbox.data.importers.formats import FORMATS
from spanbox.data.manifest import Manifest, Record, relocated, write_manifest
from spanbox.wiring import Trained, train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(miniature.demo_config(scenes, tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture
def data(spanbox: Command) -> Command:
    """Runs `spanbox data`."""
    return partial(spanbox, "data")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Six pairs on three images, in two languages."""
    for i in range(3):
        Image.new("RGB", (40, 20), (80 * i, 10, 10)).save(tmp_path / f"{i}.png")
    texts = [("a red cat", "red cat"), ("一只红色的猫", "红色的猫")]
    records = [
        Record(
            f"{image}-{lang}",
            f"{image}.png",
            f"{text} {image}",
            lang=("en", "zh")[lang],
            entities=(entity(text, name, (0.0, 0.0, 20.0, 20.0)),),
            source="shop",
        )
        for image in range(3)
        for lang, (text, name) in enumerate(texts)
    ]
    write_manifest(tmp_path / "all.jsonl", records)
    return tmp_path / "all.jsonl"


class TestSplit:
    def test_writes_and_counts_each_split(self, data: Command, few: Path, tmp_path: Path) -> None:
        code, out, _ = data("split", few, "parts", "--shares", "train=2,test=1", "--seed", 3)
        assert code == 0
        parts = {name: list(Manifest(tmp_path / "parts" / f"{name}.jsonl")) for name in ("train", "test")}
        assert [f"parts/{name}.jsonl: {len(records)} pairs" for name, records in parts.items()] == out.splitlines()
        assert sorted(record.id for records in parts.values() for record in records) == sorted(
            record.id for record in Manifest(few)
        )
        images = [{Path(record.image).name for record in records} for records in parts.values()]
        assert not images[0] & images[1]
        assert Manifest(tmp_path / "parts" / "train.jsonl").image_path(parts["train"][0]).is_file()

    @pytest.mark.parametrize(
        "shares", ["train", "train=-1", "train=x", "../up=1", "train=nan", "=1", "train=1,train=2"]
    )
    def test_shares_that_make_no_sense_are_refused(self, data: Command, few: Path, shares: str) -> None:
        code, _, err = data("split", few, "parts", "--shares", shares)
        assert code == 2
        assert shares in err
        assert "NAME=NUMBER" in err or "train=0.8,val=0.1,test=0.1" in err or "is given twice" in err
        assert not list(Path("parts").glob("*"))

    def test_too_few_groups(self, data: Command, few: Path) -> None:
        code, _, err = data("split", few, "parts", "--shares", "a=1,b=1,c=1,d=1")
        assert (code, err) == (2, f"spanbox: {few}: has 3 groups, too few for 4 splits\n")


class TestMerge:
    def test_joins_manifests(self, data: Command, few: Path, tmp_path: Path) -> None:
        other = tmp_path / "other" / "more.jsonl"
        write_manifest(other, [Record("0-0", "../0.png", "另一只猫", lang="zh")])
        code, out, _ = data("merge", few, other, "--out", "joined.jsonl")
        assert (code, out) == (0, "joined.jsonl: 7 pairs\n")
        joined = list(Manifest(tmp_path / "joined.jsonl"))
        assert [(record.id, record.source) for record in joined[-2:]] == [("2-1", "shop"), ("0-0-2", "more")]
        assert joined[-1].group_key == joined[0].group_key  # one image file

    @pytest.mark.parametrize("out", ["all.jsonl", "all.txt"])
    def test_replaces_no_input_and_no_other_file(self, data: Command, few: Path, tmp_path: Path, out: str) -> None:
        (tmp_path / "all.txt").write_text("notes")
        before = few.read_bytes()
        code, _, err = data("merge", few, "--out", out)
        assert code == 2
        assert out in err
        assert few.read_bytes() == before
        assert (tmp_path / "all.txt").read_text() == "notes"


class TestSample:
    def test_draws_whole_groups(self, data: Command, few: Path, tmp_path: Path) -> None:
        code, out, _ = data("sample", few, "small.jsonl", "--n", 3)
        assert (code, out) == (0, "small.jsonl: 4 pairs\n")
        records = list(Manifest(tmp_path / "small.jsonl"))
        assert len({record.image for record in records}) == 2
        assert data("sample", few, "again.jsonl", "--n", 3).code == 0
        assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "small.jsonl").read_bytes()

    def test_more_than_there_are(self, data: Command, few: Path) -> None:
        assert data("sample", few, "small.jsonl", "--n", 100).out == "small.jsonl: 6 pairs\n"

    def test_a_missing_manifest(self, data: Command) -> None:
        code, _, err = data("sample", "none.jsonl", "small.jsonl")
        assert code == 2
        assert "none.jsonl: no such manifest" in err


class TestCard:
    def test_lists_counts_sources_licences_and_findings(self, data: Command, few: Path, tmp_path: Path) -> None:
        with few.open("a", encoding="utf-8") as file:
            file.write('{"id": "x", "image": "gone.png", "text": "一张 <b> | 图片"}\n')
        code, out, _ = data("card", few, "--title", "Cats | 猫", "--licence", "shop=CC BY 4.0", "--fast")
        assert (code, out) == (0, "written to DATASET.md\n")
        card = (tmp_path / "DATASET.md").read_text(encoding="utf-8")
        assert card.startswith("# Cats \\| 猫\n")
        for line in (
            "| pairs | 7 |",
            "| zh | 3 | 42.9% |",
            "| shop | 6 | CC BY 4.0 |",
            "| not given | 1 | not given |",
            "| missing image | problem | 1 |",
        ):
            assert line in card
        assert "neither decoded nor compared" in card

    def test_a_licence_without_its_source(self, data: Command, few: Path, tmp_path: Path) -> None:
        code, _, err = data("card", few, "--licence", "CC BY 4.0")
        assert code == 2
        assert "expected --licence SOURCE=TEXT" in err
        assert not (tmp_path / "DATASET.md").exists()


class TestFix:
    def test_counts_what_it_repaired(self, data: Command, tmp_path: Path) -> None:
        Image.new("RGB", (100, 60)).save(tmp_path / "a.png")
        records = [
            Record("1", "A.PNG", f"a red cat {i}", entities=(entity("a red cat", "cat", (40.0, i, 50.0, 10.0)),))
            for i in range(30)
        ]
        write_manifest(tmp_path / "m.jsonl", records)
        before = (tmp_path / "m.jsonl").read_bytes()
        code, out, _ = data("fix", "m.jsonl", "fixed/m.jsonl")
        assert code == 0
        lines = out.splitlines()
        assert "30 names of images in another spelling: corrected" in lines
        assert "29 ids used twice: made unique" in lines
        assert "30 boxes of entities, x y width height in pixels: converted" in lines
        assert lines[-2:] == ["Repaired: fixed/m.jsonl", "Next: spanbox data check fixed/m.jsonl"]
        fixed = Manifest(tmp_path / "fixed" / "m.jsonl")
        assert fixed[0].entities[0].boxes == ((40.0, 0.0, 90.0, 10.0),)
        assert fixed.image_path(fixed[0]).is_file()
        assert (tmp_path / "m.jsonl").read_bytes() == before

    def test_nothing_to_repair(self, data: Command, few: Path, tmp_path: Path) -> None:
        code, out, _ = data("fix", few, "fixed.jsonl")
        assert code == 0
        assert "Nothing to repair with certainty; copied to fixed.jsonl" in out
        assert list(Manifest(tmp_path / "fixed.jsonl")) == list(Manifest(few))

    def test_the_original_is_not_replaced(self, data: Command, few: Path) -> None:
        code, _, err = data("fix", few, few)
        assert code == 2
        assert "is read by this command" in err


class TestClean:
    def test_by_a_run(self, data: Command, run: Trained, scenes: Path, tmp_path: Path) -> None:
        manifest = scenes / "test.jsonl"
        code, out, _ = data("clean", manifest, "out", "--run", run.run_dir, "--pairs", "weight", "--device", "cpu")
        assert code == 0
        assert out.startswith("estimated: ")
        assert "look at: out/review.html" in out
        verdicts = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
        assert [verdict["id"] for verdict in verdicts] == [record.id for record in Manifest(manifest)]
        cleaned = Manifest(tmp_path / "out" / "test.jsonl")
        assert len(cleaned) == len(verdicts)
        assert all(0 <= record.relevance <= 1 for record in cleaned)
        assert cleaned.image_path(cleaned[0]).is_file()
        assert data("check", "out/test.jsonl", "--fast").code in (0, 1)

    def test_no_share_is_estimated_of_what_is_not_judged(
        self, data: Command, run: Trained, scenes: Path, tmp_path: Path
    ) -> None:
        """As pairs and boxes of a single image: 0.0% would mean that all are right."""
        one = relocated(Manifest(scenes / "test.jsonl")[0], scenes, tmp_path)
        write_manifest(tmp_path / "one.jsonl", [one])
        code, out, _ = data("clean", tmp_path / "one.jsonl", "out", "--run", run.run_dir, "--device", "cpu")
        assert code == 0
        assert out.startswith("no box is judged: those of wrong pairs are not, nor")
        assert "%" not in out
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert (summary["wrong_pairs"], summary["wrong_links"]) == (None, None)

    @pytest.mark.parametrize("option", ["--folds", "--jobs"])
    def test_a_run_leaves_nothing_to_train(self, option: str, data: Command, tmp_path: Path) -> None:
        code, _, err = data("clean", "train.jsonl", "out", "--run", "runs/x", option, "3")
        assert (code, err) == (2, f"spanbox: {option}: with --run nothing is trained; leave it out\n")

    def test_needs_a_recipe_or_a_run(self, data: Command, scenes: Path, tmp_path: Path) -> None:
        for arguments in ((), ("--recipe", "demo", "--run", "runs/x")):
            code, _, err = data("clean", scenes / "test.jsonl", "out", *arguments)
            assert code == 2
            assert "either --recipe" in err
        assert not (tmp_path / "out" / "test.jsonl").exists()


class TestImport:
    def test_the_next_command_can_be_copied_whatever_the_names_of_the_folders(
        self, data: Command, few: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "t.csv").write_text("image,text\n0.png,一只猫\n", encoding="utf-8")
        for arguments in (
            ("import", "table", "t.csv", "it's 数据 1"),
            ("fix", "it's 数据 1/all.jsonl", "new $x/f.jsonl"),
        ):
            code, out, _ = data(*arguments)
            assert code == 0
            _, subcommand, verb, *paths = shlex.split(out.rpartition("Next: ")[2])
            assert (subcommand, verb) == ("data", "check")
            assert [Path(path).is_file() for path in paths] == [True]

    def test_lists_every_format_with_what_it_expects(self, data: Command) -> None:
        code, out, _ = data("import", "--list")
        assert code == 0
        for name, form in FORMATS.items():
            assert f"{name}: {form.title}\n    {form.expects}\n" in out
        assert "twitter-gmner: " in out

    def test_counts_pairs_and_what_was_left_out(self, data: Command, few: Path, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("image,text\n0.png,一只猫\ngone.png,a dog\n,none\n", encoding="utf-8")
        code, out, _ = data("import", "table", "t.csv", "out")
        assert code == 0
        assert ["pairs", "2"] in [line.split() for line in out.splitlines()]
        assert "  missing image: 1 in all.jsonl" in out
        assert "  wrong line: 1 in all.jsonl" in out
        assert out.endswith("Next: spanbox data check out/all.jsonl\n")
        assert [record.text for record in Manifest(tmp_path / "out" / "all.jsonl")] == ["一只猫", "a dog"]

    def test_fields_by_a_spec(self, data: Command, few: Path, tmp_path: Path) -> None:
        (tmp_path / "d.jsonl").write_text('{"file": "0.png", "c": ["a", "一"]}\n', encoding="utf-8")
        (tmp_path / "spec.yaml").write_text("{image: file, text: c}")
        code, _, _ = data("import", "json", "d.jsonl", "out", "--spec", "spec.yaml", "--images", tmp_path)
        assert code == 0
        assert [record.text for record in Manifest(tmp_path / "out" / "all.jsonl")] == ["a", "一"]

    @pytest.mark.parametrize("name", sorted(FORMATS))
    def test_a_missing_source_says_what_is_expected(self, data: Command, name: str, tmp_path: Path) -> None:
        code, _, err = data("import", name, "none", "out")
        assert code == 2
        assert err == f"spanbox: none: no such file or folder; expected {FORMATS[name].expects}\n"
        assert not (tmp_path / "out").exists()


def test_relevance_outside_of_its_range_is_found_by_check_and_refused_by_training(data: Command, few: Path) -> None:
    lines = few.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"relevance": 1.5})
    few.write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, out, _ = data("check", few, "--fast")
    assert code == 1
    assert f"{few}:2: relevance: 1.5 is not within 0 and 1" in out
    code, _, err = data("sample", few, "small.jsonl")
    assert code == 2
    assert f"{few}, line 2: relevance: 1.5 is not within 0 and 1" in err


def test_relevance_reaches_the_new_manifests(data: Command, few: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in few.read_text(encoding="utf-8").splitlines()]
    records[0] |= {"relevance": 0.25, "meta": {"页": [1, None]}}
    records[0]["entities"][0]["relevance"] = [0.5]
    few.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for arguments in (
        ("sample", few, "new/m.jsonl"),
        ("merge", few, "--out", "new/m.jsonl"),
        ("fix", few, "new/m.jsonl"),
    ):
        assert data(*arguments).code == 0
        found = next(record for record in Manifest(tmp_path / "new" / "m.jsonl") if record.id == "0-0")
        assert (found.relevance, found.entities[0].relevance, found.meta) == (0.25, (0.5,), {"页": [1, None]})


@pytest.mark.parametrize("manifest", ["none.jsonl", "wrong.jsonl"])
@pytest.mark.parametrize(
    "command",
    [
        ("split", "{}", "new/er"),
        ("sample", "{}", "new/er/s.jsonl"),
        ("merge", "{}", "--out", "new/er/m.jsonl"),
        ("fix", "{}", "new/er/f.jsonl"),
        ("clean", "{}", "new/er", "--recipe", "demo"),
        ("import", "json", "{}", "new/er"),
    ],
    ids=lambda command: command[0],
)
def test_nothing_is_left_of_a_command_that_fails(
    data: Command, tmp_path: Path, command: tuple[str, ...], manifest: str
) -> None:
    (tmp_path / "wrong.jsonl").write_text("no record\n")
    code, _, err = data(*(part.format(tmp_path / manifest) for part in command))
    assert (code, err.startswith("spanbox: ")) == (2, True)
    assert not Path("new").exists()


def test_the_report_of_a_check_does_not_replace_a_manifest(data: Command, few: Path, tmp_path: Path) -> None:
    manifest = few.rename(tmp_path / "all.json")
    before = manifest.read_bytes()
    code, _, err = data("check", manifest, "--json", manifest)
    assert (code, "is read by this command" in err) == (2, True)
    assert manifest.read_bytes() == before
