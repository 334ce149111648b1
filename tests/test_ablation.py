"""Plans of ablations: checked before the first run, run once, continued, and summarised as by hand."""

import csv
import io
import json
import threading
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

import miniature
from spanbox.ablation import AblationPlan, collect, load_plan, markdown, run_plan, write_csv
from spanbox.cli.main import app
from spanbox.config import dump_config, load_config, without_actions
from spanbox.engine.stopping import StopRequest
from spanbox.errors import ConfigError, DataError, TrainingError
from spanbox.processes import Jobs
from spanbox.report.reading import AblationRow, read_ablation

METRICS = ("retrieval.i2t.r1", "matching.within_image")
PLANS = Path(__file__).parents[1] / "benchmarks" / "plans"


def plan_of(**fields: Any) -> dict[str, Any]:
    given = {"recipe": "demo", "variants": {"base": [], "cold": ["loss.coarse.temperature=0.02"]}, "seeds": [0, 1]}
    return {**given, "steps": 2, "test": "test.jsonl", "metrics": list(METRICS), **fields}


def write_plan(folder: Path, **fields: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan_of(**fields)), encoding="utf-8")
    return path


def shared_overrides(data: Path, *more: str) -> list[str]:
    """What makes the demo recipe small; the plan sets the folders and steps of the runs."""
    set_by_plan = ("run.dir=", "train.steps=")
    return [each for each in miniature.demo_overrides(data, data, *more) if not each.startswith(set_by_plan)]


def pairs_of(folder: Path) -> Path:
    """A manifest without a pair."""
    path = folder / "pairs.jsonl"
    path.touch()
    return path


def write_metrics(out: Path, figures: dict[tuple[str, int], tuple[float, float]]) -> None:
    for (variant, seed), values in figures.items():
        (out / f"{variant}-{seed}").mkdir(parents=True)
        content = {"checkpoint": "step-000002", **dict(zip(METRICS, values, strict=True))}
        (out / f"{variant}-{seed}" / "metrics.json").write_text(json.dumps(content), encoding="utf-8")


FIGURES = {("base", 0): (0.5, 1.0), ("base", 1): (0.7, 1.0), ("cold", 0): (0.6, 0.5), ("cold", 1): (0.6, 0.5)}


def table_of(folder: Path, plan: AblationPlan) -> list[AblationRow]:
    """Rows of equal values as `ablate` writes them."""
    values = (0.5,) * len(plan.seeds)
    rows = [AblationRow(variant, metric, values, values) for metric in plan.metrics for variant in plan.variants]
    write_csv(rows, plan, folder / "table.csv")
    return rows


class TestTable:
    @pytest.mark.slow
    def test_the_report_reads_the_table_of_every_plan(self, tmp_path: Path) -> None:
        variants = {f"{'变体' * 20} {number}": () for number in range(200)}
        metrics = [f"matching.within_image.type.type-{number}" for number in range(80)]
        plan = AblationPlan.model_validate(plan_of(variants=variants, metrics=metrics, seeds=[0, 1, 2]))
        rows = table_of(tmp_path, plan)
        read = read_ablation(tmp_path)
        assert list(read.rows) == rows
        assert read.row(rows[-1].variant, rows[-1].metric) == rows[-1]

    def test_a_plan_whose_table_is_too_large_for_the_report_is_refused(self) -> None:
        variants = {str(number): () for number in range(200)}
        with pytest.raises(ValueError, match=r"60,000 rows of the table, more than 50,000.*name fewer metrics"):
            AblationPlan.model_validate(plan_of(variants=variants, metrics=list(map(str, range(100))), seeds=[0, 1, 2]))

    def test_a_bar_in_a_name_stays_in_its_cell(self, tmp_path: Path) -> None:
        plan = AblationPlan.model_validate(plan_of(variants={"a|b": []}, metrics=["x.type.c|d"], seeds=[0]))
        lines = markdown(plan, table_of(tmp_path, plan)).splitlines()
        assert lines == ["| variant | x.type.c\\|d |", "|---|---:|", "| a\\|b | 0.500 |"]

    def test_by_hand(self, tmp_path: Path) -> None:
        plan = AblationPlan.model_validate(plan_of())
        write_metrics(tmp_path, FIGURES)
        rows = collect(plan, tmp_path)
        assert rows[1].differences == pytest.approx((0.1, -0.1))
        assert markdown(plan, rows).splitlines() == [
            "| variant | retrieval.i2t.r1 | matching.within_image |",
            "|---|---:|---:|",
            "| base | 0.600 ± 0.141 | 1.000 ± 0.000 |",
            "| cold | 0.600 ± 0.000 (+0.000 ± 0.100) | 0.500 ± 0.000 (-0.500 ± 0.000) |",
        ]

    def test_one_seed_has_no_spread(self) -> None:
        plan = AblationPlan.model_validate(plan_of(seeds=[3], metrics=["m"]))
        rows = [AblationRow("base", "m", (0.25,), (0.0,)), AblationRow("cold", "m", (0.5,), (0.25,))]
        assert markdown(plan, rows).splitlines()[2:] == ["| base | 0.250 |", "| cold | 0.500 (+0.250) |"]

    def test_csv_has_a_line_for_each_value(self, tmp_path: Path) -> None:
        plan = AblationPlan.model_validate(plan_of())
        write_metrics(tmp_path, FIGURES)
        write_csv(collect(plan, tmp_path), plan, tmp_path / "table.csv")
        with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == 8
        assert lines[2] == {
            "variant": "cold",
            "metric": METRICS[0],
            "seed": "0",
            "value": "0.6",
            "difference": str(0.6 - 0.5),
        }

    def test_a_metric_that_was_not_measured(self, tmp_path: Path) -> None:
        plan = AblationPlan.model_validate(plan_of(metrics=["retrieval.i2t.r2"]))
        write_metrics(tmp_path, FIGURES)
        with pytest.raises(
            ConfigError, match=r"the runs have no metric 'retrieval\.i2t\.r2'; known: retrieval\.i2t\.r1"
        ):
            collect(plan, tmp_path)


