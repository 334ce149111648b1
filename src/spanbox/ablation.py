"""Ablations: variants of a recipe, each trained with the same seeds for the same budget.

A plan is a YAML file. Every run is a separate process, started as a user would start it. An interrupted plan
continues with the missing runs. The metrics come from the runs' `metrics.json`. Each run folder holds the commands of
the run (`commands.json`), so that the runs of another plan are recognised.
"""

import csv
import io
import json
import statistics
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from spanbox.config import RunConfig, list_problems, load_config, without_actions
from spanbox.data.manifest import check_manifest_file
from spanbox.documents import DocumentError, parse_yaml, quoted, read_json, read_yaml
from spanbox.engine.device import choose_device
from spanbox.errors import ConfigError
from spanbox.files import write_text
from spanbox.processes import Jobs
from spanbox.progress import Progress
from spanbox.report.reading import MOST_PARTS, MOST_ROWS, AblationRow
from spanbox.settings import PathText, Settings

LONGEST_NAME = 240  # bytes of a variant, which names a folder: 255 at most, with the seed


class AblationPlan(Settings):
    """The variants, the seeds, the budget and the metrics of a comparison."""

    recipe: PathText = Field(description="recipe or YAML file that every run starts from")
    overrides: tuple[str, ...] = Field((), description="settings that all runs share")
    variants: dict[str, tuple[str, ...]] = Field(
        min_length=1, max_length=MOST_PARTS, description="settings of each variant; the first one is the reference"
    )
    seeds: tuple[int, ...] = Field(
        (0, 1, 2), min_length=1, max_length=100, description="each variant is trained with each seed"
    )
    subset: int | None = Field(
        None, ge=2, description="number of training pairs, spread evenly over the manifest; null: as in the recipe"
    )
    steps: int | None = Field(None, ge=1, description="budget of a run in steps")
    minutes: float | None = Field(None, gt=0, description="budget of a run in minutes of training")
    test: PathText = Field(description="manifest on which every run is evaluated")
    metrics: tuple[str, ...] = Field(min_length=1, max_length=100, description="columns of the table")
    jobs: int = Field(1, ge=1, le=1024, description="runs at the same time, each with its share of the cores")

    @model_validator(mode="after")
    def _one_budget(self) -> "AblationPlan":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes, so that all variants have the same budget")
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "AblationPlan":
        """No setting is replaced by a key of the plan. A variant may have its own steps, minutes and subset."""
        of_each_run = {"seed": "seeds", "run.dir": "--out"}
        budget = {"train.steps": self.steps, "train.minutes": self.minutes, "data.subset": self.subset}
        of_all_runs = of_each_run | {key: key.partition(".")[2] for key, value in budget.items() if value is not None}
        for keys, settings in [(of_all_runs, self.overrides), *((of_each_run, own) for own in self.variants.values())]:
            for setting in settings:
                if (key := setting.partition("=")[0]) in keys:
                    raise ValueError(f"{setting!r} would have no effect: the plan sets it by {keys[key]}; remove it")
        return self

    @model_validator(mode="after")
    def _table_can_be_read(self) -> "AblationPlan":
        rows = len(self.variants) * len(self.seeds) * len(self.metrics)
        if rows > MOST_ROWS:
            raise ValueError(
                f"variants x seeds x metrics are {rows:,} rows of the table, more than {MOST_ROWS:,}, which "
                "`spanbox report` reads; name fewer metrics, or make two plans"
            )
        return self

    @field_validator("variants")
    @classmethod
    def _names_are_folders(cls, variants: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in variants:
            is_plain = name.strip() and name.isprintable() and not name.startswith(".")
            if not is_plain or "/" in name or "\\" in name or len(name.encode()) > LONGEST_NAME:
                raise ValueError(
                    f"{name[:LONGEST_NAME]!r} cannot be the name of a variant, which is also a folder: give at most "
                    f"{LONGEST_NAME} bytes, that is {LONGEST_NAME // 3} Chinese characters, without / and line ends"
                )
        alike = Counter(unicodedata.normalize("NFC", name).casefold() for name in variants)
        if alike.total() > len(alike):
            name = alike.most_common(1)[0][0]
            raise ValueError(f"two variants are called {name!r} but for case, and would share a folder: rename one")
        return variants

    @field_validator("seeds", "metrics")
    @classmethod
    def _no_repetitions(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise ValueError(f"{repeated[0]!r} is given twice")
        return values


def load_plan(path: Path) -> AblationPlan:
    """Read a plan and check the config of every run, before the first run starts.

    Raises:
        ConfigError: no such file, not YAML, or something in it is wrong.
    """
    try:
        tree = read_yaml(path)
    except DocumentError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}; give a YAML file") from None
    try:
        plan = AblationPlan.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: the plan is wrong:\n{list_problems(error, _explain)}") from None
    first = next(iter(plan.variants))
    runs = [(variant, plan.seeds[0]) for variant in plan.variants] + [(first, seed) for seed in plan.seeds]
    for variant, seed in runs:
        minutes = load_config(plan.recipe, _overrides(plan, variant, seed, Path("unused"))).train.minutes
        if plan.steps is not None and minutes is not None:
            raise ConfigError(
                f"{path}: {variant}: train.minutes={minutes:g} would override the plan's steps; set "
                "train.minutes=null in overrides, or where the variant sets it, or give the plan minutes, not steps"
            )
    return plan


def _explain(details: ErrorDetails) -> str:
    """One problem: the key and the remedy."""
    key = ".".join(map(str, details["loc"])) or "the plan"
    match details["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; a plan has {', '.join(AblationPlan.model_fields)}"
        case "tuple_type":
            return f"{key}: expected a list, in brackets"
    return f"{key}: {details['msg']}"


def run_plan(plan: AblationPlan, out: Path) -> list[AblationRow]:
    """Train and evaluate the missing runs, `plan.jobs` at a time. Returns the rows of the table.

    After a run that failed, or that lacks a metric of the table, no further one starts. Ctrl-C and SIGTERM stop
    those that run.

    Raises:
        ConfigError: a run in `out` has other settings or damaged metrics, or lacks a metric of the plan.
        DataError: a manifest does not exist; raised before the first run starts.
        OutputError: `out` cannot be written.
        TrainingError: a run failed; its output is in its folder.
    """
    missing = [(variant, seed) for seed in plan.seeds for variant in plan.variants]
    missing = [run for run in missing if not _is_done(plan, out, *run)]
    for manifest in _manifests(plan, {variant for variant, _ in missing}):
        check_manifest_file(manifest)

    def run(one: tuple[str, int]) -> tuple[str, str]:
        name = f"{one[0]}, seed {one[1]}"
        commands, folder = _commands(plan, out, *one), _run_folder(out, *one)
        write_text(_commands_file(out, *one), json.dumps(commands, indent=1))
        jobs.run(name, commands, folder / "output.txt")
        return name, _headline(plan, out, *one)

    with Progress("runs", len(missing)) as progress, Jobs(plan.jobs) as jobs:
        for done, (name, headline) in enumerate(jobs.map(run, missing), start=1):
            progress.update(done, name)
            progress.note(f"{name}: {headline}")
    return collect(plan, out)


def _manifests(plan: AblationPlan, variants: Collection[str]) -> set[Path]:
    """Paths of the manifests that the runs of these variants read."""
    configs = [load_config(plan.recipe, _overrides(plan, name, plan.seeds[0], Path("unused"))) for name in variants]
    read = {path for config in configs for path in (config.data.train, config.data.val, plan.test)}
    return {Path(path) for path in read if path is not None}


def collect(plan: AblationPlan, out: Path) -> list[AblationRow]:
    """The metrics of all runs of a plan, as rows of its table."""
    found = {
        (variant, seed): _read_metrics(_metrics_file(out, variant, seed))
        for variant in plan.variants
        for seed in plan.seeds
    }
    first = next(iter(plan.variants))
    rows = []
    for metric in plan.metrics:
        for variant in plan.variants:
            values = [_value(found[variant, seed], metric) for seed in plan.seeds]
            base = [_value(found[first, seed], metric) for seed in plan.seeds]
            differences = tuple(value - other for value, other in zip(values, base, strict=True))
            rows.append(AblationRow(variant, metric, tuple(values), differences))
    return rows


def markdown(plan: AblationPlan, rows: list[AblationRow]) -> str:
    """A table: mean and standard deviation over the seeds, and the mean paired difference with its standard error."""
    lines = ["| variant | " + " | ".join(map(_in_a_cell, plan.metrics)) + " |", "|---|" + "---:|" * len(plan.metrics)]
    for variant in plan.variants:
        cells = [_cell(row, is_first=variant == next(iter(plan.variants))) for row in rows if row.variant == variant]
        lines.append(f"| {_in_a_cell(variant)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_a_cell(name: str) -> str:
    return name.replace("|", "\\|")


def write_csv(rows: list[AblationRow], plan: AblationPlan, path: Path) -> None:
    """Write the table as CSV, one line per variant, metric and seed."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["variant", "metric", "seed", "value", "difference"])
    for row in rows:
        for seed, value, difference in zip(plan.seeds, row.values, row.differences, strict=True):
            writer.writerow([row.variant, row.metric, seed, value, difference])
    write_text(path, file.getvalue())


def _cell(row: AblationRow, *, is_first: bool) -> str:
    shown = _mean_and_spread(row.values, signed=False, error=False)
    return shown if is_first else f"{shown} ({_mean_and_spread(row.differences, signed=True, error=True)})"


def _mean_and_spread(values: tuple[float, ...], *, signed: bool, error: bool) -> str:
    mean = f"{statistics.fmean(values):{'+' if signed else ''}z.3f}"
    if len(values) < 2:
        return mean
    spread = statistics.stdev(values) / (len(values) ** 0.5 if error else 1.0)
    return f"{mean} ± {spread:.3f}"


def _is_done(plan: AblationPlan, out: Path, variant: str, seed: int) -> bool:
    """Whether a run is complete and has the settings of this plan."""
    if not _metrics_file(out, variant, seed).is_file():
        return False
    try:
        made_with = read_json(_commands_file(out, variant, seed))
    except (OSError, ValueError):
        made_with = None
    same_commands = _without_folder(made_with) == _without_folder(_commands(plan, out, variant, seed))
    if not same_commands or not _has_settings_of_recipe(plan, out, variant, seed):
        raise ConfigError(
            f"{_run_folder(out, variant, seed)}: holds a run with other settings than the plan; remove it, or choose "
            "another folder for the plan (--out)"
        )
    return True


def _has_settings_of_recipe(plan: AblationPlan, out: Path, variant: str, seed: int) -> bool:
    """Whether a run was trained with the present settings of the recipe; its commands hold only the recipe's path."""
    folder = _run_folder(out, variant, seed)
    asked = without_actions(load_config(plan.recipe, _overrides(plan, variant, seed, folder)))
    try:
        made = load_config(str(folder / "config.yaml"), [_run_dir(folder)])
    except ConfigError:
        return False
    if asked.train.start is not None:  # the model is that of another run
        asked = asked.model_copy(update={"model": made.model})
    return asked == made


def _commands(plan: AblationPlan, out: Path, variant: str, seed: int) -> list[list[str]]:
    """The arguments of the `spanbox` commands that train and evaluate a run."""
    folder = _run_folder(out, variant, seed)
    return [
        ["train", plan.recipe, *_overrides(plan, variant, seed, folder), "run.overwrite=true"],
        ["evaluate", str(folder), "--data", plan.test],
    ]


def _without_folder(commands: Any) -> tuple[list[Any], list[Any]] | None:
    """The arguments of a run's commands without its folder, which may move; None for anything but such commands."""
    match commands:
        case [["train", *settings], ["evaluate", _, *options]]:
            return [one for one in settings if not str(one).startswith("run.dir=")], options
        case _:
            return None


def _overrides(plan: AblationPlan, variant: str, seed: int, folder: Path) -> list[str]:
    budget = f"train.steps={plan.steps}" if plan.steps else f"train.minutes={plan.minutes}"
    subset = [f"data.subset={plan.subset}"] if plan.subset else []
    overrides = [
        *plan.overrides,
        *subset,
        budget,
        *plan.variants[variant],
        f"seed={seed}",
        _run_dir(folder),
    ]
    return [*overrides, *_same_precision(load_config(plan.recipe, overrides))]


def _same_precision(config: RunConfig) -> list[str]:
    """Overrides that fix float32 where each run would otherwise measure and choose its own precision."""
    measured = config.train.precision == "auto" and choose_device(config.train.device).type == "cpu"
    return ["train.precision=float32"] if measured else []


def _run_dir(folder: Path) -> str:
    return f"run.dir={_as_yaml(str(folder))}"


def _as_yaml(text: str) -> str:
    """The text without quotes where YAML reads it back unchanged, as in earlier runs' commands; else in quotes."""
    try:
        return text if parse_yaml(text) == text else quoted(text)
    except DocumentError:
        return quoted(text)


def _run_folder(out: Path, variant: str, seed: int) -> Path:
    return out / f"{variant}-{seed}"


def _commands_file(out: Path, variant: str, seed: int) -> Path:
    return _run_folder(out, variant, seed) / "commands.json"


def _metrics_file(out: Path, variant: str, seed: int) -> Path:
    return _run_folder(out, variant, seed) / "metrics.json"


def _read_metrics(path: Path) -> Mapping[str, float]:
    try:
        content = read_json(path)
    except (OSError, DocumentError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; remove the folder of this run") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a JSON object of metrics; remove the folder of this run")
    return {key: value for key, value in content.items() if _is_figure(value)}


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise ConfigError(f"metrics: the runs have no metric {name!r}; known: {', '.join(metrics)}")
    return metrics[name]


def _headline(plan: AblationPlan, out: Path, variant: str, seed: int) -> str:
    metrics = _read_metrics(_metrics_file(out, variant, seed))
    return "  ".join(f"{name} {_value(metrics, name):z.3f}" for name in plan.metrics)
