"""Files of an evaluation besides its metrics: examples and heatmaps.

    evaluation/examples.json    retrievals, matches, similarity matrices and heatmaps, by the ids of records
    evaluation/heatmaps.npz     maps over the grid of patches, in [0, 1], by the keys that examples.json names

The report is made from these files alone and never opens a model.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanbox.data.dataset import PairDataset
from spanbox.data.manifest import Manifest, Record
from spanbox.data.source import state_of
from spanbox.errors import DataError
from spanbox.evaluation.examples import (
    MatchingExample,
    RetrievalExample,
    Scored,
    SimilarityExample,
    matching_examples,
    similarity_example,
)
from spanbox.evaluation.extract import FeatureBank
from spanbox.files import replacing, write_json
from spanbox.models.heatmaps import fusion_maps, span_heatmaps, to_unit_range
from spanbox.report.examples import (
    Box,
    Candidate,
    CoarseSimilarity,
    EntityOf,
    Examples,
    FineSimilarity,
    HeatmapExample,
    Match,
    RegionOf,
    Retrieval,
    ScoredPair,
    Similarity,
)
from spanbox.structures import Batch, Sample
from spanbox.wiring.building import make_collator
from spanbox.wiring.loading import Loaded


class Pairs:
    """The records and samples of a bank's pairs, spans and regions."""

    def __init__(self, bank: FeatureBank, dataset: PairDataset) -> None:
        self.bank = bank
        self.manifest = dataset.manifest
        self._dataset = dataset

    def record(self, pair: int) -> Record:
        return self.manifest[int(self.bank.place[pair])]

    def sample(self, pair: int) -> Sample:
        """The pair, decoded as it was when its features were extracted.

        Raises:
            DataError: its image is gone since.
        """
        item = self._dataset[0, int(self.bank.place[pair])]
        if not isinstance(item, Sample):
            raise DataError(item.detail)
        return item

    def entity_types(self) -> list[str | None]:
        """Type of each span's entity, as the manifest gives it; None where it gives none."""
        types: list[str | None] = []
        by_pair = groupby(zip(self.bank.span_pair.tolist(), self.bank.span_entity.tolist(), strict=True), itemgetter(0))
        for pair, spans in by_pair:  # a record is read once for all of its spans
            entities = self.record(pair).entities
            types += [entities[entity].type or None for _, entity in spans]
        return types

    def ambiguous(self) -> Tensor:
        """(S,) bool: it is unknown which of the span's boxes is meant."""
        pair, entity = self.bank.span_pair.tolist(), self.bank.span_entity.tolist()
        flags = [self.record(i).entities[j].ambiguous for i, j in zip(pair, entity, strict=True)]
        return torch.tensor(flags, dtype=torch.bool)

    def id(self, pair: int) -> str:
        return self.record(pair).id

    def names_of(self, span: int) -> tuple[str, int]:
        """A span by the id of its record and its entity."""
        return self.id(int(self.bank.span_pair[span])), int(self.bank.span_entity[span])

    def box(self, region: int) -> Box:
        """A region in fractions of its image."""
        x0, y0, x1, y1 = self.bank.region_box[region].tolist()
        return x0, y0, x1, y1


def write_examples(
    folder: Path,
    pairs: Pairs,
    retrievals: Mapping[str, Iterable[RetrievalExample]],
    loaded: Loaded,
    count: int,
    seen_from: Path,
) -> None:
    """Write `examples.json` and `heatmaps.npz`, without the parts for which the data has no boxes or entities.

    Args:
        folder: an existing one.
        pairs: of the evaluation.
        retrievals: examples by direction, `i2t` and `t2i`.
        loaded: the model, for the heatmaps.
        count: of matches, wrong ones and right ones each, and of the entities with heatmaps where there are no matches.
        seen_from: folder where the files will lie in the end.
    """
    bank, seed = pairs.bank, loaded.config.seed
    matches = matching_examples(bank, count, seed)
    spans = [match.span for match in matches] or _some_spans(bank, count, seed)
    heatmaps, maps = _heatmaps(pairs, spans, loaded)
    examples = Examples(
        **manifest_places(pairs.manifest.path, seen_from),
        retrieval={way: [_retrieval(pairs, one) for one in found] for way, found in retrievals.items()},
        matching=[_match(pairs, match) for match in matches],
        similarity=_similarity(pairs, similarity_example(bank, seed)),
        heatmaps=heatmaps,
    )
    write_arrays(folder / "heatmaps.npz", maps)
    write_json(folder / "examples.json", msgspec.to_builtins(examples))