class TestPlans:
    def test_steps_where_the_recipe_is_in_minutes(self, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(dump_config(load_config("demo", ["train.minutes=30"])), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"base: train\.minutes=30 would override the plan's steps"):
            load_plan(write_plan(tmp_path, recipe=str(recipe)))
        assert load_plan(write_plan(tmp_path, recipe=str(recipe), overrides=["train.minutes=null"])).steps == 2
        assert load_plan(write_plan(tmp_path, recipe=str(recipe), steps=None, minutes=1)).minutes == 1

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"minutes": 1}, "give either steps or minutes"),
            ({"steps": None}, "give either steps or minutes"),
            ({"variants": {"../out": []}}, "cannot be the name of a variant"),
            ({"variants": {}}, "variants"),
            ({"variants": {"LoRA": [], "lora": []}}, "two variants are called 'lora' but for case, and would share"),
            ({"variants": {"caf\u00e9": [], "cafe\u0301": []}}, "would share a folder"),
            ({"variants": {"a" * 300: []}}, "cannot be the name of a variant"),
            ({"variants": {"学" * 81: []}}, "cannot be the name of a variant, .* that is 80 Chinese characters"),
            ({"variants": {"a\nb": []}}, "cannot be the name of a variant"),
            ({"seeds": []}, "seeds"),
            ({"seeds": [1, 1]}, "1 is given twice"),
            ({"seeds": [0, -1]}, "seed: Input should be greater than or equal to 0"),
            ({"jobs": 10**30}, "jobs"),
            (
                {"budget": 1},
                "budget: unknown key; a plan has recipe, overrides, variants, seeds, subset, steps, minutes,",
            ),
            ({"variants": {"base": {}}}, r"variants\.base: expected a list, in brackets"),
            ({"variants": {"base": [], "other seed": ["seed=3"]}}, "'seed=3' would have no effect: the plan sets it"),
            ({"variants": {"base": ["run.dir=x"]}}, "'run.dir=x' would have no effect: .* remove it"),
            ({"overrides": ["seed=3"]}, "'seed=3' would have no effect: .* remove it"),
            ({"overrides": ["train.steps=9"]}, "'train.steps=9' would have no effect: the plan sets it by steps"),
            ({"overrides": ["data.subset=9"], "subset": 4}, "'data.subset=9' would have no effect: .* by subset"),
            ({"variants": {"base": ["train.batchsize=3"]}}, r"train\.batchsize: unknown key; .* train\.batch_size"),
        ],
    )
    def test_a_mistake_costs_no_run(self, fields: dict[str, Any], problem: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=problem):
            load_plan(write_plan(tmp_path, **fields))

    def test_no_yaml_and_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "plan.yaml").write_text("a: [", encoding="utf-8")
        for name in ("plan.yaml", "missing.yaml"):
            with pytest.raises(ConfigError, match=r"cannot be read"):
                load_plan(tmp_path / name)

    @pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_the_plans_that_ship_are_right(self, path: Path) -> None:
        assert load_plan(path).metrics


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a run are called one after another, where they would start processes."""
    one_at_a_time = threading.Lock()

    def call(jobs: Jobs, command: list[str], file: IO[bytes]) -> int:
        with one_at_a_time, redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            app(command)
        return int(str(ended.value.code))

    monkeypatch.setattr(Jobs, "_call", call)
    monkeypatch.setattr(StopRequest, "listening", nullcontext)  # signals are for main threads


class TestRuns:
    @pytest.mark.slow
    @pytest.mark.usefixtures("in_this_process")
    def test_runs_what_is_missing_and_nothing_else(self, tmp_path: Path) -> None:
        data = miniature.write_scenes(tmp_path / "scenes")
        overrides = shared_overrides(data, "data.val=null", "train.save_every=2")
        path = write_plan(
            tmp_path,
            overrides=overrides,
            test=str(data / "test.jsonl"),
            seeds=[0],
            jobs=2,
            variants={"base": [], "coarse alone": ["loss.fine.weight=0"]},
        )
        plan = load_plan(path)
        rows = run_plan(plan, tmp_path / "runs")
        assert [row.variant for row in rows] == ["base", "coarse alone"] * 2
        assert {path.name for path in (tmp_path / "runs").iterdir()} == {"base-0", "coarse alone-0"}
        times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").glob("*/metrics.json"))]
        assert run_plan(plan, tmp_path / "runs") == rows
        assert times == [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").glob("*/metrics.json"))]
        more = load_plan(write_plan(tmp_path, **plan.model_dump(mode="json") | {"seeds": [0], "steps": 3}))
        with pytest.raises(ConfigError, match=r"base-0: holds a run with other settings than the plan; remove it"):
            run_plan(more, tmp_path / "runs")
        (tmp_path / "runs" / "base-0" / "commands.json").unlink()
        with pytest.raises(ConfigError, match=r"base-0: holds a run with other settings"):
            run_plan(plan, tmp_path / "runs")

    @pytest.mark.slow
    @pytest.mark.usefixtures("in_this_process")
    def test_on_a_subset(self, tmp_path: Path) -> None:
        data = miniature.write_scenes(tmp_path / "scenes")
        overrides = shared_overrides(data, "data.val=null", "train.save_every=2")
        test = str(data / "test.jsonl")
        path = write_plan(tmp_path, overrides=overrides, test=test, seeds=[0], variants={"base": []}, subset=9)
        run_plan(load_plan(path), tmp_path / "runs")
        config = (tmp_path / "runs" / "base-0" / "config.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(config)["data"]["subset"] == 9

    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The runs that were started, in place of the processes; each has one figure, or fails with a seed of 7."""
        started = []

        def run(jobs: Jobs, name: str, commands: Any, output: Path) -> None:
            started.append(name)
            if name.endswith("seed 7"):
                raise TrainingError(f"{name}: failed")
            (output.parent / "metrics.json").write_text('{"retrieval.i2t.r1": 0.5}', encoding="utf-8")

        monkeypatch.setattr(Jobs, "run", run)
        return started

    @pytest.mark.parametrize(
        ("seeds", "metrics", "error", "message", "last"),
        [
            ([0, 1], ["retrieval.i2t.r@1"], ConfigError, r"no metric 'retrieval\.i2t\.r@1'", "base, seed 0"),
            ([7, 1], ["retrieval.i2t.r1"], TrainingError, "base, seed 7: failed", "base, seed 7"),
        ],
    )
    def test_after_a_failure_no_further_run_starts(
        self,
        seeds: list[int],
        metrics: list[str],
        error: type[Exception],
        message: str,
        last: str,
        commands: list[str],
        tmp_path: Path,
    ) -> None:
        data = pairs_of(tmp_path)
        overrides = [f"data.train={data}", "data.val=null"]
        plan = load_plan(write_plan(tmp_path, overrides=overrides, test=str(data), seeds=seeds, metrics=metrics))
        with pytest.raises(error, match=message):
            run_plan(plan, tmp_path / "runs")
        assert commands == [last]

    @pytest.mark.parametrize("name", ["base", "lr #2", "a: b", "大 😀", "'it", "学" * 80, "b" * 240])
    def test_each_run_is_in_the_folder_of_its_variant(self, name: str, commands: list[str], tmp_path: Path) -> None:
        data = pairs_of(tmp_path)
        overrides = [f"data.train={data}", "data.val=null"]
        fields = {"seeds": [0], "variants": {name: []}, "metrics": ["retrieval.i2t.r1"]}
        path = write_plan(tmp_path, overrides=overrides, test=str(data), **fields)
        run_plan(load_plan(path), tmp_path / "runs #1")
        folder = tmp_path / "runs #1" / f"{name}-0"
        (_, recipe, *settings), _ = json.loads((folder / "commands.json").read_text(encoding="utf-8"))
        assert commands == [f"{name}, seed 0"]
        assert load_config(recipe, settings).run.dir == str(folder)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [([], "float32"), (["train.precision=bfloat16"], "bfloat16")],
    )
    def test_all_runs_have_one_precision(
        self, given: list[str], expected: str, commands: list[str], tmp_path: Path
    ) -> None:
        """On a CPU `auto` would measure in each run, and could choose another one for each."""
        data = pairs_of(tmp_path)
        overrides = [f"data.train={data}", "data.val=null", *given]
        fields = {"seeds": [0], "variants": {"base": []}, "metrics": ["retrieval.i2t.r1"]}
        run_plan(load_plan(write_plan(tmp_path, overrides=overrides, test=str(data), **fields)), tmp_path / "runs")
        written = (tmp_path / "runs" / "base-0" / "commands.json").read_text(encoding="utf-8")
        (_, recipe, *settings), _ = json.loads(written)
        assert load_config(recipe, settings).train.precision == expected

    def test_runs_of_a_recipe_that_was_changed_since_are_refused(self, commands: list[str], tmp_path: Path) -> None:
        data, recipe = pairs_of(tmp_path), tmp_path / "recipe.yaml"
        recipe.write_text(dump_config(load_config("demo", [f"data.train={data}", "data.val=null"])), encoding="utf-8")
        fields = {"seeds": [0], "variants": {"base": []}, "metrics": ["retrieval.i2t.r1"], "recipe": str(recipe)}
        plan = load_plan(write_plan(tmp_path, test=str(data), **fields))
        run_plan(plan, tmp_path / "runs")
        folder = tmp_path / "runs" / "base-0"
        (_, _, *settings), _ = json.loads((folder / "commands.json").read_text(encoding="utf-8"))
        trained = without_actions(load_config(str(recipe), settings))
        (folder / "config.yaml").write_text(dump_config(trained), encoding="utf-8")
        run_plan(plan, tmp_path / "runs")
        assert commands == ["base, seed 0"]
        other = load_config(str(recipe), ["train.optimiser.lr=0.5"])
        recipe.write_text(dump_config(other), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"base-0: holds a run with other settings"):
            run_plan(plan, tmp_path / "runs")

    def test_a_plan_whose_folder_was_moved_goes_on(self, commands: list[str], tmp_path: Path) -> None:
        data = pairs_of(tmp_path)
        fields = {"variants": {"base": []}, "metrics": ["retrieval.i2t.r1"], "overrides": ["data.val=null"]}
        fields["overrides"].append(f"data.train={data}")
        plan = load_plan(write_plan(tmp_path, test=str(data), seeds=[0], **fields))
        run_plan(plan, tmp_path / "runs")
        folder = tmp_path / "runs" / "base-0"
        (_, recipe, *settings), _ = json.loads((folder / "commands.json").read_text(encoding="utf-8"))
        (folder / "config.yaml").write_text(dump_config(without_actions(load_config(recipe, settings))))
        moved = (tmp_path / "runs").rename(tmp_path / "移动 #2")
        more = load_plan(write_plan(tmp_path, test=str(data), seeds=[0, 1], **fields))
        run_plan(more, moved)
        assert commands == ["base, seed 0", "base, seed 1"]

    @pytest.mark.parametrize("missing", ["test", "data.train", "data.val"])
    def test_a_manifest_that_is_missing_costs_no_run(self, missing: str, commands: list[str], tmp_path: Path) -> None:
        data = pairs_of(tmp_path)
        given = dict.fromkeys(("test", "data.train", "data.val"), str(data)) | {missing: "nowhere.jsonl"}
        fields = {"overrides": ["data.val=null"], "test": given.pop("test")}
        late = [f"{key}={value}" for key, value in given.items()]
        plan = load_plan(write_plan(tmp_path, variants={"base": [f"data.train={data}"], "late": late}, **fields))
        with pytest.raises(DataError, match=r"nowhere\.jsonl: no such manifest"):
            run_plan(plan, tmp_path / "runs")
        assert commands == []

    @pytest.mark.slow
    def test_a_run_that_fails_is_named_with_what_it_printed(self, tmp_path: Path) -> None:
        overrides = [f"data.train={pairs_of(tmp_path)}", "data.val=null"]
        plan = load_plan(
            write_plan(tmp_path, overrides=overrides, test=str(pairs_of(tmp_path)), seeds=[0], variants={"base": []})
        )
        with pytest.raises(TrainingError, match=r"base, seed 0: `spanbox train` failed, see .*output\.txt"):
            run_plan(plan, tmp_path / "runs")
        assert "pairs.jsonl" in (tmp_path / "runs" / "base-0" / "output.txt").read_text(encoding="utf-8")
