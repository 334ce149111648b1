"""Synonyms by language, and the places of words with synonyms in a text. `synonym_files` reads the synonyms."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from spanbox.data.words import Word, cuts_word, find_words, is_language, starts_sentence

Table = Mapping[str, tuple[str, ...]]
"""Words and phrases, in the spelling of running text, with the synonyms of each."""

LONGEST_RUN = 16  # characters of a script without spaces


class Match(NamedTuple):
    """A word or phrase of a text, half-open in code points, and its synonyms in the same case."""

    start: int
    end: int
    synonyms: tuple[str, ...]


class Synonyms:
    """Tables by language: `en`, `zh`, ..., or an empty name for a table that serves any language."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables = dict(tables)
        self._reach = {name: _longest_phrases(table) for name, table in self.tables.items()}

    def find(self, text: str, language: str = "", edges: Sequence[int] = ()) -> Iterator[Match]:
        """Words and phrases with synonyms, the longest at each place, from left to right; they do not overlap.

        Args:
            text: any text.
            language: of the text, as in a manifest; empty: unknown, all tables are used.
            edges: places that no match may lie across, such as those where entities begin and end.
        """
        names = [name for name in self.tables if not name or is_language(language, name)]
        tables, reaches = [self.tables[name] for name in names], [self._reach[name] for name in names]
        edges = sorted(edges)
        words = list(find_words(text)) if tables else []
        skipped_to = 0
        for place, word in enumerate(words):
            if word.start < skipped_to:
                continue
            if word.is_unspaced:
                yield from _find_in_run(text, word, tables, edges)
                continue
            first = text[word.start : word.end]
            reach = max(max(table.get(first, 0), table.get(first.lower(), 0)) for table in reaches)
            if reach and (match := _find_phrase(text, words[place : place + reach], tables, edges)):
                skipped_to = match.end
                yield match


def _longest_phrases(table: Table) -> dict[str, int]:
    """For the first word of each phrase, the words of the longest phrase that begins with it."""
    reach: dict[str, int] = {}
    for phrase in table:
        words = phrase.split(" ")
        reach[words[0]] = max(len(words), reach.get(words[0], 0))
    return reach


def _find_phrase(text: str, words: Sequence[Word], tables: Sequence[Table], edges: Sequence[int]) -> Match | None:
    """The longest phrase with synonyms that begins with the first of some words and has single spaces."""
    start, reach = words[0].start, 1
    while reach < len(words) and text[words[reach - 1].end : words[reach].start] == " ":
        reach += 1
    for count in range(reach, 0, -1):
        end = words[count - 1].end
        if _crosses(start, end, edges):
            continue
        phrase = text[start:end]
        if found := _look_up(phrase, tables):
            return None if _is_in_a_synonym(text, start, phrase, found) else Match(start, end, found)
        # A capital letter within a sentence marks a name, which has no synonyms.
        if phrase != phrase.lower() and (phrase.isupper() or starts_sentence(text, start)):
            recase = str.upper if phrase.isupper() and len(phrase) > 1 else capitalised
            if found := tuple(map(recase, _look_up(phrase.lower(), tables))):
                return None if _is_in_a_synonym(text, start, phrase, found) else Match(start, end, found)
    return None


def _find_in_run(text: str, run: Word, tables: Sequence[Table], edges: Sequence[int]) -> Iterator[Match]:
    """The longest words with synonyms in a run without spaces.

    A character alone counts only between edges: elsewhere it is mostly a part of a longer word that no table has.
    """
    borders = {run.start, run.end, *edges}
    start = run.start
    while start < run.end:
        for end in range(min(start + LONGEST_RUN, run.end), start, -1):
            if (end == start + 1 and not {start, end} <= borders) or _crosses(start, end, edges):
                continue
            found = _look_up(text[start:end], tables)
            if found and not cuts_word(text, start) and not cuts_word(text, end):
                if not _is_in_a_synonym(text, start, text[start:end], found):
                    yield Match(start, end, found)
                start = end
                break
        else:
            start += 1


def _look_up(phrase: str, tables: Sequence[Table]) -> tuple[str, ...]:
    """The synonyms of a phrase from all tables, without the phrase itself."""
    found = dict.fromkeys(synonym for table in tables for synonym in table.get(phrase, ()))
    found.pop(phrase, None)
    return tuple(found)


def _is_in_a_synonym(text: str, start: int, phrase: str, synonyms: Sequence[str]) -> bool:
    """Whether the phrase already stands as a part of a synonym, as `car` does in `motor car`."""
    for synonym in synonyms:
        before = synonym.casefold().find(phrase.casefold())
        place = start - before
        if before >= 0 and place >= 0 and text[place : place + len(synonym)].casefold() == synonym.casefold():
            return True
    return False


def _crosses(start: int, end: int, edges: Sequence[int]) -> bool:
    """Whether one of the sorted edges lies within an interval."""
    return bisect_right(edges, start) < bisect_left(edges, end)


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
