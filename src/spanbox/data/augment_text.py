"""Changed texts that are still true, with the spans of their entities moved along.

    a paraphrase or the text  ->  swap of clauses  ->  synonyms  ->  deletion of words  ->  article (a, an)

Each change is an `EditMap`: offsets follow from the edit and are never searched for. A change that would lose an entity
is not made. All draws come from one generator per sample.

J. Wei and K. Zou, EDA: Easy Data Augmentation Techniques, EMNLP 2019 (synonyms, deletion). Random insertion and random
swap of words, which EDA has too, are left out: they make unnatural texts.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from spanbox.data.synonyms import Synonyms
from spanbox.data.words import find_words, indefinite_article, is_english_or_chinese, is_language, starts_sentence
from spanbox.settings import PathText, Settings, list_of_presets, with_preset
from spanbox.spans import CharSpan, EditMap, Piece, merge_spans

# Without these words a text would mean the opposite, or state another number.
_NUMBER = (
    "(zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven|eigh|nine)teen|"
    "(twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|billion|trillion|dozen|half|quarter)s?"
)
_NEVER_DELETED = re.compile(
    "no|not|never|none|nor|neither|nobody|nothing|nowhere|without|cannot|hardly|barely|scarcely|except|but|unless|if|only|"
    rf"non|lack|lacks|lacking|fake|former|.*n['’]t|.*\d.*|{_NUMBER}([‐-].+)?"
)
_NEVER_DELETED_ZH = re.compile(r"[不没沒无無非未别別假]|除了|[\d零〇一二两兩三四五六七八九十百千万萬亿億半]")
# Clauses that refer to others, or continue them, stay in their order.
_REFERRING = re.compile(
    "(it|its|itself|he|him|his|himself|she|her|hers|herself|they|them|their|theirs|themselves|this|that|these|those|"
    "latter|former|first|second|third|last|others?|another|ones?|each|either|neither|both|such|same|here|there|then|so|"
    "but|and|or|because|therefore|however|also|too|instead|while|although|though|since|until|after|before|finally|next|"
    "later)('[a-z]+)?"  # it's, they're
)
_REFERRING_ZH = re.compile(
    "[它牠他她其此该該这這那]|前者|[后後]者|[二两兩]者|各自|另|第[一二三四]|然[后後]|但|而|所以|因此|因[为為]|接[着著]|[还還]有|[并並]|也|又|再|"
    "[随隨][后後]|最[后後]|之[后後]|之前|不[过過]"
)
# Openings that refer to no other clause.
_INDEPENDENT = "there is", "there's", "there are", "there was", "there were", "这里", "這裡", "這裏"
_QUOTES = re.compile('["“”‘’「」『』《》()（）\\[\\]]')
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|No|Inc|Ltd|Co|approx|a\.m|p\.m)|\b\w)$", re.I
)
_TERMINATOR = re.compile(r"(?<![.!?;])[.!?;]+(?=\s|$)|[。！？；]+")  # from the first mark, or long runs take long
_AFTER_A_WORD = re.compile(r"[,.!?;:]*(\s|$)")
_ARTICLE = re.compile(r"(?<!\S)(?P<article>an?|An?|AN)\s+(?P<word>\w[\w'’-]*)")


PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"paraphrases": 0.3, "synonyms": 0.1, "swap": 0.1},
    "standard": {"paraphrases": 0.5, "synonyms": 0.2, "deletion": 0.05, "swap": 0.3},
    "strong": {"paraphrases": 0.7, "synonyms": 0.4, "deletion": 0.15, "swap": 0.5, "entities": "replace"},
}


class TextAugmentSettings(Settings):
    """Random changes of the text of a pair."""

    preset: Literal["none", "light", "standard", "strong"] = Field(
        "none",
        description=f"values of the other settings of this section that are not given ({list_of_presets(PRESETS)})",
    )
    paraphrases: float = Field(
        0.0, ge=0, le=1, description="probability that one of the pair's paraphrases takes the place of its text"
    )
    synonyms: float = Field(0.0, ge=0, le=1, description="probability that a word with synonyms is replaced by one")
    deletion: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="probability that a word is deleted; negations, numbers and entities stay; texts whose `lang` is "
        "neither English nor Chinese keep all words",
    )
    swap: float = Field(
        0.0, ge=0, le=1, description="probability that two clauses that do not refer to each other change places"
    )
    entities: Literal["protect", "replace"] = Field(
        "protect", description="entities: protect them, or replace them or their words by synonyms, spans moving along"
    )
    sources: tuple[PathText, ...] = Field(
        ("built-in",),
        description="synonyms: built-in, folders with WordNet's database files, tab files of the Open Multilingual "
        "WordNet, tables separated by tabs",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, given: Any) -> Any:
        return with_preset(given, PRESETS)

    @property
    def active(self) -> bool:
        """Whether anything may change."""
        return bool(self.paraphrases or self.edits)

    @property
    def edits(self) -> bool:
        """Whether words may change."""
        return bool(self.synonyms or self.deletion or self.swap)


class Change(NamedTuple):
    """Words that were replaced (`new` is empty: deleted)."""

    old: str
    new: str


@dataclass(frozen=True)
class AugmentedText:
    """A text with its spans, and the changes made so far."""

    text: str
    spans: tuple[CharSpan, ...]
    changes: tuple[Change, ...] = ()

    def edited(self, edit: EditMap, changes: Sequence[Change] = ()) -> "AugmentedText | None":
        """After an edit that made these changes; None if it loses a span."""
        spans = edit.map_spans(self.spans)
        return None if spans is None else AugmentedText(edit.text, tuple(spans), (*self.changes, *changes))


def augment_text(
    text: str,
    spans: Sequence[CharSpan],
    language: str,
    settings: TextAugmentSettings,
    synonyms: Synonyms,
    generator: np.random.Generator,
) -> AugmentedText:
    """The text with clauses swapped, words replaced and words deleted, as the settings and the generator have it.

    Args:
        text: any text.
        spans: of its entities, in code points; each is kept, as it is or with its replacement.
        language: of the text, as in a manifest; may be empty.
        settings: probabilities; paraphrases are not drawn here.
        synonyms: those of `settings.sources`.
        generator: of this sample alone.
    """
    current = AugmentedText(text, tuple(spans))
    if settings.swap and generator.random() < settings.swap:
        current = _swap_clauses(current, language, generator)
    if settings.synonyms:
        pieces = _replacements(current, language, settings, synonyms, generator)
        current = _apply(current, pieces, language)
    if settings.deletion:
        pieces = _deletions(current, language, settings.deletion, synonyms, generator)
        current = _apply(current, pieces, language)
    return current


def _apply(current: AugmentedText, pieces: list[Piece], language: str) -> AugmentedText:
    """Make the changes, and fit the articles before them."""
    if not pieces:
        return current
    pieces = sorted(pieces)
    changes = [Change(current.text[start:end].strip(), new or "") for start, end, new in pieces]
    changed = current.edited(EditMap.replace(current.text, pieces), changes)
    assert changed is not None, "no piece crosses a span"
    if not is_language(language, "en"):
        return changed
    articles = list(_unfit_articles(current.text, changed.text, pieces))
    fitted = changed.edited(EditMap.replace(changed.text, articles)) if articles else None
    return fitted or changed


def _unfit_articles(before: str, after: str, pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Replacements, in the new text, of indefinite articles that fitted the word after them and no longer do."""
    shift = 0
    for start, end, new_text in pieces:
        old, new = _article_and_word(before, start), _article_and_word(after, start + shift)
        shift += len(new_text or "") - (end - start)
        if old is None or new is None or indefinite_article(old["word"]) != old["article"].lower():
            continue
        is_capital = old["article"][0] == "A"
        if is_capital and not (old["word"].isupper() or starts_sentence(before, old.start())):
            continue  # the letter, as in vitamin A
        article = indefinite_article(new["word"])
        if article != new["article"].lower():
            shouted = is_capital and len(new["word"]) > 1 and new["word"].isupper()
            yield Piece(
                *new.span("article"), article.upper() if shouted else article.capitalize() if is_capital else article
            )