def manifest_places(manifest: Path, folder: Path) -> dict[str, str]:
    """Where the manifest is: absolute, so that a report finds it from any working folder, and as seen from `folder`, so
    that it is found after run and data were moved together."""
    places = {"manifest": str(manifest.absolute())}
    with suppress(ValueError):  # on another drive
        places["manifest_from_here"] = Path(os.path.relpath(manifest.resolve(), folder.resolve())).as_posix()
    return places


def data_fingerprint(manifest: Manifest) -> str:
    """A hash of the content of a manifest and of the sizes of its images: equal for the same data in another place."""
    with manifest.path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b")
    for record in manifest:
        state = state_of(manifest.image_path(record))
        digest.update(f"{state[0] if state else None} ".encode())
    return digest.hexdigest()[:32]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as `.npz` under their names."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # names are keys of the file


def _retrieval(pairs: Pairs, example: RetrievalExample) -> Retrieval:
    def named(scored: Scored) -> ScoredPair:
        return ScoredPair(pairs.id(scored.candidate), scored.score, scored.right)

    found = [named(scored) for scored in example.found]
    return Retrieval(example.kind, pairs.id(example.query), example.rank, found, named(example.right))


def _match(pairs: Pairs, match: MatchingExample) -> Match:
    candidates = [Candidate(pairs.box(scored.candidate), scored.score, scored.right) for scored in match.candidates]
    return Match(*pairs.names_of(match.span), match.right, candidates)


def _similarity(pairs: Pairs, example: SimilarityExample) -> Similarity:
    coarse = CoarseSimilarity([pairs.id(pair) for pair in example.pairs.tolist()], example.coarse.tolist())
    if not len(example.spans):
        return Similarity(coarse)
    pair = pairs.bank.region_pair[example.regions].tolist()
    fine = FineSimilarity(
        [EntityOf(*pairs.names_of(span)) for span in example.spans.tolist()],
        [RegionOf(pairs.id(i), pairs.box(j)) for i, j in zip(pair, example.regions.tolist(), strict=True)],
        example.fine.tolist(),
        example.linked.tolist(),
        example.same_identity.tolist(),
    )
    return Similarity(coarse, fine)


def _some_spans(bank: FeatureBank, count: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng(seed).permutation(len(bank.spans)).tolist()
    return order[:count]


def _heatmaps(
    pairs: Pairs, spans: Iterable[int], loaded: Loaded
) -> tuple[list[HeatmapExample], dict[str, NDArray[np.float32]]]:
    """The heatmaps of some spans as examples.json names them, and the maps by their keys."""
    described, arrays = list[HeatmapExample](), dict[str, NDArray[np.float32]]()
    collate = make_collator(loaded.config, loaded.tokenizer)
    for span in spans:
        sample = pairs.sample(int(pairs.bank.span_pair[span]))
        found = span_heatmaps(loaded.model, sample.pixels, pairs.bank.spans[span][None], sample.content)
        fused, more = _fused(loaded, collate([sample]).batch, int(pairs.bank.span_entity[span]), sample.text)
        keys = {}
        for kind, maps in (found | fused).items():
            keys[kind] = f"{span}/{kind}"
            arrays[keys[kind]] = to_unit_range(maps)[0].numpy()
        if keys:
            described.append(HeatmapExample(*pairs.names_of(span), keys, **more))
    return described, arrays


def _fused(loaded: Loaded, batch: Batch, entity: int, text: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The map (1, h, w) of an entity by the fusion; its gate and the words that its first box attends to.

    Empty where the model has none.
    """
    maps, own = fusion_maps(loaded.model, batch), (batch.span_entity[0] == entity).nonzero()[:1, 0]
    if maps is None or not len(own):
        return {}, {}
    more: dict[str, Any] = {} if maps.gates is None else {"gate": float(maps.gates[own])}
    linked = batch.links[0, own[0]].nonzero()[:1, 0]
    if len(linked):
        more["words"] = _words(loaded, text, maps.regions[linked[0]].tolist())
    return {"fusion": maps.spans[own]}, more


def _words(loaded: Loaded, text: str, shares: Sequence[float]) -> list[tuple[int, int, float]]:
    """The tokens of a text as intervals of its characters with their shares, without special tokens."""
    (encoding,) = loaded.tokenizer([text], truncation=True, max_length=loaded.config.data.max_tokens).encodings
    pairs = zip(encoding.offsets, shares, strict=False)  # the batch may be padded
    return [(start, end, round(share, 4)) for (start, end), share in pairs if start < end]
