"""The files of a run folder as plain dataclasses: the first step from a run to its report.

A run may still be going, may come from an older version, or may have been cut off in the middle of a line. So every
file may be absent, and a damaged one counts as absent and is named in `Run.problems`.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from spanbox.arrays import read_archive
from spanbox.documents import LOG_SIZE, DocumentError, parse_json, read_json, read_text, read_yaml
from spanbox.errors import CheckpointError
from spanbox.report.examples import Examples

RUN_FILES = ("config.yaml", "log.jsonl", "metrics.json")
ABLATION_FILE = "table.csv"
LARGEST = 1e30  # number of a log or a file of metrics; axes and sums overflow far above it
LARGEST_MAP = 1024  # side of a heatmap, in patches

T = TypeVar("T")


@dataclass(frozen=True)
class Outcomes:
    """What each query scored, for one metric that is a mean over queries."""

    values: NDArray[np.float64]  # (Q,)
    image: NDArray[np.int64]  # (Q,) hash of the query's image


@dataclass(frozen=True)
class Run:
    """All that a run folder tells."""

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    training: tuple[dict[str, Any], ...] = ()  # lines of the log
    validation: tuple[dict[str, Any], ...] = ()
    stopped_early: bool = False  # its patience was used up
    checkpoint: str = ""  # that `metrics` were measured on
    data: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    examples: Examples | None = None
    heatmaps: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # (g, g) in [0, 1]
    audit: dict[str, dict[str, float]] = field(default_factory=dict)  # by the manifest's part: train, val, test
    environment: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # files that are there and cannot be read

    @property
    def step(self) -> int:
        """The last step of the log, 0 without one."""
        return max((line["step"] for line in self.training), default=0)

    @property
    def seconds(self) -> float:
        """Of training, as the log says last."""
        return float(self.training[-1].get("seconds", 0.0)) if self.training else 0.0

    @property
    def is_finished(self) -> bool:
        """Whether the log reaches the end that the config sets, or stopped early; True where no end is set."""
        settings = self.config.get("train")
        if self.stopped_early or not isinstance(settings, dict):
            return True
        if _is_number(settings.get("minutes")):
            return self.seconds >= 60 * float(settings["minutes"])
        return self.step >= int(settings["steps"]) if _is_number(settings.get("steps")) else True


@dataclass(frozen=True)
class AblationRow:
    """A variant's figures of one metric: a value for each seed, and the differences to the first variant's."""

    variant: str
    metric: str
    values: tuple[float, ...]
    differences: tuple[float, ...]  # paired by seed


@dataclass(frozen=True)
class Ablation:
    """The table of an ablation's folder."""

    name: str
    folder: Path
    rows: tuple[AblationRow, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.variant for row in self.rows))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    def row(self, variant: str, metric: str) -> AblationRow | None:
        return next((row for row in self.rows if (row.variant, row.metric) == (variant, metric)), None)


