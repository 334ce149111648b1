"""The text of a sample in training: one of its texts, changed at random, with the spans of its entities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from spanbox.data.augment_text import TextAugmentSettings, augment_text
from spanbox.data.manifest import Entity, Record
from spanbox.data.synonym_files import load_synonyms
from spanbox.data.synonyms import Synonyms
from spanbox.spans import CharSpan, trim_span
from spanbox.structures import Sample

CHANGED_TEXTS = 20_000  # that a tokenizer is trained on besides the texts; enough to contain all frequent synonyms


class TextAugmenter:
    """Draws the text of a sample. The identity of an entity, and whether it is shown, stay the same.

    Args:
        settings: probabilities.
        coarse: also draw paraphrases without spans of the pair's entities. Not for tags: all of such a
            text would be outside of entities.

    Raises:
        DataError: a source of synonyms is missing or wrong.
    """

    def __init__(self, settings: TextAugmentSettings, *, coarse: bool = True) -> None:
        self.settings = settings
        self.coarse = coarse
        needed = settings.synonyms > 0 or settings.deletion > 0
        self.synonyms = load_synonyms(settings.sources) if needed else Synonyms({})

    def __call__(self, sample: Sample, record: Record, generator: np.random.Generator) -> Sample:
        """The sample with a newly drawn text.

        Args:
            sample: with the text of `record`.
            record: the pair that the sample was made of.
            generator: of this sample alone.
        """
        drawn = self._draw(record, generator)
        if drawn is not record:
            sample = _without_entities(sample) if record.entities and not drawn.entities else sample
            sample = _with_text(sample, drawn.text, [_span(drawn.text, drawn.entities[i]) for i in sample.entities])
        result = augment_text(sample.text, sample.spans, drawn.lang, self.settings, self.synonyms, generator)
        return replace(_with_text(sample, result.text, result.spans), text_changes=result.changes)

    def _draw(self, record: Record, generator: np.random.Generator) -> Record:
        """The record, or one of its paraphrases."""
        every = self.coarse or not record.entities
        usable = [paraphrase for paraphrase in record.paraphrases if every or paraphrase.entities]
        if not usable or generator.random() >= self.settings.paraphrases:
            return record
        return record.paraphrased(usable[int(generator.integers(len(usable)))])


def training_texts(records: Iterable[Record], settings: TextAugmentSettings) -> Iterator[str]:
    """The texts that a tokenizer is trained on: each text, and its paraphrases and one changed text where these are
    drawn."""
    synonyms = load_synonyms(settings.sources) if settings.synonyms else None
    for index, record in enumerate(records):
        yield record.text
        if settings.paraphrases:
            yield from (paraphrase.text for paraphrase in record.paraphrases)
        if synonyms is not None and index < CHANGED_TEXTS:
            spans = [_span(record.text, entity) for entity in record.entities]
            generator = np.random.default_rng(index)
            yield augment_text(record.text, spans, record.lang, settings, synonyms, generator).text


def _span(text: str, entity: Entity) -> CharSpan:
    return trim_span(text, (entity.start, entity.end))


def _with_text(sample: Sample, text: str, spans: Sequence[CharSpan]) -> Sample:
    trimmed = tuple(trim_span(text, span) for span in spans)
    return replace(
        sample,
        text=text,
        original_text=sample.original_text or sample.text,
        spans=trimmed,
        span_texts=tuple(text[start:end] for start, end in trimmed),
    )


def _without_entities(sample: Sample) -> Sample:
    """The sample for the coarse level only. Its regions go too: without their spans they would count as showing nothing
    that has a name."""
    return replace(
        sample,
        spans=(),
        span_texts=(),
        entities=(),
        identities=(),
        shown=(),
        regions=torch.empty(0, 4),
        links=torch.empty(0, 0, dtype=torch.bool),
        link_relevance=None if sample.link_relevance is None else torch.empty(0, 0),
        crops=None if sample.crops is None else sample.crops[:0],
        crop_content=None if sample.crop_content is None else sample.crop_content[:0],
    )
