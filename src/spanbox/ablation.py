"""Does a change help more than chance? Variants of a recipe, each trained with the same seeds for the same budget.

A plan is a YAML file. Every run is a process of its own, started as a user would start it; a plan that was interrupted
goes on with what is missing, and its figures are read from the runs' `metrics.json`. Each run's folder holds the
commands that it was made with (`commands.json`), so that figures of an earlier plan are not taken for this one's.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from spanbox.config import load_config
from spanbox.errors import ConfigError, TrainingError
from spanbox.progress import Progress
from spanbox.report.reading import AblationRow
from spanbox.settings import Settings


class AblationPlan(Settings):
    """What is compared, and by what."""

    recipe: str = Field(description="recipe or YAML file that every run starts from")
    overrides: tuple[str, ...] = Field((), description="settings that all runs share")
    variants: dict[str, tuple[str, ...]] = Field(
        min_length=1, description="settings of each variant; differences are taken to the first one"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each variant is trained with each of them")
    subset: int | None = Field(
        None, ge=2, description="train on so many pairs, spread evenly over the manifest; null: all"
    )
    steps: int | None = Field(None, ge=1, description="budget of a run in steps")
    minutes: float | None = Field(None, gt=0, description="budget of a run in minutes of training")
    test: str = Field(description="manifest that every run is evaluated on")
    metrics: tuple[str, ...] = Field(min_length=1, description="columns of the table")
    jobs: int = Field(1, ge=1, description="runs at the same time, each with its share of the cores")

    @model_validator(mode="after")
    def _one_budget(self) -> "AblationPlan":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes, so that all variants have the same budget")
        return self

    @field_validator("variants")
    @classmethod
    def _names_are_folders(cls, variants: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in variants:
            if not name.strip() or name.startswith(".") or "/" in name or "\\" in name:
                raise ValueError(f"{name!r} cannot be a variant's name: it names a folder too")
        return variants


def load_plan(path: Path) -> AblationPlan:
    """Read a plan, and every variant's config with it, so that a mistake costs no run.

    Raises:
        ConfigError: no such file, no YAML, or something in it is wrong.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    try:
        plan = AblationPlan.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {'.'.join(map(str, e['loc'])) or 'the plan'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: the plan is wrong:\n{problems}") from None
    for variant in plan.variants:
        load_config(plan.recipe, _overrides(plan, variant, plan.seeds[0], Path("unused")))
    return plan


def run_plan(plan: AblationPlan, out: Path) -> list[AblationRow]:
    """Train and evaluate what is not there yet, `plan.jobs` at a time. Returns the table's rows.

    Raises:
        ConfigError: a run in `out` was made by other settings.
        TrainingError: a run failed; what it printed is in its folder.
    """
    missing = [(variant, seed) for seed in plan.seeds for variant in plan.variants]
    missing = [run for run in missing if not _is_done(plan, out, *run)]
    done = 0
    with Progress("runs", len(missing)) as progress, ThreadPoolExecutor(plan.jobs) as pool:
        for variant, seed in pool.map(lambda run: _run(plan, out, *run), missing):
            done += 1
            progress.update(done, f"{variant}, seed {seed}")
            progress.note(f"{variant}, seed {seed}: {_headline(plan, out, variant, seed)}")
    return collect(plan, out)


def collect(plan: AblationPlan, out: Path) -> list[AblationRow]:
    """The figures of all runs of a plan."""
    found = {
        (variant, seed): json.loads(_metrics_file(out, variant, seed).read_text(encoding="utf-8"))
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
    lines = ["| variant | " + " | ".join(plan.metrics) + " |", "|---|" + "---:|" * len(plan.metrics)]
    for variant in plan.variants:
        cells = [_cell(row, is_first=variant == next(iter(plan.variants))) for row in rows if row.variant == variant]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_csv(rows: list[AblationRow], plan: AblationPlan, path: Path) -> None:
    """A line for each variant, metric and seed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "metric", "seed", "value", "difference"])
        for row in rows:
            for seed, value, difference in zip(plan.seeds, row.values, row.differences, strict=True):
                writer.writerow([row.variant, row.metric, seed, value, difference])


def _cell(row: AblationRow, *, is_first: bool) -> str:
    shown = _mean_and_spread(row.values, signed=False, error=False)
    return shown if is_first else f"{shown} ({_mean_and_spread(row.differences, signed=True, error=True)})"


def _mean_and_spread(values: tuple[float, ...], *, signed: bool, error: bool) -> str:
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.3f}"
    if len(values) < 2:
        return mean
    spread = statistics.stdev(values) / (len(values) ** 0.5 if error else 1.0)
    return f"{mean} ± {spread:.3f}"


def _is_done(plan: AblationPlan, out: Path, variant: str, seed: int) -> bool:
    """Whether a run is complete, by the settings of this plan."""
    if not _metrics_file(out, variant, seed).is_file():
        return False
    try:
        made_with = json.loads(_commands_file(out, variant, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made_with = None
    if made_with != _commands(plan, out, variant, seed):
        raise ConfigError(
            f"{_run_folder(out, variant, seed)}: holds a run with other settings than the plan's; remove it, or give "
            "the plan another folder (--out)"
        )
    return True


def _run(plan: AblationPlan, out: Path, variant: str, seed: int) -> tuple[str, int]:
    folder = _run_folder(out, variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // plan.jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    commands = _commands(plan, out, variant, seed)
    _commands_file(out, variant, seed).write_text(json.dumps(commands, indent=1), encoding="utf-8")
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "spanbox", *command], stdout=output, stderr=subprocess.STDOUT, env=environment
            )
            if done.returncode:
                raise TrainingError(f"{variant}, seed {seed}: `spanbox {command[0]}` failed, see {folder}/output.txt")
    return variant, seed


def _commands(plan: AblationPlan, out: Path, variant: str, seed: int) -> list[list[str]]:
    """What makes a run, as arguments of `spanbox`."""
    folder = _run_folder(out, variant, seed)
    return [
        ["train", plan.recipe, *_overrides(plan, variant, seed, folder), "run.overwrite=true"],
        ["evaluate", str(folder), "--data", plan.test],
    ]


def _overrides(plan: AblationPlan, variant: str, seed: int, folder: Path) -> list[str]:
    budget = f"train.steps={plan.steps}" if plan.steps else f"train.minutes={plan.minutes}"
    subset = [f"data.subset={plan.subset}"] if plan.subset else []
    return [*plan.overrides, *subset, budget, *plan.variants[variant], f"seed={seed}", f"run.dir={folder}"]


def _run_folder(out: Path, variant: str, seed: int) -> Path:
    return out / f"{variant}-{seed}"


def _commands_file(out: Path, variant: str, seed: int) -> Path:
    return _run_folder(out, variant, seed) / "commands.json"


def _metrics_file(out: Path, variant: str, seed: int) -> Path:
    return _run_folder(out, variant, seed) / "metrics.json"


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        known = ", ".join(key for key, value in metrics.items() if isinstance(value, float))
        raise ConfigError(f"metrics: {name!r} is none of what the runs measured; known: {known}")
    return metrics[name]


def _headline(plan: AblationPlan, out: Path, variant: str, seed: int) -> str:
    metrics = json.loads(_metrics_file(out, variant, seed).read_text(encoding="utf-8"))
    return "  ".join(f"{name} {_value(metrics, name):.3f}" for name in plan.metrics)
