"""The log of a run: one JSON object a line, `step` first, so that any tool can plot it; trackers get the same."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from spanbox.engine.trackers import TrackerName, Trackers
from spanbox.errors import TrainingError
from spanbox.structures import Incident, stable_id


class RunLog:
    """Where a run is written down: `log.jsonl` always, and the trackers that its config names. Use as a context.

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
    """`log.jsonl` of a run folder. A resumed run drops what was logged after the step that it resumes from."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        kept = [line for line in _lines(path) if line["step"] <= resume_step] if resume_step else []
        aside = path.with_name(f".{path.name}.partial")
        aside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
        aside.replace(path)  # so that a crash meanwhile leaves the old log

    def lines(self) -> Iterable[dict[str, Any]]:
        return _lines(self.path)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}, ensure_ascii=False) + "\n")


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """The complete lines of a log; a last one that was cut off by a crash is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class IncidentTally:
    """Counts what was worked around in the data, and stops a run in which too many images are broken.

    Args:
        size: pairs in the training set.
        broken_limit: largest share of them whose image may be broken.
    """

    EXAMPLES = 20

    def __init__(self, size: int, broken_limit: float) -> None:
        self.allowed = math.floor(size * broken_limit)
        self.broken_limit = broken_limit
        self._samples: dict[str, set[int]] = {}  # hashes of the ids met, by kind of incident
        self._broken: dict[str, str] = {}  # the broken ones, with the reason

    def add(self, incidents: Iterable[Incident]) -> None:
        """Count incidents, each kind once a sample.

        Raises:
            TrainingError: more images are broken than is allowed, with a list of them.
        """
        for incident in incidents:
            self._samples.setdefault(incident.kind, set()).add(stable_id(incident.sample))
            if incident.kind == "broken image":
                self._broken[incident.sample] = incident.detail
        if len(self._broken) > self.allowed:
            examples = list(self._broken.items())[: self.EXAMPLES]
            listed = "\n".join(f"  {sample}: {detail}" for sample, detail in examples)
            raise TrainingError(
                f"{len(self._broken)} images cannot be read, more than data.broken_limit={self.broken_limit:g} allows "
                f"({self.allowed}):\n{listed}\nMend or remove them (`spanbox data check` lists all), or raise it."
            )

    def counts(self) -> dict[str, int]:
        """Samples met so far with each kind of incident."""
        return {kind: len(samples) for kind, samples in self._samples.items()}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on counting."""
        samples = {kind: torch.tensor(sorted(ids), dtype=torch.int64) for kind, ids in self._samples.items()}
        return {"samples": samples, "broken": self._broken}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state()` gave."""
        self._samples = {kind: set(ids.tolist()) for kind, ids in state["samples"].items()}
        self._broken = dict(state["broken"])
