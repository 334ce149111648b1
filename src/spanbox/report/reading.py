"""The files of a run folder as plain dataclasses: the first step from a run to its report.

A run may still be going, may come from an older version, or may have been cut off in the middle of a line. So every
file may be absent, and a damaged one counts as absent and is named in `Run.problems`.

A run may also come from a stranger. So files are read within limits (see `documents`, and the sizes below), numbers up
to LARGEST, and text without control characters and lone surrogates.
"""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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

MIB = 2**20
SIZES = {
    "environment.json": MIB,
    "metrics.json": 8 * MIB,
    "log.jsonl": LOG_SIZE,
    "evaluation/examples.json": 32 * MIB,
    "evaluation/audit.json": MIB,
    "evaluation/outcomes.npz": 128 * MIB,
    "evaluation/heatmaps.npz": 64 * MIB,
    ABLATION_FILE: 16 * MIB,
}
"""Largest sizes of the files that are read, in bytes; of archives, the size of their arrays."""
LARGEST = 1e15
LOG_LINES = 20_000
"""Lines of the log that are kept of each kind; of more, every second, fourth, ... line, and always the last."""
LONGEST_LINE = MIB
LONGEST_NAME = 300
"""Characters of the name of a metric."""
MOST_ROWS = 50_000
"""Rows of an ablation's table, one for each variant, seed and metric."""
MOST_PARTS = 200
"""Variants of an ablation's table, and metrics."""
HEATMAP_SIDE = 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Outcomes:
    """The value of each query, for one metric that is a mean over queries."""

    values: NDArray[np.float64]  # (Q,)
    image: NDArray[np.int64]  # (Q,) hash of the query's image


@dataclass(frozen=True)
class Run:
    """The content of a run folder."""

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    training: tuple[dict[str, Any], ...] = ()  # lines of the log
    validation: tuple[dict[str, Any], ...] = ()
    stopped_early: bool = False  # its patience was used up
    checkpoint: str = ""  # the one that was evaluated
    data: str = ""  # manifest of the evaluation
    fingerprint: str = ""  # of its content
    metrics: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    examples: Examples | None = None
    heatmaps: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # (g, g) in [0, 1]
    audit: dict[str, dict[str, float]] = field(default_factory=dict)  # by the manifest's part: train, val, test
    environment: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # files that exist and cannot be read

    @property
    def step(self) -> int:
        """The last step of the log, 0 without one."""
        return int(max((line["step"] for line in self.training), default=0))

    @property
    def seconds(self) -> float:
        """Seconds of training, from the last line of the log."""
        return float(self.training[-1].get("seconds", 0.0)) if self.training else 0.0

    @property
    def steps_set(self) -> int | None:
        """Steps that the config sets."""
        return None if (steps := self._setting("steps")) is None else int(steps)

    @property
    def minutes_set(self) -> float | None:
        """Minutes that the config sets in place of steps."""
        return self._setting("minutes") or None

    @property
    def is_finished(self) -> bool:
        """Whether the log reaches the end that the config sets, or stopped early; True where no end is set."""
        if self.stopped_early:
            return True
        if self.minutes_set is not None:
            return self.seconds >= 60 * self.minutes_set
        return self.steps_set is None or self.step >= self.steps_set

    @property
    def is_gmner(self) -> bool:
        """Whether the run trained a GMNER model, which `spanbox gmner score` measures."""
        best = self._train("best_metric")
        return isinstance(best, str) and best.startswith(("gmner.", "mner.", "eeg."))

    def _setting(self, key: str) -> float | None:
        value = self._train(key)
        return float(value) if isinstance(value, int | float) and _is_number(value) else None

    def _train(self, key: str) -> Any:
        settings = self.config.get("train")
        return settings.get(key) if isinstance(settings, dict) else None


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
        return self._by_names.get((variant, metric))

    @cached_property
    def _by_names(self) -> dict[tuple[str, str], AblationRow]:
        return {(row.variant, row.metric): row for row in self.rows}


