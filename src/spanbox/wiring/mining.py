"""Hard neighbours of a manifest's pairs, by a model: mined once from a checkpoint, or between the epochs of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spanbox.data.dataset import PairDataset
from spanbox.data.manifest import Manifest
from spanbox.data.neighbours import MiningSettings, Neighbours, SearchName, check_writable, save_neighbours
from spanbox.evaluation.approximate import import_faiss, nearest_wrong_approximately
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.mining import KINDS, Mined, NearestWrong, mine_neighbours, nearest_wrong
from spanbox.progress import Progress, StartProgress
from spanbox.structures import Incident
from spanbox.wiring.building import open_manifest
from spanbox.wiring.embedding import embed, evaluation_dataset
from spanbox.wiring.inference import Inference
from spanbox.wiring.loading import load

SEARCHES: Mapping[SearchName, NearestWrong] = {"exact": nearest_wrong, "approximate": nearest_wrong_approximately}


@dataclass(frozen=True)
class MinedManifest:
    """Neighbours of all pairs of a manifest; a pair with a broken image has none and is not a neighbour of others."""

    neighbours: Neighbours
    mined: Mined  # of the pairs that can be read
    incidents: list[Incident]


def mine(
    inference: Inference,
    dataset: PairDataset,
    settings: MiningSettings,
    progress: StartProgress = Progress,
) -> MinedManifest:
    """Encode the pairs of a data set, read as evaluation does, and find hard neighbours of each.

    Args:
        inference: its device computes the similarities of an exact search, too.

    Raises:
        ConfigError: a package that the search needs is not installed.
    """
    check_search(settings.search)
    bank, incidents = embed(inference, dataset, progress)
    with progress("searching", len(KINDS[settings.by]) * len(bank)) as searching:
        mined = mine_neighbours(
            bank,
            count=min(settings.count, len(bank)),  # more would take memory for nothing
            by=settings.by,
            margin=settings.margin,
            device=inference.device,
            find=SEARCHES[settings.search],
            on_searched=searching.update,
        )
    return MinedManifest(_in_manifest(mined, bank, dataset.manifest), mined, incidents)


def mine_checkpoint(
    path: Path, manifest: Path, out: Path, settings: MiningSettings, device: str = "auto"
) -> MinedManifest:
    """Mine a manifest with a checkpoint (or the best of a run), and write the neighbours to `out`."""
    check_search(settings.search)  # before anything is opened
    loaded = load(path, device)
    opened = open_manifest(loaded.config, str(manifest), "the manifest")
    check_writable(out)
    dataset = evaluation_dataset(loaded, opened)
    result = mine(loaded, dataset, settings)
    origin = {"checkpoint": str(loaded.checkpoint), **settings.model_dump(exclude={"every", "count"})}
    save_neighbours(out, result.neighbours, manifest, origin)
    return result


def check_search(search: SearchName) -> None:
    """Check, before long work, that the packages of the search are installed.

    Raises:
        ConfigError: it is not.
    """
    if search == "approximate":
        import_faiss()


def _in_manifest(mined: Mined, bank: FeatureBank, manifest: Manifest) -> Neighbours:
    """Neighbours by the pairs' places in the bank as neighbours by their places in the manifest."""
    places = bank.place.numpy()
    found = mined.neighbours.numpy()
    neighbours = np.full((len(manifest), found.shape[1]), -1, dtype=np.int32)
    neighbours[places] = np.where(found < 0, -1, places[found])
    return neighbours