def _article_and_word(text: str, place: int) -> re.Match[str] | None:
    """The indefinite article that ends before `place`, white space aside, and the word after it."""
    start = place
    while start and text[start - 1].isspace():
        start -= 1
    return _ARTICLE.match(text, max(start - 1, 0)) or _ARTICLE.match(text, max(start - 2, 0))


def _replacements(
    current: AugmentedText,
    language: str,
    settings: TextAugmentSettings,
    synonyms: Synonyms,
    generator: np.random.Generator,
) -> list[Piece]:
    edges = [edge for span in current.spans for edge in span]
    protected = merge_spans(current.spans) if settings.entities == "protect" else []
    pieces = []
    for match in synonyms.find(current.text, language, edges):
        if _overlaps(match.start, match.end, protected):
            continue
        if generator.random() < settings.synonyms:
            chosen = match.synonyms[int(generator.integers(len(match.synonyms)))]
            pieces.append(Piece(match.start, match.end, chosen))
    return pieces


def _deletions(
    current: AugmentedText, language: str, share: float, synonyms: Synonyms, generator: np.random.Generator
) -> list[Piece]:
    protected = merge_spans(current.spans)
    pieces = [
        Piece(start, end, "")
        for start, end in _deletable(current, language, synonyms)
        if not _overlaps(start, end, protected) and generator.random() < share
    ]
    left = EditMap.replace(current.text, pieces).text
    return pieces if any(map(str.isalnum, left)) else []


