"""Batches whose tokens have tags, for training to find entities; and samples of texts alone, without their images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace as replace_fields
from torch import Tensor
from torch.utils.data import Dataset

from spanbox.data.annotate import annotate
from spanbox.data.augment_text import TextAugmentSettings
from spanbox.data.collate import Collated, Collator
from spanbox.data.draws import Draws, Stream
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest
from spanbox.data.sample_text import TextAugmenter
from spanbox.errors import DataError
from spanbox.structures import PADDING_ID, Batch, Incident, Sample, stable_id
from spanbox.tags import tag_tokens

MOST_TYPES = 500
"""Types of a tagger: the cost of its CRF grows with the square of their number."""
SHOWN = 5


@dataclass(frozen=True)
class TaggedBatch(Batch):
    """A batch with BIO tags."""

    tags: Tensor = field(kw_only=True)  # (B, T) int64, PADDING_ID on padding and special tokens


def entity_types(manifest: Manifest) -> tuple[str, ...]:
    """The types of a manifest's entities, sorted.

    Raises:
        DataError: there are no entities, some have no type, or there are too many types.
    """
    untyped = [record.id for record in manifest if any(not entity.type for entity in record.entities)]
    if untyped:
        raise DataError(
            f"{manifest.path}: {len(untyped):,} pairs have entities without a type ({', '.join(untyped[:SHOWN])}"
            f"{', ...' if len(untyped) > SHOWN else ''}); GMNER needs the `type` of every entity, see docs/data.md"
        )
    types = sorted({entity.type for record in manifest for entity in record.entities})
    if not types:
        raise DataError(f"{manifest.path}: no pair has entities; there is nothing to find, see docs/data.md")
    if len(types) > MOST_TYPES:
        raise DataError(f"{manifest.path}: has {len(types):,} entity types; at most {MOST_TYPES} can be tagged")
    return tuple(types)


class TextSamples(Dataset[Sample]):
    """The pairs of a manifest without their images and boxes, by (step, index). No image is read.

    Args:
        manifest: of the pairs.
        augment: random changes of the texts; None: they stay as they are.
        seed: of the changes, which depend on it and (step, index) alone.
    """

    def __init__(self, manifest: Manifest, augment: TextAugmentSettings | None = None, seed: int = 0) -> None:
        self.manifest = manifest
        self.seed = seed
        self._augment = TextAugmenter(augment, coarse=False) if augment and augment.active else None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        step, place = key
        record = self.manifest[place]
        entities = [replace_fields(entity, boxes=(), relevance=()) for entity in record.entities]
        found = annotate(record.text, entities, (), (1, 1), SampleLimits(image_size=1), sample=record.id)
        sample = Sample(
            id=record.id,
            place=place,
            pixels=torch.zeros(3, 1, 1, dtype=torch.uint8),
            text=record.text,
            group=stable_id(record.group_key),
            spans=found.spans,
            span_texts=tuple(record.text[start:end] for start, end in found.spans),
            entities=found.entities,
            identities=found.identities,
            shown=found.shown,
            regions=found.regions,
            links=found.links,
            crops=None,
            incidents=found.incidents,
        )
        if self._augment is None:
            return sample
        return self._augment(sample, record, Draws(self.seed, step, place).stream(Stream.TEXT))


class Tokenized(NamedTuple):
    """Texts as the tagger reads them."""

    token_ids: Tensor  # (B, T) int64
    token_mask: Tensor  # (B, T) bool
    tagged: Tensor  # (B, T) bool: tokens that get a tag
    offsets: Tensor  # (B, T, 2) int64: characters of each token
    truncated: list[int]  # texts of which the end is not read


class TaggingCollator:
    """Makes a batch of samples with tags, with ids and incidents.

    Args:
        collator: makes the batch. It must not encode spans alone only: spans in their sentence have tokens.
        manifest: of the samples; names the types of their entities.
        types: in the order of their tags. Entities of other types are outside.
    """

    def __init__(self, collator: Collator, manifest: Manifest, types: Sequence[str]) -> None:
        self.collator = collator
        self.manifest = manifest
        self.number = {name: number for number, name in enumerate(types)}

    def __call__(self, samples: Sequence[Sample]) -> Collated:
        batch, ids, incidents = self.collator(samples)
        tagged = tagged_tokens(self.collator.tokenizer, batch.token_ids, batch.token_mask)
        tags, left_out = tag_tokens(batch.span_tokens, self._types(batch), tagged)
        for row, column in left_out.nonzero().tolist():
            text = self.manifest[int(batch.place[row])].span_text(self._entity(batch, row, column))
            incidents.append(Incident("nested entity", ids[row], f"{text!r} has no tokens of its own, so no tags"))
        values = {entry.name: getattr(batch, entry.name) for entry in fields(Batch)}
        return Collated(TaggedBatch(**values, tags=tags), ids, incidents)

    def _types(self, batch: Batch) -> Tensor:
        """Numbers of the types (B, K), PADDING_ID where there is no span or its type is not known."""
        types = torch.full_like(batch.span_entity, PADDING_ID)
        for row, column in batch.span_valid.nonzero().tolist():
            types[row, column] = self.number.get(self._entity(batch, row, column).type, PADDING_ID)
        return types

    def _entity(self, batch: Batch, row: int, column: int) -> Any:
        return self.manifest[int(batch.place[row])].entities[int(batch.span_entity[row, column])]


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Tokenized:
    """Texts as tokens, truncated and padded to one length."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=True)
    token_ids = torch.tensor([encoding.ids for encoding in encoded.encodings])
    token_mask = torch.tensor([encoding.attention_mask for encoding in encoded.encodings]).bool()
    return Tokenized(
        token_ids,
        token_mask,
        tagged_tokens(tokenizer, token_ids, token_mask),
        torch.tensor([encoding.offsets for encoding in encoded.encodings]),
        [row for row, encoding in enumerate(encoded.encodings) if encoding.overflowing],
    )


def tagged_tokens(tokenizer: Any, token_ids: Tensor, token_mask: Tensor) -> Tensor:
    """Tokens (B, T) that get a tag: all but padding and those that the tokenizer adds."""
    named = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    added = torch.tensor([one for one in named if one is not None], dtype=token_ids.dtype)
    return token_mask & ~torch.isin(token_ids, added)
