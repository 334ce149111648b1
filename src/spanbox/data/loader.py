"""Loaders: batches for training in the order of the sampler, and for evaluation in the order of the manifest."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from multiprocessing.queues import Queue
from threading import current_thread, main_thread
from types import TracebackType
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset

from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_image import Aspect
from spanbox.data.collate import Collated
from spanbox.data.dataset import PairDataset
from spanbox.data.manifest import InvertedBoxes
from spanbox.data.masking import MaskSettings
from spanbox.data.neighbours import MiningSettings
from spanbox.data.sampler import Key, StepSampler
from spanbox.errors import DataError, SpanboxError
from spanbox.processes import available_cores, end_with_parent
from spanbox.settings import MOST_GB, PathText, Settings
from spanbox.structures import Batch, Incident, Sample

Collate = Callable[[Sequence[Sample]], Collated]

PARTS_PER_PAIR = 16
"""Spans or regions of a pair in evaluation, padding included, up to which a batch keeps its full size."""


class DataSettings(Settings):
    train: PathText | None = Field(None, description="manifest to train on; paths are relative to the working folder")
    val: PathText | None = Field(None, description="manifest to validate on and to choose the best checkpoint by")
    subset: int | None = Field(None, ge=2, description="train on this many pairs, spread evenly over the manifest")
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        "auto",
        description="loader processes; 0: load in the training process; auto: 0 on a CPU, where they would compete "
        "with the towers, else the number of cores minus one, at most 8",
    )
    cache_gb: float = Field(
        0.0, ge=0, le=MOST_GB, description="cache of decoded samples per loader process; useful if the whole set fits"
    )
    aspect: Aspect = Field(
        "squash",
        description="squash: an image is stretched to the square of the vision tower; pad: it keeps its aspect ratio, "
        "and the rest of the square is padding, which is ignored everywhere (docs/augmentation.md)",
    )
    max_tokens: int = Field(64, ge=4, description="longer sentences are truncated")
    max_spans: int = Field(
        16, ge=0, description="maximum number of spans per sentence, those with boxes first; 0: coarse level only"
    )
    max_regions: int = Field(16, ge=0, description="maximum number of regions per image")
    ambiguous: Literal["use", "skip"] = Field(
        "use",
        description="entities marked ambiguous, with several possible boxes: use (each box is a positive) or skip (not "
        "used in training)",
    )
    proposals: int = Field(
        0, ge=0, description="number of detector proposals per image used as further regions, as negatives"
    )
    views: MaskSettings = Field(MaskSettings(), description="masked views of each image, drawn during training")
    augment: AugmentSettings = Field(AugmentSettings(), description="random changes of images and texts in training")
    inverted_boxes: InvertedBoxes = Field(
        "error", description="boxes without an area: refuse the manifest, or drop them"
    )
    neighbours: PathText | None = Field(
        None, description="file of hard neighbours from `spanbox data mine`; null: random batches"
    )
    mining: MiningSettings = Field(MiningSettings(), description="mining of hard neighbours during training")
    hard_share: float = Field(
        0.5, ge=0, lt=1, description="share of a batch drawn from the hard neighbours of its other pairs"
    )
    broken_limit: float = Field(0.01, ge=0, le=1, description="maximum share of broken images")

    def worker_count(self, device: torch.device) -> int:
        if self.workers == "auto":
            return 0 if device.type == "cpu" else min(8, available_cores() - 1)
        return self.workers


def training_batches(
    dataset: Dataset[Any], collator: Collate, sampler: StepSampler, workers: int, *, pin_memory: bool
) -> Iterator[Any]:
    """Batches (`Collated`) of the sampler's steps. Closing the iterator ends its workers.

    Raises:
        DataError: while iterating; a pair cannot be read.
    """
    return _batches(dataset, collator, sampler, workers, pin_memory=pin_memory)


def evaluation_batches(
    dataset: PairDataset, collator: Collate, batch_size: int, workers: int, incidents: list[Incident]
) -> Iterator[Batch]:
    """Every pair of a manifest once, in its order; pairs with a broken image are left out.

    Pairs with many spans or regions come in smaller batches, since a batch is padded to its largest pair: so memory is
    bounded where nothing limits the regions of a pair. Incidents are added to `incidents`. Closing the iterator ends
    its workers.

    Raises:
        DataError: while iterating; a pair cannot be read.
    """
    keys = list(_batches_by_size(dataset, batch_size))
    with closing(_batches(dataset, partial(_collate_readable, collator), keys, workers)) as batches:
        for batch, found in batches:
            incidents.extend(found)
            if batch is not None:
                yield batch


def _batches_by_size(dataset: PairDataset, batch_size: int) -> Iterator[list[Key]]:
    """Consecutive pairs, at most `batch_size`, that have at most `PARTS_PER_PAIR * batch_size` spans, and as many
    regions, when padded to the largest; at least one pair."""
    batch: list[Key] = []
    largest = 0
    for index in range(len(dataset)):
        parts = max(largest, dataset.most_parts(index))
        if batch and (len(batch) == batch_size or (len(batch) + 1) * parts > PARTS_PER_PAIR * batch_size):
            yield batch
            batch, parts = [], dataset.most_parts(index)
        batch.append((0, index))
        largest = parts
    if batch:
        yield batch


def _collate_readable(collator: Collate, items: Sequence[Sample | Incident]) -> tuple[Batch | None, list[Incident]]:
    broken = [item for item in items if isinstance(item, Incident)]
    samples = [item for item in items if isinstance(item, Sample)]
    if not samples:
        return None, broken
    loaded = collator(samples)
    return loaded.batch, broken + loaded.incidents


def _batches(
    dataset: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    keys: Iterable[list[Key]],
    workers: int,
    *,
    pin_memory: bool = False,
) -> Generator[Any, None, None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
        loader = DataLoader(
            _Reporting(dataset),
            batch_sampler=keys,
            collate_fn=partial(_collate_unless_failed, collate),
            num_workers=workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own, so that making a loader draws nothing from the run's random state
            worker_init_fn=partial(_set_up_worker, os.getpid()),
        )
        batches = iter(loader)
    if workers and current_thread() is main_thread() and hasattr(signal, "SIGCHLD"):
        # PyTorch's handler raises the death of a worker anywhere, also in the middle of a message about it. Waiting for
        # the next batch finds it as well, within seconds.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        with _explained_worker_failures() if workers else nullcontext():
            batch = next(batches, None)
        if isinstance(batch, SpanboxError):
            raise batch
        if batch is None:
            return
        yield batch


@contextmanager
def _explained_worker_failures() -> Iterator[None]:
    """Context for waiting for a batch. Raises DataError when a worker was killed."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that loads data ended unexpectedly ({str(error).strip()}); if the machine is short of memory, "
            "lower data.workers or data.cache_gb"
        ) from None


class _Reporting(Dataset[Any]):
    """A data set whose errors that a user can fix are returned: raised in a worker, they would become tracebacks."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: Sequence[Key]) -> list[Any] | SpanboxError:
        try:
            return [self.dataset[key] for key in keys]
        except SpanboxError as error:
            return error


def _collate_unless_failed(collate: Callable[[Sequence[Any]], Any], items: list[Any] | SpanboxError) -> Any:
    if isinstance(items, SpanboxError):
        return items
    try:
        return collate(items)
    except SpanboxError as error:
        return error


def _set_up_worker(parent: int, worker: int) -> None:
    """Make a worker end with the process that it loads for, and with nothing else.

    A Ctrl-C or SIGTERM to the process group is for the training process, which ends its workers when it is done with
    them. So they leave its group, and Linux kills them when it dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    end_with_parent(parent)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    sys.excepthook = _report_unless_disconnected
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_worker(error: Exception, batch: object) -> NoReturn:
    """End a worker that cannot hand over a batch, for which the training process would wait for ever."""
    print(f"a batch cannot be handed over ({error}); is shared memory (/dev/shm) full?", file=sys.stderr, flush=True)
    os._exit(1)


def _report_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of the thread that hands over tensors, but not a connection that its parent's death closed."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
