"""The features of a manifest's pairs by a model: in memory during training, on disk for an evaluation."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanbox.config import RunConfig
from spanbox.data.dataset import PairDataset
from spanbox.data.loader import evaluation_batches
from spanbox.data.manifest import Manifest
from spanbox.engine.device import choose_precision, make_encode
from spanbox.evaluation.bank_files import Fingerprint, StoredBank, open_bank, write_bank
from spanbox.evaluation.extract import FeatureBank, extract_parts
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress, StartProgress
from spanbox.structures import Batch, Incident, stable_id
from spanbox.wiring.building import make_collator, sample_limits
from spanbox.wiring.loading import Loaded

EVALUATION_BATCH = 128


def evaluation_dataset(config: RunConfig, model: DualEncoder, manifest: Manifest) -> PairDataset:
    return PairDataset(manifest, sample_limits(config, model), config.seed, replace_broken=False)


def embed(
    model: DualEncoder, config: RunConfig, tokenizer: Any, dataset: PairDataset, progress: StartProgress = Progress
) -> tuple[FeatureBank, list[Incident]]:
    """The features of a data set's pairs, without those whose image is broken, and what was met in the data.

    Args:
        model: in evaluation mode.
    """
    incidents: list[Incident] = []
    return FeatureBank.cat(_parts(model, config, tokenizer, dataset, incidents, progress)), incidents


def embed_to_disk(loaded: Loaded, dataset: PairDataset, folder: Path) -> StoredBank:
    """As `embed`, kept in `folder`, and taken from there when they were made by this checkpoint of these pairs."""
    fingerprint = _fingerprint(loaded, dataset)
    stored = open_bank(folder, fingerprint)
    if stored is not None:
        return stored
    incidents: list[Incident] = []
    parts = _parts(loaded.model, loaded.config, loaded.tokenizer, dataset, incidents, Progress)
    return write_bank(folder, fingerprint, parts, incidents)


def places_in_manifest(bank: FeatureBank, manifest: Manifest) -> NDArray[np.int64]:
    """Place (N,) in the manifest of each pair of the bank, which has them in this order, without some."""
    wanted = bank.sample.tolist()
    places = np.empty(len(wanted), dtype=np.int64)
    found = 0
    for place, record in enumerate(manifest):
        if found < len(wanted) and stable_id(record.id) == wanted[found]:
            places[found] = place
            found += 1
    assert found == len(wanted), "a bank of this manifest"
    return places


def _parts(
    model: DualEncoder,
    config: RunConfig,
    tokenizer: Any,
    dataset: PairDataset,
    incidents: list[Incident],
    progress: StartProgress,
) -> Iterator[FeatureBank]:
    device = next(model.parameters()).device
    workers = config.data.worker_count(device)
    batches = evaluation_batches(dataset, make_collator(config, tokenizer), EVALUATION_BATCH, workers, incidents)
    encode = make_encode(model, device, choose_precision(config.train.precision, device))
    return extract_parts(encode, _shown(batches, progress("encoding", len(dataset))), device)


def _shown(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    done = 0
    with progress:
        for batch in batches:
            yield batch
            done += len(batch)
            progress.update(done)


def _fingerprint(loaded: Loaded, dataset: PairDataset) -> Fingerprint:
    """What the features depend on: the weights, the pairs with their images, and what enters of each."""
    config, device = loaded.config, next(loaded.model.parameters()).device
    return {
        "checkpoint": loaded.checkpoint.name,
        "weights": _size_and_time(loaded.checkpoint / "model.safetensors"),
        "manifest": _size_and_time(dataset.manifest.path),
        "images": _digest_of_images(dataset.manifest),
        "model": config.model.model_dump(mode="json"),
        "limits": asdict(dataset.limits),
        "max_tokens": config.data.max_tokens,
        "inverted_boxes": config.data.inverted_boxes,
        "precision": str(choose_precision(config.train.precision, device)),
    }


def _digest_of_images(manifest: Manifest) -> str:
    """A digest of the size and time of every image, which no image is read for."""
    digest = hashlib.blake2b(digest_size=16)
    for record in manifest:
        digest.update(repr(_size_and_time(manifest.image_path(record))).encode())
    return digest.hexdigest()


def _size_and_time(path: Path) -> list[int] | None:
    """None: there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
