"""Hard neighbours of a manifest's pairs, by a model: mined once from a checkpoint, or between the epochs of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spanbox.config import RunConfig
from spanbox.data.manifest import Manifest
from spanbox.data.neighbours import Neighbours, check_writable, save_neighbours
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.mining import KINDS, By, Mined, mine_neighbours
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress
from spanbox.structures import Incident, stable_id
from spanbox.wiring.building import open_manifest
from spanbox.wiring.evaluating import embed, load


@dataclass(frozen=True)
class MinedManifest:
    """Neighbours of all pairs of a manifest; those whose image is broken have none and are nobody's."""

    neighbours: Neighbours
    mined: Mined  # of the pairs that can be read
    incidents: list[Incident]


def mine(
    model: DualEncoder,
    config: RunConfig,
    tokenizer: Any,
    manifest: Manifest,
    *,
    count: int = 15,
    by: By = "both",
    margin: float | None = None,
    show_progress: bool = False,
) -> MinedManifest:
    """Encode the pairs of a manifest and find `count` hard neighbours of each.

    Args:
        model: in evaluation mode; its device computes the similarities, too.
        by, margin: as in `mine_neighbours`.
    """
    bank, incidents = embed(model, config, tokenizer, manifest, show_progress=show_progress)
    device = next(model.parameters()).device
    with Progress("searching", len(KINDS[by]) * len(bank), quiet=not show_progress) as progress:
        mined = mine_neighbours(bank, count=count, by=by, margin=margin, device=device, on_searched=progress.update)
    return MinedManifest(_in_manifest(mined, bank, manifest), mined, incidents)


def mine_checkpoint(
    path: Path,
    manifest: Path,
    out: Path,
    *,
    count: int = 15,
    by: By = "both",
    margin: float | None = None,
    device: str = "auto",
) -> MinedManifest:
    """Mine a manifest with a checkpoint (or the best of a run), and write the neighbours to `out`."""
    loaded = load(path, device)
    opened = open_manifest(loaded.config, str(manifest), "the manifest")
    check_writable(out)
    result = mine(
        loaded.model,
        loaded.config,
        loaded.tokenizer,
        opened,
        count=count,
        by=by,
        margin=margin,
        show_progress=True,
    )
    origin = {"checkpoint": str(loaded.checkpoint), "by": by, "margin": margin}
    save_neighbours(out, result.neighbours, manifest, origin)
    return result


def _in_manifest(mined: Mined, bank: FeatureBank, manifest: Manifest) -> Neighbours:
    """Neighbours by the pairs' places in the bank as neighbours by their places in the manifest."""
    place = {stable_id(record.id): index for index, record in enumerate(manifest)}
    places = np.array([place[sample] for sample in bank.sample.tolist()], dtype=np.int32)
    found = mined.neighbours.numpy()
    neighbours = np.full((len(manifest), found.shape[1]), -1, dtype=np.int32)
    neighbours[places] = np.where(found < 0, -1, places[found])
    return neighbours