def read_folders(folders: Sequence[Path]) -> tuple[list[Run], list[Ablation]]:
    """Read the folders of runs and ablations, in their order.

    Raises:
        CheckpointError: one is neither.
    """
    runs, ablations = [], []
    for folder, name in zip(folders, _names(folders), strict=True):
        if any((folder / file).is_file() for file in RUN_FILES):
            runs.append(read_run(folder, name))
        elif (folder / ABLATION_FILE).is_file():
            ablations.append(read_ablation(folder, name))
        else:
            found = "no such folder" if not folder.is_dir() else f"none of {', '.join(RUN_FILES)} is in it"
            raise CheckpointError(f"{folder}: no run: {found}; give a folder that `spanbox train` or `ablate` wrote")
    return runs, ablations


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run folder; what is absent or damaged stays empty."""
    read = _Reader(folder)
    lines: list[dict[str, Any]] = read("log.jsonl", _read_log, [])
    measured: dict[str, Any] = read("metrics.json", _read_object, {})
    return Run(
        name=name or _names([folder])[0],
        folder=folder,
        config=read("config.yaml", _read_yaml, {}),
        training=tuple(line for line in lines if line.get("kind") == "train"),
        validation=tuple(line for line in lines if line.get("kind") == "validation"),
        stopped_early=any(line.get("kind") == "early stop" for line in lines),
        checkpoint=str(measured.get("checkpoint", "")),
        data=str(measured.get("data", "")),
        metrics={key: float(value) for key, value in measured.items() if _is_number(value)},
        outcomes=read("evaluation/outcomes.npz", _read_outcomes, {}),
        examples=read("evaluation/examples.json", _read_examples, None),
        heatmaps=read("evaluation/heatmaps.npz", _read_heatmaps, {}),
        audit=read("evaluation/audit.json", _read_audit, {}),
        environment=read("environment.json", _read_object, {}),
        problems=tuple(read.problems),
    )


def read_ablation(folder: Path, name: str | None = None) -> Ablation:
    """Read an ablation's table.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / ABLATION_FILE
    values: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                pair = float(row["value"]), float(row["difference"])
                values.setdefault((row["variant"], row["metric"]), []).append(pair)
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path}: no table of an ablation ({error}); run `spanbox ablate` again") from None
    rows = tuple(AblationRow(*key, *zip(*pairs, strict=True)) for key, pairs in values.items())
    return Ablation(name or _names([folder])[0], folder, rows)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; the whole paths where two have the same name."""
    names = [folder.name or folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


class _Reader:
    """Reads files of one folder and collects what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def __call__(self, name: str, parse: Callable[[Path], T], absent: T) -> T:
        path = self.folder / name
        if not path.is_file():
            return absent
        try:
            return parse(path)
        except (OSError, ValueError) as error:
            self.problems.append(f"{name}: {error}")
            return absent


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines; a last one that is being written, or was cut off, is left out."""
    lines = []
    for line in read_text(path, LOG_SIZE, errors="replace").split("\n"):  # a name may hold other ends of a line
        try:
            values = parse_json(line)
        except DocumentError:
            continue
        if isinstance(values, dict) and _is_number(values.get("step")):
            lines.append({key: value for key, value in values.items() if _is_logged(key, value)})
    return lines


def _is_logged(key: str, value: object) -> bool:
    """Whether a value of the log is of the type that the trainer writes."""
    if key == "kind":
        return isinstance(value, str)
    if key == "incidents":
        return isinstance(value, dict) and all(map(_is_number, value.values()))
    return _is_number(value)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _read_audit(path: Path) -> dict[str, dict[str, float]]:
    return msgspec.convert(_read_object(path), dict[str, dict[str, float]])


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError("no mapping of keys")
    return content


def _read_examples(path: Path) -> Examples:
    # Not msgspec's own decoder: a score may be NaN, which only the standard library reads.
    return msgspec.convert(_read_object(path), Examples)


def _read_heatmaps(path: Path) -> dict[str, NDArray[np.float32]]:
    arrays = read_archive(path)
    for name, array in arrays.items():
        if array.ndim != 2 or array.dtype.kind != "f" or not 0 < max(array.shape) <= LARGEST_MAP or not array.size:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected a grid of floats")
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"{name} has values outside of [0, 1]")
    return arrays


def _read_outcomes(path: Path) -> dict[str, Outcomes]:
    arrays = read_archive(path)
    names = [key.removesuffix("/values") for key in arrays if key.endswith("/values")]
    return {name: _outcomes_of(name, arrays[f"{name}/values"], arrays.get(f"{name}/image")) for name in names}


def _outcomes_of(name: str, values: NDArray[Any], image: NDArray[Any] | None) -> Outcomes:
    if values.ndim != 1 or values.dtype.kind not in "biuf" or image is None or image.dtype != np.int64:
        raise ValueError(f"{name} needs one number per query, and the hash of its image")
    if image.shape != values.shape or not (np.abs(values.astype(np.float64)) <= LARGEST).all():
        raise ValueError(f"{name} has {values.shape} values for {image.shape} images, or a value that is not finite")
    return Outcomes(values, image)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