def read_folders(folders: Sequence[Path]) -> tuple[list[Run], list[Ablation]]:
    """Read the folders of runs and ablations, in their order.

    Raises:
        CheckpointError: one is neither.
    """
    check_folders(folders)
    runs, ablations = [], []
    for folder, name in zip(folders, _names(folders), strict=True):
        if _is_run(folder):
            runs.append(read_run(folder, name))
        else:
            ablations.append(read_ablation(folder, name))
    return runs, ablations


def check_folders(folders: Sequence[Path]) -> None:
    """Check that each folder is a run or an ablation. Raises CheckpointError."""
    for folder in folders:
        if not _is_run(folder) and not _is_file(folder / ABLATION_FILE):
            found = "no such folder" if not folder.is_dir() else f"none of {', '.join(RUN_FILES)} is in it"
            raise CheckpointError(f"{folder}: no run: {found}; give a folder that `spanbox train` or `ablate` wrote")


def _is_run(folder: Path) -> bool:
    return any(_is_file(folder / file) for file in RUN_FILES)


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run folder; parts whose files are absent or damaged stay empty."""
    read = _Reader(folder)
    lines: dict[str, list[dict[str, Any]]] = read("log.jsonl", _read_log, {})
    measured: dict[str, Any] = read("metrics.json", _read_object, {})
    return Run(
        name=_printable(name or _names([folder])[0]),
        folder=folder,
        config=read("config.yaml", _read_yaml, {}),
        training=tuple(lines.get("train", ())),
        validation=tuple(lines.get("validation", ())),
        stopped_early=_stopped_early(lines),
        checkpoint=str(measured.get("checkpoint", "")),
        data=str(measured.get("data", "")),
        fingerprint=str(measured.get("fingerprint", "")),
        metrics={
            key: float(value) for key, value in measured.items() if _is_number(value) and len(key) <= LONGEST_NAME
        },
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
        for row in csv.DictReader(io.StringIO(read_text(path, SIZES[ABLATION_FILE]), newline="")):
            pair = float(row["value"]), float(row["difference"])
            if not all(map(_is_number, pair)):
                raise ValueError(f"{pair} are not plain numbers")
            values.setdefault((_printable(row["variant"]), _printable(row["metric"])), []).append(pair)
        if not values:
            raise ValueError("it has no row")
        rows = sum(map(len, values.values()))
        if rows > MOST_ROWS or any(len({key[part] for key in values}) > MOST_PARTS for part in (0, 1)):
            raise ValueError(f"{rows} rows; at most {MOST_ROWS}, of {MOST_PARTS} variants and metrics, are read")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        reason = _reason(error)
        raise CheckpointError(f"{path}: no table of an ablation ({reason}); run `spanbox ablate` again") from None
    rows_of = tuple(AblationRow(*key, *zip(*pairs, strict=True)) for key, pairs in values.items())
    return Ablation(_printable(name or _names([folder])[0]), folder, rows_of)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; the whole paths where two have the same name."""
    names = [folder.name or folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


class _Reader:
    """Reads files of one folder and collects the problems."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def __call__(self, name: str, parse: Callable[[Path, str], T], absent: T) -> T:
        path = self.folder / name
        if not _is_file(path):
            return absent
        try:
            return parse(path, name)
        except (OSError, ValueError, KeyError) as error:
            self.problems.append(f"{name}: {_reason(error)}")
            return absent


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no rights, or a path that the system refuses
        return False


def _reason(error: Exception) -> str:
    return _printable(" ".join(str(error).split())[:LONGEST_NAME])


def _plain(value: Any) -> Any:
    """A tree of JSON or YAML, with numbers and text that a page can show."""
    if isinstance(value, dict):
        return {_printable(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, bool | float | None) or (isinstance(value, int) and abs(value) <= LARGEST):
        return value
    return _printable(str(value))


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def _printable(text: str) -> str:
    """The text with a replacement character for each one that HTML and XML do not allow."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _read_log(path: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """The complete lines by their kind; a last one that is being written, or was cut off, is left out."""
    if path.stat().st_size > SIZES[name]:
        raise ValueError(f"the file has more than {SIZES[name] // MIB} MiB, the limit for it")
    lines: dict[str, list[dict[str, Any]]] = {}
    every: dict[str, int] = {}
    count: dict[str, int] = {}
    last: dict[str, dict[str, Any]] = {}
    with path.open("rb") as file:
        while content := file.readline(LONGEST_LINE):
            line = _log_line(content)
            if line is None:
                continue
            kind = line["kind"]
            last[kind] = line
            if count.setdefault(kind, 0) % every.setdefault(kind, 1) == 0:
                lines.setdefault(kind, []).append(line)
                if len(lines[kind]) >= LOG_LINES:
                    lines[kind], every[kind] = lines[kind][::2], 2 * every[kind]
            count[kind] += 1
    for kind, line in last.items():
        if lines[kind][-1] is not line:
            lines[kind].append(line)
    return lines


def _stopped_early(lines: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether the run ended by its patience, and did not go on with a larger one."""
    last = {kind: of_kind[-1]["step"] for kind, of_kind in lines.items()}
    return "early stop" in last and last["early stop"] >= last.get("train", 0)


def _log_line(content: bytes) -> dict[str, Any] | None:
    """The numbers of a line and its incidents, or None for one that is damaged or of another kind."""
    try:
        values = _plain(parse_json(content.decode(errors="replace")))
    except DocumentError:
        return None
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in ("train", "validation", "early stop") or not _is_number(values.get("step")):
        return None
    found: dict[str, Any] = {key: value for key, value in values.items() if _is_number(value)}
    incidents = values.get("incidents")
    counts = incidents.items() if isinstance(incidents, dict) else ()
    return found | {"kind": kind, "incidents": {key: value for key, value in counts if _is_number(value)}}


def _read_object(path: Path, name: str) -> dict[str, Any]:
    content = _plain(read_json(path, SIZES[name]))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _read_audit(path: Path, name: str) -> dict[str, dict[str, float]]:
    parts = msgspec.convert(_read_object(path, name), dict[str, dict[str, float]])
    if not all(_is_number(number) for part in parts.values() for number in part.values()):
        raise ValueError("not all counts are plain numbers")
    return parts


def _read_yaml(path: Path, name: str) -> dict[str, Any]:
    content = _plain(read_yaml(path))
    if not isinstance(content, dict):
        raise ValueError("no mapping of keys")
    return content


def _read_examples(path: Path, name: str) -> Examples:
    # Not msgspec's own decoder: a score may be NaN, which only the standard library reads.
    return msgspec.convert(_read_object(path, name), Examples)


def _read_heatmaps(path: Path, name: str) -> dict[str, NDArray[np.float32]]:
    maps = read_archive(path, SIZES[name])
    for key, heat in maps.items():
        if heat.ndim != 2 or heat.dtype != np.float32 or not 0 < max(heat.shape) <= HEATMAP_SIDE or not heat.size:
            raise ValueError(f"{key} is {heat.dtype} of shape {heat.shape}, expected a grid of float32")
        if ((heat < 0) | (heat > 1)).any():  # NaN is drawn as 0
            raise ValueError(f"{key} has values outside of [0, 1]")
    return maps


def _read_outcomes(path: Path, name: str) -> dict[str, Outcomes]:
    arrays = read_archive(path, SIZES[name])
    names = [key.removesuffix("/values") for key in arrays if key.endswith("/values")]
    return {key: _outcomes_of(key, arrays[f"{key}/values"], arrays.get(f"{key}/image")) for key in names}


def _outcomes_of(name: str, values: NDArray[Any], image: NDArray[Any] | None) -> Outcomes:
    if values.ndim != 1 or values.dtype.kind not in "biuf" or image is None or image.dtype != np.int64:
        raise ValueError(f"{name} needs one number per query, and the hash of its image")
    values = values.astype(np.float64)
    if image.shape != values.shape or not (np.abs(values) <= LARGEST).all():
        raise ValueError(f"{name} has {values.shape} values for {image.shape} images, or a value that is not finite")
    return Outcomes(values, image)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