def _deletable(current: AugmentedText, language: str, synonyms: Synonyms) -> Iterator[CharSpan]:
    """Words that may be deleted, with the white space before them.

    The first word of a sentence stays, and the one after an indefinite article. Of a script without spaces only words
    that have synonyms are known as such. Negations and numbers are known of English and Chinese only.
    """
    if not is_english_or_chinese(language):
        return
    text, words = current.text, list(find_words(current.text))
    for start, end, is_unspaced in words:
        if is_unspaced or starts_sentence(text, start) or not _stands_alone(text, start, end):
            continue
        if is_language(language, "en") and _article_and_word(text, start):
            continue
        if not _NEVER_DELETED.fullmatch(text[start:end].lower()):
            yield len(text[:start].rstrip()), end
    if any(word.is_unspaced for word in words):
        edges = [edge for span in current.spans for edge in span]
        for match in synonyms.find(text, language, edges):
            found = text[match.start : match.end]
            if next(find_words(found)).is_unspaced and not _NEVER_DELETED_ZH.search(found):
                yield match.start, match.end


def _stands_alone(text: str, start: int, end: int) -> bool:
    return text[start - 1].isspace() and _AFTER_A_WORD.match(text, end) is not None


def _overlaps(start: int, end: int, merged: Sequence[CharSpan]) -> bool:
    """Whether an interval has a part of one of the merged spans."""
    place = bisect_left(merged, (end, 0)) - 1  # the last span that starts before the end
    return place >= 0 and start < merged[place][1]


class _Clause(NamedTuple):
    start: int
    end: int  # of its words
    closed: int  # of its punctuation


def _swap_clauses(current: AugmentedText, language: str, generator: np.random.Generator) -> AugmentedText:
    """Two neighbouring clauses change places, if some can."""
    text, clauses = current.text, list(_clauses(current.text))
    movable = [_is_movable(text[clause.start : clause.end], language) for clause in clauses]
    pairs = [
        (first, second)
        for i, (first, second) in enumerate(pairwise(clauses))
        if movable[i] and movable[i + 1] and text[first.start].isupper() == text[second.start].isupper()
    ]
    if not pairs:
        return current
    first, second = pairs[int(generator.integers(len(pairs)))]
    marks = {text[clause.end : clause.closed] for clause in (first, second)} - {""}
    # Equal marks stay in their places; a question takes its mark along.
    one, two = ((c.start, c.end if len(marks) < 2 else c.closed) for c in (first, second))
    pieces = [Piece(0, one[0]), Piece(*two), Piece(one[1], two[0]), Piece(*one), Piece(two[1], len(text))]
    edit = EditMap(text, pieces)
    change = Change(text[one[0] : two[1]], edit.text[one[0] : two[1]])
    return current.edited(edit, [change]) or current


def _clauses(text: str) -> Iterator[_Clause]:
    """Sentences, and parts of them between semicolons."""
    start = 0
    for mark in [*_TERMINATOR.finditer(text), None]:
        end, closed = mark.span() if mark else (len(text), len(text))
        if mark and mark[0] == "." and _ABBREVIATION.search(text[max(0, end - 12) : end]):
            continue
        words = text[start:end]
        begin = start + len(words) - len(words.lstrip())
        if words.strip():
            yield _Clause(begin, begin + len(words.strip()), closed if mark else begin + len(words.strip()))
        start = closed


def _is_movable(clause: str, language: str) -> bool:
    """Whether a clause has the same meaning in another place. Only English and Chinese can be judged."""
    if not is_english_or_chinese(language) or _QUOTES.search(clause):
        return False
    plain = clause.lower()
    for opening in _INDEPENDENT:
        plain = plain.removeprefix(opening)
    words = [plain[start:end] for start, end, _ in find_words(plain)]
    return bool(words) and not any(map(_REFERRING.fullmatch, words)) and not _REFERRING_ZH.search(plain)
