"""Texts longer than a tower reads, and the spans that are cut off, by the tokenizer of the tower."""

from collections.abc import Callable, Iterator
from typing import Any

from spanbox.data.manifest import Record

Check = Callable[[Record], Iterator[tuple[str, str]]]


def token_check(tokenizer: Any, max_tokens: int) -> Check:
    """A check of a record's tokens, which gives findings as (kind, detail).

    Args:
        tokenizer: a fast transformers tokenizer.
        max_tokens: that a text tower reads, special tokens included.
    """
    from spanbox.data.tokenizer import mostly_unknown  # transformers takes seconds to import

    def check(record: Record) -> Iterator[tuple[str, str]]:
        encoding = tokenizer([record.text], truncation=True, max_length=max_tokens).encodings[0]
        rest = [offsets for part in encoding.overflowing for offsets in part.offsets]
        cut = min((start for start, end in rest if start < end), default=None)
        if cut is not None:
            total = sum(encoding.attention_mask) + sum(
                part.special_tokens_mask.count(0) for part in encoding.overflowing
            )
            yield "text over the limit of tokens", f"{total} tokens; the first {max_tokens} are read"
            for i, entity in enumerate(record.entities):
                if entity.end > cut:
                    yield "span over the limit of tokens", f"entities[{i}]: {record.span_text(entity)!r} is not read"
        if found := mostly_unknown(tokenizer, encoding):
            yield "text of unknown tokens", f"{found}: {record.text[:40]!r}"

    return check
