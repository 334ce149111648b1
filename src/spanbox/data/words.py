"""Words of a text in any script, and the English indefinite article.

A word is a run of letters, digits and the marks that belong to them; a hyphen or an apostrophe between letters is part
of it. Chinese, Japanese, Thai and a few other scripts write no spaces between words: of them a whole run is one `Word`,
in which only a list of known words finds the parts.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

_JOINERS = "\u200c\u200d"  # between letters of Persian and of Indian scripts
_INNER = "'’‐-"
_MAY_BE_MARKS = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
# Scripts in which a name is whole words: Korean and Arabic attach particles to it.
_WITHOUT_PARTICLES = ("LATIN ", "GREEK ", "CYRILLIC ", "ARMENIAN ", "GEORGIAN ", "DIGIT ", "COMBINING ")
_INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zs", "Zl", "Zp")  # not "Cn": an emoji newer than the Unicode of this Python
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs without ink
_SAID_AS_A_CONSONANT = re.compile(r"eu|ew|one\b|once\b|uni([^nmd]|mo)|u[bcfhjkqrst][aeiou]|ouija")
_SILENT_H = re.compile(r"hour|honest|hono|heir")
_LETTERS_WITH_A_VOWEL = "AEFHILMNORSX"  # of which the English names begin with one
_WINDOW = 40  # characters before a word that are searched
_SENTENCE_END = re.compile(r"[.!?。！？…:：\n]\W*$")


class Word(NamedTuple):
    """A word, or a run of words that are written without spaces; half-open, in code points."""

    start: int
    end: int
    is_unspaced: bool


def find_words(text: str) -> Iterator[Word]:
    """The words of a text, in their order."""
    for match in _word_pattern().finditer(text):
        start, end = match.span()
        yield Word(start, end, not text.isascii() and _UNSPACED.search(text, start, end) is not None)


@cache
def _word_pattern() -> re.Pattern[str]:
    """A letter or digit; then letters, digits, their marks, and joiners, hyphens or apostrophes before another one."""
    marks = "".join(character for character in map(chr, _MAY_BE_MARKS) if _is_mark(character))
    return re.compile(rf"[^\W_](?:[^\W_]|[{marks}]|[{_JOINERS}{_INNER}](?=[^\W_]))*")


def _is_mark(character: str) -> bool:
    """Whether a character belongs to the letter before it: an accent, a vowel sign."""
    return unicodedata.category(character)[0] == "M"


def is_invisible(text: str) -> bool:
    """Whether a text holds no visible character: white space, characters of width zero and the like."""
    return all(unicodedata.category(character) in _INVISIBLE or character in _FILLERS for character in text)


def end_of_marks(text: str, end: int) -> int:
    """The end of an interval together with the marks of its last character, such as accents apart from their letter.

    Tokenizers that remove accents leave them out of the characters of a token.
    """
    while 0 < end < len(text) and _is_mark(text[end]):
        end += 1
    return end


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script without spaces between words."""
    return _UNSPACED.match(character) is not None


def cuts_word(text: str, place: int) -> bool:
    """Whether `place` is between two letters of a word in a script with spaces, or between a letter and its mark."""
    if not 0 < place < len(text):
        return False
    if _is_mark(text[place]):
        return True
    is_within = (text[place - 1].isalnum() or _is_mark(text[place - 1])) and text[place].isalnum()
    return is_within and not (_UNSPACED.match(text, place - 1) or _UNSPACED.match(text, place))


def surely_cuts_word(text: str, place: int) -> bool:
    """Whether `place` is inside a word of a script without attached particles, so that no name begins or ends there."""
    return 0 < place < len(text) and _is_of_whole_word(text[place - 1]) and _is_of_whole_word(text[place])


@cache
def _is_of_whole_word(character: str) -> bool:
    is_part = character.isalnum() or unicodedata.category(character) == "Mn"
    return is_part and unicodedata.name(character, "").startswith(_WITHOUT_PARTICLES)


def starts_sentence(text: str, place: int) -> bool:
    """Whether a word at `place` is the first of a sentence, so that its capital letter means nothing."""
    before = text[max(0, place - _WINDOW) : place]
    return not any(map(str.isalnum, before)) or _SENTENCE_END.search(before) is not None


def primary_language(tag: str) -> str:
    """The language of a tag such as `en-GB` or `zh_TW`: `en`, `zh`."""
    return tag.lower().replace("_", "-").split("-")[0]


def is_language(tag: str, name: str) -> bool:
    """Whether a language tag is of a language; an empty one may be of any."""
    return not tag or primary_language(tag) == name


def is_english_or_chinese(tag: str) -> bool:
    """Whether a language tag is of a language whose negations, numbers and directions are known, or is empty."""
    return is_language(tag, "en") or is_language(tag, "zh")


def indefinite_article(word: str) -> str:
    """`a` or `an`, by the sound of the English word that follows."""
    if word[:1].isdigit():
        return "an" if word.startswith("8") or re.match(r"1[18](\D|$)", word) else "a"
    if re.match(r"[A-Z]([A-Z]*$|\W|\d)", word):
        return "an" if word[0] in _LETTERS_WITH_A_VOWEL else "a"  # said letter by letter: an X-ray, a UFO
    plain = unicodedata.normalize("NFKD", word.lower())
    if _SAID_AS_A_CONSONANT.match(plain):
        return "a"
    return "an" if plain[:1] in "aeiou" or _SILENT_H.match(plain) else "a"
