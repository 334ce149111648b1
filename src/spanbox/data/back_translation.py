"""Paraphrases of a manifest's texts by translation, such as into another language and back.

Entities travel as markers (`entity_markers`). A text whose markers do not all come back is translated again as it is,
for the coarse level only. Every translation is written at once to a cache beside the output, so that nothing is done
twice: not after a kill, nor after an error of a translator, nor for a manifest with more pairs.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from spanbox.data.entity_markers import MarkedText, mark_entities
from spanbox.data.manifest import (
    MAX_TEXT_CHARACTERS,
    Record,
    check_manifest_file,
    manifest_lines,
    parse_record,
    relocated,
    write_manifest,
)
from spanbox.data.paraphrases import Paraphrase, ParaphraseSpan
from spanbox.data.result_cache import Cached, ResultCache, storable
from spanbox.data.words import is_language
from spanbox.errors import DataError, SpanboxError
from spanbox.files import check_no_input, check_writable_file

BATCHES_AT_ONCE = 16  # whose texts are sorted by length, so that batches need little padding
LONGEST_GROWTH, GROWTH_ALLOWED = 3, 40  # a translation of more than 3 times the characters and 40 has run away

Lost = Literal["coarse", "drop"]
OnProgress = Callable[[int, int, str], None]  # pairs done, pairs in all, speed


class Translator(Cached, Protocol):
    """Turns texts into texts: a paraphraser, or a translation there and back again."""

    def translate(self, texts: Sequence[str]) -> Any:
        """A text for each text; empty or None where there is none."""


class _Job(NamedTuple):
    """A text of the manifest for one translator."""

    line: int
    record: Record
    translator: Translator
    marked: MarkedText


class BackTranslation:
    """Adds paraphrases to the records of a manifest.

    Args:
        manifest: its texts are translated.
        out: the manifest with paraphrases. The cache lies beside it.
        translators: each gives at most one paraphrase per text.
        batch_size: texts that a translator gets at a time.
        lost: treatment of a text if an entity does not come back: translated as a whole for the coarse level
            only, or left out.

    `counts` holds how many paraphrases were made, and why others were left out.

    Raises:
        DataError: a wrong manifest.
        OutputError: `out` or its cache cannot be written.
    """

    def __init__(
        self,
        manifest: Path,
        out: Path,
        translators: Sequence[Translator],
        *,
        batch_size: int = 32,
        lost: Lost = "coarse",
    ) -> None:
        self.manifest = manifest
        self.out = out
        self.translators = translators
        self.batch_size = batch_size
        self.lost = lost
        self.counts: Counter[str] = Counter()
        self.translated = 0
        check_manifest_file(manifest)
        check_writable_file(out, ".jsonl")
        check_no_input(out, [manifest])
        self.pairs = sum(1 for _ in self._records())
        self.cache = ResultCache(out.with_name(f"{out.name}.translations"))

    def run(self, on_progress: OnProgress = lambda done, total, speed: None) -> None:
        """Write `out`, whole or not at all.

        Raises:
            DataError: a translator fails, or gives nothing at all. What was translated before stays in the cache.
            OutputError: `out` or its cache cannot be written.
        """
        write_manifest(self.out, self._with_paraphrases(on_progress))

    def _records(self) -> Iterator[tuple[int, Record]]:
        for number, _, line in manifest_lines(self.manifest):
            yield number, parse_record(line, self.manifest, number)

    def _with_paraphrases(self, on_progress: OnProgress) -> Iterator[Record]:
        records, done, began = self._records(), 0, time.monotonic()
        while window := list(islice(records, self.batch_size * BATCHES_AT_ONCE)):
            for _ in self._translate_all(window):
                on_progress(done, self.pairs, f"{self._speed(began):.1f} texts/s")
            for line, record in window:
                made: list[Paraphrase] = []
                for job in self._jobs([(line, record)]):
                    made += self._paraphrase(job, {record.text, *(p.text for p in (*record.paraphrases, *made))})
                with_made = msgspec.structs.replace(record, paraphrases=(*record.paraphrases, *made))
                yield relocated(with_made, self.manifest.parent.resolve(), self.out.parent.resolve())
            done += len(window)
            on_progress(done, self.pairs, "")
        if self.counts["left out: no translation"] and not any(kind.startswith("for ") for kind in self.counts):
            names = " and ".join(translator.name for translator in self.translators)
            raise DataError(f"{names}: gave no translation of any text; {self.out} is not written")

    def _speed(self, began: float) -> float:
        return self.translated / max(time.monotonic() - began, 1e-9)

    def _jobs(self, records: Iterable[tuple[int, Record]]) -> Iterator[_Job]:
        for line, record in records:
            marked = mark_entities(record.text, [(entity.start, entity.end) for entity in record.entities])
            for translator in self.translators:
                if marked.has_words:
                    yield _Job(line, record, translator, marked)

    def _translate_all(self, window: Sequence[tuple[int, Record]]) -> Iterator[None]:
        """Bring all translations that some records need into the cache; yields after each batch."""
        jobs = list(self._jobs(window))
        yield from self._translate([(job, job.marked.text) for job in jobs])
        if self.lost == "coarse":
            yield from self._translate([(job, job.record.text) for job in jobs if self._has_lost(job)])

    def _has_lost(self, job: _Job) -> bool:
        """Whether the translation of the text with markers lacks one of them."""
        translation = self.cache.get(job.translator.key, job.marked.text)
        return bool(translation) and job.marked.restore(translation or "", english=False) is None

    def _translate(self, wanted: Sequence[tuple[_Job, str]]) -> Iterator[None]:
        missing: dict[str, dict[str, _Job]] = defaultdict(dict)
        for job, text in wanted:
            if self.cache.get(job.translator.key, text) is None:
                missing[job.translator.key].setdefault(text, job)
        for job_of in missing.values():
            texts = sorted(job_of, key=len)
            for start in range(0, len(texts), self.batch_size):
                batch = texts[start : start + self.batch_size]
                job = job_of[batch[0]]
                self.cache.add(job.translator.key, batch, self._call(job, batch))
                self.translated += len(batch)
                yield

    def _call(self, job: _Job, texts: Sequence[str]) -> list[str]:
        """The translator's texts, checked."""
        name = job.translator.name
        kept = f"{len(self.cache)} translations are kept in {self.cache.path}; the same command goes on from there"
        where = f"a batch of {len(texts)} texts, one of them of {self.manifest}, line {job.line}"
        try:
            found = job.translator.translate(texts)
        except SpanboxError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{name} failed with {reason} at {where}. {kept}") from error
        if not isinstance(found, list | tuple) or len(found) != len(texts):
            shown = f"{len(found)} texts" if isinstance(found, list | tuple) else type(found).__name__
            raise DataError(f"{name} gave {shown} for {where}; expected a list with a text for each. {kept}")
        for text in found:
            if not isinstance(text, str | None):
                raise DataError(f"{name} gave a list with {type(text).__name__}; expected texts. {kept}")
        return [storable(text or "").strip() for text in found]

    def _paraphrase(self, job: _Job, known: set[str]) -> list[Paraphrase]:
        """The paraphrase of a job, or none; counted."""
        record, source = job.record, job.translator.name
        translation = self.cache.get(job.translator.key, job.marked.text) or ""
        restored = job.marked.restore(translation, english=bool(record.lang) and is_language(record.lang, "en"))
        if not translation:
            return self._leave_out("no translation")
        if restored is not None:
            text, places = restored
            spans = tuple(ParaphraseSpan(i, start, end) for i, (start, end) in enumerate(places))
        elif self.lost == "drop":
            return self._leave_out("an entity was lost")
        else:
            text, spans = self.cache.get(job.translator.key, record.text) or "", ()
        if not text:
            return self._leave_out("no translation")
        if len(text) > min(LONGEST_GROWTH * len(record.text) + GROWTH_ALLOWED, MAX_TEXT_CHARACTERS):
            return self._leave_out("much longer than its text")
        if text in known:
            return self._leave_out("the same as its text or another paraphrase")
        self.counts["for both levels" if spans or not record.entities else "for the coarse level only"] += 1
        return [Paraphrase(text, spans, source=source)]

    def _leave_out(self, reason: str) -> list[Paraphrase]:
        self.counts[f"left out: {reason}"] += 1
        return []
