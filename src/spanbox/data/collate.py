"""Collation of samples to a padded batch, with tokenised sentences and token masks of the spans."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Encoding
from torch import Tensor

from spanbox.data.tokenizer import count_unknown
from spanbox.spans import span_token_mask
from spanbox.structures import NOT_KNOWN, PADDING_ID, Batch, Incident, Sample, stable_id

EXCERPT = 40  # characters of a text in an incident


class Collated(NamedTuple):
    """A batch with its ids and incidents."""

    batch: Batch
    ids: list[str]  # of the pairs, in the order of the batch
    incidents: list[Incident]


class Collator:
    """Makes a batch of samples, with ids and incidents.

    Args:
        tokenizer: a fast transformers tokenizer.
        max_tokens: longer sentences are truncated; spans that lose a token are not used and give an incident.
        own_spans: also tokenise the text of each span alone.
        sort_by_length: sort the pairs by number of tokens, so that chunks need little padding. Positives follow from
            ids, so the order does not matter.
    """

    def __init__(
        self, tokenizer: Any, max_tokens: int, *, own_spans: bool = False, sort_by_length: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.own_spans = own_spans
        self.sort_by_length = sort_by_length

    def __call__(self, samples: Sequence[Sample]) -> Collated:
        texts = self._tokenize([sample.text for sample in samples])
        if self.sort_by_length:
            order = sorted(range(len(samples)), key=lambda row: sum(texts[row].attention_mask))
            samples, texts = [samples[row] for row in order], [texts[row] for row in order]
        incidents = [incident for sample in samples for incident in sample.incidents]
        incidents += self._unknown_texts(samples, texts)
        token_ids, token_mask = _ids_and_mask(texts)
        span_tokens, identity = self._spans(samples, texts, incidents)
        span_valid = identity != PADDING_ID
        regions, region_valid, links = _regions(samples, span_valid)
        own_token_ids, own_token_mask = self._own_tokens(samples, identity) if self.own_spans else (None, None)
        batch = Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            token_ids=token_ids,
            token_mask=token_mask,
            span_tokens=span_tokens,
            span_entity=_of_spans([sample.entities for sample in samples], span_valid, torch.int64, PADDING_ID),
            span_shown=_of_spans([sample.shown for sample in samples], span_valid, torch.int8, NOT_KNOWN),
            place=torch.tensor([sample.place for sample in samples]),
            span_identity=identity,
            regions=regions,
            region_valid=region_valid,
            links=links,
            group=torch.tensor([sample.group for sample in samples]),
            sample=torch.tensor([stable_id(sample.id) for sample in samples]),
            wording=torch.tensor([_wording(sample) for sample in samples]),
            own_token_ids=own_token_ids,
            own_token_mask=own_token_mask,
            **_pictures(samples, regions.shape[1]),
            **_relevance(samples, links),
            **_views(samples, identity.shape[1]),
        )
        return Collated(batch, [sample.id for sample in samples], incidents)

    def _tokenize(self, texts: list[str]) -> list[Encoding]:
        """Tokenise texts, truncated and padded to one length."""
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_tokens, padding=True)
        encodings: list[Encoding] = encoded.encodings
        return encodings

    def _spans(
        self, samples: Sequence[Sample], texts: list[Encoding], incidents: list[Incident]
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, K, T) of the spans and their identities (B, K); unusable spans are padding."""
        most = max(len(sample.spans) for sample in samples)
        # Filled as lists, because one tensor per span would be slow.
        edge_rows = [[(0, 0)] * most for _ in samples]
        identity_rows = [[PADDING_ID] * most for _ in samples]
        for row, (sample, encoding) in enumerate(zip(samples, texts, strict=True)):
            readable = _readable_length(encoding)
            for column, span in enumerate(sample.spans):
                if span[1] > readable and not self.own_spans:
                    cut = f"{sample.span_texts[column]!r} lies beyond the first {self.max_tokens} tokens"
                    incidents.append(Incident("truncated span", sample.id, cut))
                    continue
                edge_rows[row][column] = span
                identity_rows[row][column] = sample.identities[column]
        edges = torch.tensor(edge_rows, dtype=torch.int64).reshape(len(samples), most, 2)
        identity = torch.tensor(identity_rows, dtype=torch.int64).reshape(len(samples), most)
        offsets = torch.tensor([encoding.offsets for encoding in texts], dtype=torch.int64)
        span_tokens = span_token_mask(edges, offsets)
        if not self.own_spans:
            unread = (identity != PADDING_ID) & ~span_tokens.any(dim=2)
            for row, column in unread.nonzero().tolist():
                nothing = f"the tokenizer makes no token of {samples[row].span_texts[column]!r}"
                incidents.append(Incident("span without tokens", samples[row].id, nothing))
            identity[unread] = PADDING_ID
        return span_tokens, identity

    def _unknown_texts(self, samples: Sequence[Sample], texts: list[Encoding]) -> Iterator[Incident]:
        """Texts that are mostly unknown to the tokenizer, such as those of a script that its vocabulary lacks."""
        for sample, encoding in zip(samples, texts, strict=True):
            unknown, own = count_unknown(self.tokenizer, encoding)
            if unknown and 2 * unknown >= own:
                found = f"{unknown} of {own} tokens are {self.tokenizer.unk_token}: {_beginning(sample.text)!r}"
                yield Incident("text of unknown tokens", sample.id, found)

    def _own_tokens(self, samples: Sequence[Sample], identity: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, K, U) of each span alone, and their mask without padding."""
        places = [(row, column) for row, sample in enumerate(samples) for column in range(len(sample.span_texts))]
        if not places:
            nothing = torch.zeros(*identity.shape, 1, dtype=torch.int64)
            return nothing, nothing.bool()
        encoded_ids, encoded_mask = _ids_and_mask(self._tokenize([samples[i].span_texts[j] for i, j in places]))
        token_ids = torch.zeros(*identity.shape, encoded_ids.shape[1], dtype=torch.int64)
        token_mask = torch.zeros_like(token_ids, dtype=torch.bool)
        rows, columns = torch.tensor(places).unbind(1)
        token_ids[rows, columns] = encoded_ids
        token_mask[rows, columns] = encoded_mask
        return token_ids, token_mask


def _wording(sample: Sample) -> int:
    return stable_id(" ".join((sample.original_text or sample.text).casefold().split()))


def _ids_and_mask(encodings: list[Encoding]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) and their mask (B, T) without padding."""
    token_ids = torch.tensor([encoding.ids for encoding in encodings])
    return token_ids, torch.tensor([encoding.attention_mask for encoding in encodings]).bool()


