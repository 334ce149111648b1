"""The features of a manifest's pairs by a model: in memory during training, on disk for an evaluation."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from spanbox.data.dataset import PairDataset
from spanbox.data.loader import evaluation_batches
from spanbox.data.manifest import Manifest
from spanbox.data.source import state_of
from spanbox.evaluation.bank_files import Fingerprint, StoredBank, open_bank, write_bank
from spanbox.evaluation.extract import FeatureBank, extract_parts
from spanbox.files import one_at_a_time
from spanbox.progress import Progress, StartProgress
from spanbox.structures import Batch, Incident, stable_id
from spanbox.wiring.building import make_collator, sample_limits
from spanbox.wiring.fusing import announce_size, context_of, matches_in_context
from spanbox.wiring.inference import Inference
from spanbox.wiring.loading import Loaded

EVALUATION_BATCH = 128
"""Pairs of a batch, at most; fewer where they have many spans or regions."""
LONGEST_STEM = 40
"""Characters of a manifest's name in the name of a folder, which is limited to 255 bytes."""


def evaluation_dataset(inference: Inference, manifest: Manifest, *, objects_only: bool = False) -> PairDataset:
    """The pairs of a manifest for evaluation, without limits of spans and regions.

    Args:
        objects_only: regions are the manifest's `objects` alone, the candidates of predictions.
    """
    limits = sample_limits(inference.config, inference.model, objects_only=objects_only)
    return PairDataset(manifest, limits, inference.config.seed, replace_broken=False)


def features_folder(evaluation: Path, manifest: Path) -> Path:
    """Folder of a manifest's features: by its name, for the eye, and by its path, since names repeat."""
    of_path = hashlib.blake2b(os.fsencode(manifest.resolve()), digest_size=4).hexdigest()
    return evaluation / f"features-{manifest.stem[:LONGEST_STEM]}-{of_path}"


def embed(
    inference: Inference,
    dataset: PairDataset,
    progress: StartProgress = Progress,
    *,
    keep_states: bool = False,
) -> tuple[FeatureBank, list[Incident]]:
    """The features of a data set's pairs, without those with a broken image, and the incidents.

    Args:
        keep_states: also the tokens and patches of a model with fusion, for re-ranking.
    """
    incidents: list[Incident] = []
    parts = embed_parts(inference, dataset, incidents, progress, keep_states=keep_states)
    return FeatureBank.cat(parts), incidents


def embed_to_disk(loaded: Loaded, dataset: PairDataset, folder: Path, *, keep_states: bool) -> StoredBank:
    """As `embed`, stored in `folder`, and read from there when this checkpoint made them of these pairs.

    Commands that use one evaluation take turns, so that none reads features while another replaces them.
    """
    keep_states = keep_states and loaded.model.fusion is not None
    with one_at_a_time(folder.parent):
        fingerprint = _fingerprint(loaded, dataset)
        stored = open_bank(folder, fingerprint)
        usable = stored is not None and (stored.bank.tokens is not None or not keep_states)
        if stored is not None and usable and _fits(stored.bank, dataset, loaded.config.model.dim):
            return stored
        if keep_states:
            announce_size(loaded, dataset, folder)
        incidents: list[Incident] = []
        parts = embed_parts(loaded, dataset, incidents, keep_states=keep_states)
        return write_bank(folder, fingerprint, parts, incidents)


def _fits(bank: FeatureBank, dataset: PairDataset, width: int) -> bool:
    """Whether a bank from files that may be damaged names pairs and entities of the manifest."""
    manifest, places = dataset.manifest, bank.place.tolist()
    if bank.text.shape[1] != width or max(places, default=0) >= len(manifest):
        return False
    most_entities = torch.zeros(len(places), dtype=torch.int64)
    most_entities.scatter_reduce_(0, bank.span_pair, bank.span_entity + 1, "amax")
    for place, sample, entities in zip(places, bank.sample.tolist(), most_entities.tolist(), strict=True):
        record = manifest[place]
        if stable_id(record.id) != sample or len(record.entities) < entities:
            return False
    return True


def embed_parts(
    inference: Inference,
    dataset: PairDataset,
    incidents: list[Incident],
    progress: StartProgress = Progress,
    *,
    keep_states: bool = False,
) -> Iterator[FeatureBank]:
    """As `embed`, one bank per batch; incidents are added to `incidents`."""
    config = inference.config
    collator = make_collator(config, inference.tokenizer)
    workers = config.data.worker_count(inference.device)
    batches = evaluation_batches(dataset, collator, EVALUATION_BATCH, workers, incidents)
    shown = _shown(batches, progress("encoding", len(dataset)))
    context = context_of(inference.model) if matches_in_context(config) else None
    return extract_parts(inference.encode_batch, shown, context=context, keep_states=keep_states)


def _shown(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    done = 0
    with progress:
        for batch in batches:
            yield batch
            done += len(batch)
            progress.update(done)


def _fingerprint(loaded: Loaded, dataset: PairDataset) -> Fingerprint:
    """Everything that the features depend on: weights, pairs, images, limits, precision."""
    config = loaded.config
    return {
        "checkpoint": loaded.checkpoint.name,
        "weights": size_and_time(loaded.checkpoint / "model.safetensors"),
        "manifest": size_and_time(dataset.manifest.path),
        "images": digest_of_images(images_of(dataset.manifest)),
        "model": config.model.model_dump(mode="json"),
        "limits": asdict(dataset.limits),
        "max_tokens": config.data.max_tokens,
        "inverted_boxes": config.data.inverted_boxes,
        "precision": str(loaded.precision),
    }


def images_of(manifest: Manifest) -> Iterator[Path]:
    """The image of each pair."""
    return (manifest.image_path(record) for record in manifest)


def digest_of_images(paths: Iterable[Path]) -> str:
    """A digest of the size and time of every image; images are not read."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        state = state_of(path)
        digest.update(repr(list(state) if state else None).encode())
    return digest.hexdigest()


def size_and_time(path: Path) -> list[int] | None:
    """Size and time of the last change of a file; None if there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
