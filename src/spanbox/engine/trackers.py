"""Trackers: TensorBoard, Weights & Biases and Trackio plot the numbers of `log.jsonl`.

All work without a network: TensorBoard and Trackio write to the disk, and so does W&B unless WANDB_MODE is "online".
Tracker errors are printed once and disable the tracker; they never end the training.

A resumed run continues its curves. `trackers.json` in the run folder holds, for each tracker, the id of the run and the
last step written of each curve. Missing lines are written later, also to a tracker that is added to a resumed run.
Lines that cannot be removed from a tracker are not written again.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol
from uuid import uuid4

from spanbox.documents import parse_yaml
from spanbox.errors import ConfigError
from spanbox.files import write_text

TrackerName = Literal["tensorboard", "wandb", "trackio"]

LEDGER = "trackers.json"

CURVES = ("train", "validation")
"""Kinds of log lines that are plotted."""


@dataclass(frozen=True)
class TrackedRun:
    """The properties of a run that a tracker needs."""

    folder: Path
    id: str  # of the run in the tracker, the same when it is resumed
    resume_step: int  # 0 for a new run
    config_yaml: str

    @property
    def project(self) -> str:
        """The name of the parent folder: runs in one folder are one project."""
        return self.folder.resolve().parent.name or "spanbox"

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def config(self) -> dict[str, Any]:
        return parse_yaml(self.config_yaml) or {}


class Tracker(Protocol):
    """Interface of a tracker. Its methods may raise any exception."""

    takes_back: ClassVar[bool]  # whether a resumed run can hide the lines after its first step

    def __init__(self, run: TrackedRun) -> None: ...
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """TensorBoard event files, in `tensorboard/` of the run folder."""

    takes_back: ClassVar[bool] = True

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = run.resume_step + 1 if run.resume_step else None
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge_step)
        self._writer.add_text("config", f"```yaml\n{run.config_yaml}```", run.resume_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases, in `wandb/` of the run folder; offline unless WANDB_MODE is "online"."""

    takes_back: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        online = mode == "online"
        if not online:  # its error reports would use the network even offline
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            dir=str(run.folder),
            config=run.config,
            allow_val_change=True,
            mode=mode,
            resume="allow" if online else None,
            reinit="create_new",  # keep a run that the user has started
            settings=wandb.Settings(console="off", silent=not online),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Trackio, with one database for all runs: in TRACKIO_DIR, or in its cache folder."""

    takes_back: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=run.project,
                name=f"{run.name}-{run.id}",  # trackio identifies runs by name, and folder names repeat
                config=run.config,
                resume="allow",
                embed=False,
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()


TRACKERS: dict[TrackerName, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def check_installed(names: Iterable[TrackerName]) -> None:
    """Check before training that the packages of the trackers are installed.

    Raises:
        ConfigError: a package is missing.
    """
    for name in names:
        if find_spec(name) is None:
            remedy = f"run `pip install 'spanbox[{name}]'`, or remove it"
            raise ConfigError(f"train.track: {name} is not installed; {remedy}")


class Trackers:
    """The trackers of a run, used on its main rank only.

    Args:
        lines: log lines up to the resume step; each tracker gets those that it lacks.
    """

    def __init__(
        self,
        names: Iterable[TrackerName],
        folder: Path,
        resume_step: int,
        config_yaml: str,
        lines: Iterable[Mapping[str, Any]],
    ) -> None:
        self._ledger_path = folder / LEDGER
        self._ledger = _read_ledger(self._ledger_path) if resume_step else {}
        self._active: dict[TrackerName, Tracker] = {}
        for name in dict.fromkeys(names):
            entry = self._ledger.setdefault(name, {"id": uuid4().hex[:8], "sent": {}})
            if TRACKERS[name].takes_back:
                entry["sent"] = {kind: min(step, resume_step) for kind, step in entry["sent"].items()}
            run = TrackedRun(folder, entry["id"], resume_step, config_yaml)
            self._attempt(name, partial(self._start, name, run))
        for line in lines if self._active else ():
            self.write(line["step"], line["kind"], line)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Send the numbers of a log line to every tracker, as `kind/name`, if the line belongs to a curve."""
        if kind not in CURVES:
            return
        numbers = _numbers(kind, values)
        for name, tracker in list(self._active.items()):
            sent = self._ledger[name]["sent"]
            if step > sent.get(kind, 0):
                self._attempt(name, partial(tracker.write, step, numbers))
                if name in self._active:
                    sent[kind] = step
        if self._active:
            write_text(self._ledger_path, json.dumps(self._ledger))

    def close(self) -> None:
        for name, tracker in list(self._active.items()):
            self._attempt(name, tracker.close)
        self._active.clear()

    def _start(self, name: TrackerName, run: TrackedRun) -> None:
        self._active[name] = TRACKERS[name](run)

    def _attempt(self, name: TrackerName, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # an error of a tracker must not end the training
            self._active.pop(name, None)
            print(
                f"{name} failed ({type(error).__name__}: {error}); training continues without it, "
                "log.jsonl is complete",
                file=sys.stderr,
            )


def _numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= _numbers(f"{kind}/{name}", value)
        elif isinstance(value, int | float) and name != "step":
            numbers[f"{kind}/{name}"] = value
    return numbers


def _read_ledger(path: Path) -> dict[str, Any]:
    """The ledger without entries that are damaged; empty where there is none."""
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: entry for name, entry in ledger.items() if _is_entry(entry)} if isinstance(ledger, dict) else {}


def _is_entry(entry: Any) -> bool:
    if not (isinstance(entry, dict) and isinstance(entry.get("id"), str) and isinstance(entry.get("sent"), dict)):
        return False
    return all(type(step) is int for step in entry["sent"].values())