def _beginning(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


def _readable_length(encoding: Encoding) -> float:
    """Number of characters before the first truncated token; infinite without truncation."""
    dropped: list[tuple[int, int]] = encoding.overflowing[0].offsets if encoding.overflowing else []
    return min((start for start, end in dropped if start < end), default=math.inf)


def _of_spans(rows: Sequence[Sequence[int]], span_valid: Tensor, dtype: torch.dtype, padding: int) -> Tensor:
    """Values of the spans of each pair as a tensor (B, K), with `padding` for unusable spans."""
    most = span_valid.shape[1]
    padded = [[*row, *[padding] * (most - len(row))] for row in rows]
    return torch.tensor(padded, dtype=dtype).reshape(len(rows), most).masked_fill(~span_valid, padding)


def _regions(samples: Sequence[Sample], span_valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, R, 4), mask of the used regions (B, R), and links (B, K, R).

    A region whose spans are all unusable is not used: without links it would be a negative of its own entity.
    """
    most = max(len(sample.regions) for sample in samples)
    regions = torch.zeros(len(samples), most, 4)
    valid = torch.zeros(len(samples), most, dtype=torch.bool)
    links = torch.zeros(*span_valid.shape, most, dtype=torch.bool)
    for row, sample in enumerate(samples):
        count = len(sample.regions)
        regions[row, :count] = sample.regions
        valid[row, :count] = True
        links[row, : len(sample.spans), :count] = sample.links
    linked_before = links.any(dim=1)
    links &= span_valid[:, :, None]
    valid &= ~linked_before | links.any(dim=1)
    return regions, valid, links


def _relevance(samples: Sequence[Sample], links: Tensor) -> dict[str, Tensor]:
    """The relevance of the pairs (B,) and of the links (B, K, R); empty if the data has none."""
    if samples[0].relevance is None:
        return {}
    of_links = torch.zeros(links.shape)
    for row, sample in enumerate(samples):
        assert sample.link_relevance is not None
        of_links[row, : len(sample.spans), : len(sample.regions)] = sample.link_relevance
    return {"relevance": torch.tensor([sample.relevance for sample in samples]), "link_relevance": of_links}


def _pictures(samples: Sequence[Sample], most: int) -> dict[str, Tensor]:
    """The crops, and the sizes of padded pictures; empty if the samples have none."""
    fields: dict[str, Tensor] = {}
    if samples[0].content is not None:
        fields["content"] = torch.tensor([sample.content for sample in samples])
    for name in ("crops", "crop_content"):
        if getattr(samples[0], name) is not None:
            fields[name] = _of_regions([getattr(sample, name) for sample in samples], most)
    return fields


def _of_regions(rows: Sequence[Tensor], most: int) -> Tensor:
    """Values (R, ...) of the regions of each pair as a tensor (B, R, ...), zeros for padding."""
    padded = rows[0].new_zeros(len(rows), most, *rows[0].shape[1:])
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return padded


def _views(samples: Sequence[Sample], most_spans: int) -> dict[str, Tensor]:
    """The fields of a batch with masked views; empty if the samples have none."""
    views = [sample.views for sample in samples if sample.views is not None]
    if not views:
        return {}
    spans = torch.zeros(len(samples), len(views[0].hidden), most_spans, dtype=torch.int8)
    for row, view in enumerate(views):
        spans[row, :, : view.spans.shape[1]] = view.spans
    fields = {
        "view_hidden": torch.stack([view.hidden for view in views]),
        "view_sentence": torch.stack([view.sentence for view in views]),
        "view_spans": spans,
    }
    filled = [view.pixels for view in views if view.pixels is not None]
    return fields | ({"view_pixels": torch.stack(filled)} if filled else {})
