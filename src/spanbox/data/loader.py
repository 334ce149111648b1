"""Loaders: batches for training in the order of the sampler, and for evaluation in the order of the manifest."""

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt
from torch.utils.data import DataLoader

from spanbox.data.collate import Collator
from spanbox.data.dataset import PairDataset
from spanbox.data.manifest import InvertedBoxes
from spanbox.data.masking import MaskSettings
from spanbox.data.neighbours import MiningSettings
from spanbox.data.sampler import Key, StepSampler
from spanbox.settings import PathText, Settings
from spanbox.structures import Batch, Incident, Sample

PARTS_PER_PAIR = 16
"""Spans or regions of a pair in evaluation, padding included, up to which a batch keeps its full size."""


class DataSettings(Settings):
    train: PathText | None = Field(None, description="manifest to train on; paths are relative to the working folder")
    val: PathText | None = Field(None, description="manifest to validate on and to choose the best checkpoint by")
    subset: int | None = Field(None, ge=2, description="train on this many pairs, spread evenly over the manifest")
    workers: NonNegativeInt | Literal["auto"] = Field(
        "auto",
        description="loader processes; 0: load in the training process; auto: 0 on a CPU, where they would compete "
        "with the towers, else the number of cores minus one, at most 8",
    )
    cache_gb: float = Field(
        0.0, ge=0, description="cache of decoded samples per loader process; useful if the whole set fits"
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
            return 0 if device.type == "cpu" else min(8, (os.cpu_count() or 1) - 1)
        return self.workers


def training_loader(
    dataset: PairDataset, collator: Collator, sampler: StepSampler, workers: int, *, pin_memory: bool
) -> DataLoader[Sample | Incident]:
    """Batches (`Loaded`) of the sampler's steps."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own, so that making a loader draws nothing from the run's random state
        worker_init_fn=_quiet_worker,
    )


def evaluation_batches(
    dataset: PairDataset, collator: Collator, batch_size: int, workers: int, incidents: list[Incident]
) -> Iterator[Batch]:
    """Every pair of a manifest once, in its order; pairs with a broken image are left out.

    Pairs with many spans or regions come in smaller batches, since a batch is padded to its largest pair: so memory is
    bounded where nothing limits the regions of a pair. Incidents are added to `incidents`.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=list(_batches_by_size(dataset, batch_size)),
        collate_fn=partial(_collate_readable, collator),
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=_quiet_worker,
    )
    for batch, met in loader:
        incidents.extend(met)
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


def _collate_readable(collator: Collator, items: Sequence[Sample | Incident]) -> tuple[Batch | None, list[Incident]]:
    broken = [item for item in items if isinstance(item, Incident)]
    samples = [item for item in items if isinstance(item, Sample)]
    if not samples:
        return None, broken
    loaded = collator(samples)
    return loaded.batch, broken + loaded.incidents


def _quiet_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole process group, to the training process: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
