"""The log of a run: one JSON object per line, `step` first, so that any tool can plot it; trackers get the same."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from spanbox.engine.trackers import TrackerName, Trackers
from spanbox.errors import TrainingError
from spanbox.files import explained, replacing
from spanbox.structures import Incident, stable_id


class RunLog:
    """The log of a run: `log.jsonl`, and the trackers that its config names. Use as a context.

    Args:
        folder: of the run.
        resume_step: the step that the run goes on from; 0 for a new one.
        track: the trackers.
        config_yaml: for the trackers to show.
    """

    def __init__(
        self, folder: Path, resume_step: int, track: Iterable[TrackerName] = (), config_yaml: str = ""
    ) -> None:
        self._json = JsonLog(folder / "log.jsonl", resume_step)
        self._trackers = Trackers(track, folder, resume_step, config_yaml, self._json.lines())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trackers.close()

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """A line of the log, and a point of each curve."""
        self._json.write(step, kind, values)
        self._trackers.write(step, kind, values)


class JsonLog:
    """`log.jsonl` of a run folder. A resumed run drops the lines after the step that it resumes from.

    A line that cannot be read stays where it is: it is not ours to judge. A last one without a line end, which a crash
    cut off, is dropped, since the next line would be appended to it.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        with replacing(path) as file:  # so that a crash meanwhile leaves the old log
            for raw, line in _lines(path) if resume_step else ():
                if line is None or line["step"] <= resume_step:
                    file.write(raw)

    def lines(self) -> Iterable[dict[str, Any]]:
        """The readable lines."""
        return (line for _, line in _lines(self.path) if line is not None)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        line = json.dumps({"step": step, "kind": kind, **values}, ensure_ascii=False)
        # Characters that other tools take for line ends, and lone surrogates, are escaped as JSON does it.
        safe = line.translate(LINE_ENDS).encode("utf-8", errors="backslashreplace")
        with explained(self.path), self.path.open("ab") as file:
            file.write(safe + b"\n")


LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\u0085\u2028\u2029"}
"""Line ends to `str.splitlines` that JSON leaves as they are."""


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The complete lines of a log, each with its content; None for a damaged line."""
    if not path.is_file():
        return
    with explained(path), path.open("rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                yield raw, _parsed(raw)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int and "kind" in line else None


class IncidentTally:
    """Counts the incidents in the data, and stops a run in which too many images are broken.

    Args:
        size: pairs in the training set.
        broken_limit: largest share of them whose image may be broken.
    """

    EXAMPLES = 20

    def __init__(self, size: int, broken_limit: float) -> None:
        self.allowed = math.floor(size * broken_limit + 1e-9)  # 0.29 * 100 is 28.999...
        self.broken_limit = broken_limit
        self._samples: dict[str, set[int]] = {}  # hashes of the samples' ids, by kind of incident
        self._broken: dict[str, str] = {}  # the broken ones, with the reason
        self._examples: dict[str, str] = {}  # the first of each kind

    def add(self, incidents: Iterable[Incident]) -> None:
        """Count incidents, each kind once a sample.

        Raises:
            TrainingError: more images are broken than is allowed, with a list of them.
        """
        for incident in incidents:
            self._samples.setdefault(incident.kind, set()).add(stable_id(incident.sample))
            self._examples.setdefault(incident.kind, f"{incident.sample}: {incident.detail}")
            if incident.kind == "broken image":
                self._broken[incident.sample] = incident.detail
        if len(self._broken) > self.allowed:
            examples = list(self._broken.items())[: self.EXAMPLES]
            listed = "\n".join(f"  {sample}: {detail}" for sample, detail in examples)
            raise TrainingError(
                f"{len(self._broken)} images cannot be read, more than data.broken_limit={self.broken_limit:g} allows "
                f"({self.allowed}):\n{listed}\nFix or remove them (`spanbox data check` lists all), or raise it."
            )

    def counts(self) -> dict[str, int]:
        """Number of samples so far with each kind of incident."""
        return {kind: len(samples) for kind, samples in self._samples.items()}

    def summary(self) -> dict[str, tuple[int, str]]:
        """Of each kind of incident the number of samples and an example."""
        return {kind: (count, self._examples.get(kind, "")) for kind, count in self.counts().items()}

    def state(self) -> dict[str, Any]:
        """The state from which a resumed run continues counting."""
        samples = {kind: torch.tensor(sorted(ids), dtype=torch.int64) for kind, ids in self._samples.items()}
        return {"samples": samples, "broken": self._broken, "examples": self._examples}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state()`."""
        self._samples = {kind: set(ids.tolist()) for kind, ids in state["samples"].items()}
        self._broken = dict(state["broken"])
        self._examples = dict(state.get("examples", {}))  # missing in older checkpoints
