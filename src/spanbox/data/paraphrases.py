"""Other texts for an image: paraphrases and further captions, with the places of the pair's entities in them."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class ParaphraseSpan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a paraphrase names an entity of its pair."""

    entity: int  # index in the pair's entities
    start: int  # half-open, in Unicode code points of the paraphrase
    end: int


class Paraphrase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Another text for the same image."""

    text: str
    entities: tuple[ParaphraseSpan, ...] = ()  # all entities of the pair; empty: for the coarse level only
    lang: str = ""  # default: that of the pair
    source: str = ""  # such as the translators that made it


class HasSpan(Protocol):
    """An interval of a text, half-open, in code points."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


def find_span_faults(text: str, spans: Sequence[HasSpan]) -> list[tuple[str, str]]:
    """Spans that do not fit into their text, as (field, description and remedy)."""
    faults = []
    for i, span in enumerate(spans):
        if not 0 <= span.start < span.end <= len(text):
            faults.append(
                (
                    f"entities[{i}]",
                    f"[{span.start}, {span.end}) is not a span of a text of {len(text)} characters; offsets are "
                    "half-open and count Unicode code points from 0",
                )
            )
        elif not text[span.start : span.end].strip():
            faults.append((f"entities[{i}]", "holds nothing but white space; remove it or move its edges"))
    return faults


def find_paraphrase_faults(paraphrase: Paraphrase, entities: int, longest: int) -> list[tuple[str, str]]:
    """Faults of a paraphrase of a pair with so many entities, as (field, description and remedy).

    Its text has at most `longest` characters; it names each entity of the pair once, or none.
    """
    faults = []
    if not paraphrase.text.strip():
        faults.append(("text", "is empty; remove the paraphrase"))
    if len(paraphrase.text) > longest:
        faults.append(("text", f"has {len(paraphrase.text):,} characters; shorten it to {longest:,}"))
    named = sorted(span.entity for span in paraphrase.entities)
    if named and named != list(range(entities)):
        faults.append(
            (
                "entities",
                f"name the entities {named} of a pair with {entities}; give each of them once, or none: then the "
                "paraphrase is for the coarse level only",
            )
        )
    return faults + find_span_faults(paraphrase.text, paraphrase.entities)
