"""Synonyms from local files: WordNet, the Open Multilingual WordNet, plain tables, and the built-in list.

The sense and the part of speech of a word in its sentence are not determined, so only synonyms are used that
almost certainly keep the meaning:

- WordNet's database files (`data.noun`, `index.noun`, ...; English): a word is replaced if nearly all of its counted
  uses (`cntlist.rev`), of all parts of speech, are in one sense, by words whose commonest sense is the same one. A word
  without counted uses must have one sense alone.
- Tab files of the Open Multilingual WordNet (`wn-data-cmn.tab`) count no uses: a word is replaced by those that share
  all of its senses, and so its part of speech.
- A plain table is used as it is: per line a word or phrase, then its synonyms, separated by tabs.

Files are read as text within limits; nothing is executed or downloaded.

C. Fellbaum (ed.), WordNet: An Electronic Lexical Database, 1998; file formats: wndb(5WN), cntlist(5WN).
F. Bond and R. Foster, Linking and Extending an Open Multilingual Wordnet, ACL 2013.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from spanbox.data.synonyms import Synonyms, Table
from spanbox.documents import DocumentError, read_text
from spanbox.errors import DataError

BUILT_IN = "built-in"
MAX_BYTES = 64 * 2**20  # of a file
MAX_WORD = 100  # characters of a word or phrase; longer ones are left out
MAX_SYNONYMS = 32  # of a word; further ones are left out
CERTAIN = 0.9  # share of the counted uses of a word that its commonest sense must have
NO_SENSE = ("", 0.0)

_POS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
_POS_NUMBERS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}  # of sense keys; 5: an adjective like another one
_SYNSET = re.compile(r"\d{8}-[nvars]")
# Three letters name a language in the tab files, two in manifests.
_LANGUAGES = dict(
    re.findall(
        r"(\w+):(\w+)",
        "als:sq arb:ar bul:bg cat:ca cmn:zh dan:da deu:de ell:el eng:en eus:eu fas:fa fin:fi fra:fr glg:gl heb:he "
        "hrv:hr ind:id isl:is ita:it jpn:ja lit:lt nld:nl nno:nn nob:nb pol:pl por:pt qcn:zh ron:ro slk:sk slv:sl "
        "spa:es sqi:sq swe:sv tha:th zsm:ms",
    )
)
_EXPECTED = (
    "expected 'built-in', a folder with WordNet's database files (Debian: apt install wordnet-base, then "
    "/usr/share/wordnet), a tab file of the Open Multilingual WordNet (wn-data-cmn.tab), or a table with a word and "
    "its synonyms per line, separated by tabs"
)


def load_synonyms(sources: Sequence[str]) -> Synonyms:
    """Synonyms of several sources together; see the module for their kinds.

    Raises:
        DataError: a source is missing, of none of these kinds, beyond the limits, or has a wrong line.
    """
    tables: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for source in sources:
        for language, table in _read_source(source):
            merged = tables[language]
            for word, synonyms in table.items():
                merged[word] = tuple(dict.fromkeys((*merged.get(word, ()), *synonyms)))[:MAX_SYNONYMS]
    return Synonyms(tables)


def _read_source(source: str) -> Iterator[tuple[str, Table]]:
    """The tables of one source, with their languages."""
    if source == BUILT_IN:
        for language in ("en", "zh"):
            path = Path(str(files("spanbox.data") / "vocabulary" / f"{language}.tsv"))
            yield language, read_table(path)
        return
    path = Path(source)
    if not path.exists():
        raise DataError(f"data.augment.text.sources: {source}: no such file or folder; {_EXPECTED}")
    if not path.is_dir():
        yield _read_tab_file(path)
    elif any((path / f"data.{pos}").exists() for pos in _POS):
        yield "en", read_wordnet(path)
    else:
        tabs = sorted(path.glob("*.tab"))
        if not tabs:
            raise DataError(f"data.augment.text.sources: {source}: has neither data.noun nor a .tab file; {_EXPECTED}")
        for tab in tabs:
            yield _read_tab_file(tab)


def _read_tab_file(path: Path) -> tuple[str, Table]:
    first = next((line for _, line in _lines(path)), "")
    return read_multilingual(path) if _SYNSET.match(first) else ("", read_table(path))


def _text(path: Path) -> str:
    try:
        return read_text(path, MAX_BYTES)
    except (DocumentError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as a file of synonyms: {reason}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is neither blank nor a comment (`#`)."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.rstrip("\r")


def read_table(path: Path) -> Table:
    """A table of words: per line a word or phrase, then its synonyms, separated by tabs. Raises DataError."""
    table: dict[str, tuple[str, ...]] = {}
    for number, line in _lines(path):
        word, *synonyms = (" ".join(cell.split()) for cell in line.split("\t"))
        synonyms = [synonym for synonym in synonyms if synonym]
        if not word or not synonyms:
            raise DataError(
                f"{path}, line {number}: {line[:40]!r} has no synonym; expected a word and its synonyms, separated by "
                "tabs"
            )
        if _is_usable(word):
            table[word] = (*table.get(word, ()), *filter(_is_usable, synonyms))
    return table


def read_multilingual(path: Path) -> tuple[str, Table]:
    """A tab file of the Open Multilingual WordNet: its language, and the words that share all senses of another one.

    Raises:
        DataError: a line that is not `synset TAB language:lemma TAB word`, or several languages.
    """
    senses: dict[str, set[str]] = defaultdict(set)
    members: dict[str, list[str]] = defaultdict(list)
    code = ""
    for number, line in _lines(path):
        synset, _, rest = line.partition("\t")
        relation, _, word = rest.partition("\t")
        language, colon, kind = relation.partition(":")  # kinds of lemmas that are none: `arb:lemma:root`
        if not colon:  # as in older files, whose header alone has the language
            language, kind = "", relation
        if not _SYNSET.fullmatch(synset) or not kind or not word:
            raise DataError(
                f"{path}, line {number}: {line[:40]!r} is not an entry of the Open Multilingual WordNet; expected a "
                "synset such as 02084071-n, cmn:lemma and a word, separated by tabs"
            )
        if code and language != code:
            raise DataError(f"{path}, line {number}: the language {language!r} after {code!r}; expected one per file")
        code = language
        if kind == "lemma":
            word = " ".join(word.replace("_", " ").replace("+", "").split())
            if word not in members[synset]:
                members[synset].append(word)
            senses[word].add(synset)
    table = {}
    for word, own in senses.items():
        shared = [other for other in members[min(own)] if other != word and own <= senses[other]]
        if shared and _is_usable(word):
            table[word] = tuple(filter(_is_usable, shared))
    code = code or _language_of_header(path)
    return _LANGUAGES.get(code, code), table


def _language_of_header(path: Path) -> str:
    """The language of a first line `# name TAB language TAB ...`; empty without one."""
    name, _, rest = _text(path).partition("\n")[0].partition("\t")
    return rest.partition("\t")[0].strip() if name.startswith("#") else ""


def read_wordnet(folder: Path) -> Table:
    """WordNet's database files: each word with the others of its commonest sense, if nearly all uses have that sense.

    Names, which are written with a capital letter, are left out.

    Raises:
        DataError: a file is missing, beyond the limits, or has a wrong line.
    """
    uses = _read_counts(folder / "cntlist.rev")
    senses: dict[str, dict[str, list[str]]] = defaultdict(dict)  # lemma: part of speech: synsets, commonest first
    members: dict[str, tuple[str, ...]] = {}
    for name, pos in _POS.items():
        if (folder / f"data.{name}").exists() or (folder / f"index.{name}").exists():
            members |= _read_data(folder / f"data.{name}", pos)
            for lemma, synsets in _read_index(folder / f"index.{name}", pos):
                senses[lemma][pos] = synsets
    sense = {lemma.replace("_", " "): _likely_sense(by_pos, uses[lemma]) for lemma, by_pos in senses.items()}
    table = {}
    for word, (synset, share) in sense.items():
        words = members.get(synset, ())
        if share >= CERTAIN and word in words and _is_usable(word):
            others = [other for other in words if other != word and sense.get(other, NO_SENSE)[0] == synset]
            if others:
                table[word] = tuple(filter(_is_usable, others))
    return table


def _likely_sense(by_pos: dict[str, list[str]], uses: Counter[str]) -> tuple[str, float]:
    """The commonest sense of a word, a synset, and its share of the counted uses; without these its only sense."""
    if uses.total():
        (sense, count), *_ = uses.most_common(1)
        synsets, number = by_pos.get(sense[0], []), int(sense[1:])
        return (synsets[number - 1], count / uses.total()) if number <= len(synsets) else NO_SENSE
    synsets = [synset for own in by_pos.values() for synset in own]
    return (synsets[0], 1.0) if len(synsets) == 1 else NO_SENSE


def _read_counts(path: Path) -> dict[str, Counter[str]]:
    """Counted uses of each lemma by sense, such as `n1`; empty without the file."""
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    if path.exists():
        for number, line in _lines(path):
            try:
                key, sense, count = line.split(" ")
                lemma, _, rest = key.partition("%")
                if int(sense) < 1 or int(count) < 0:
                    raise ValueError("counts from 1")
                uses[lemma][f"{_POS_NUMBERS[rest[0]]}{int(sense)}"] += int(count)
            except (ValueError, KeyError, IndexError):
                raise _wrong_line(path, number, line, "a sense key, the number of the sense and a count") from None
    return uses


def _read_index(path: Path, pos: str) -> Iterator[tuple[str, list[str]]]:
    """Every lemma with its synsets, the commonest first."""
    for number, line in _lines(path):
        if line.startswith("  "):  # the licence
            continue
        try:
            lemma, _, count, pointers, *rest = line.split()
            synsets = rest[int(pointers) + 2 :]
            is_complete = len(synsets) == int(count) > 0
        except ValueError:
            is_complete = False
        if not is_complete:
            raise _wrong_line(path, number, line, "lemma, part of speech, counts and offsets of synsets")
        yield lemma, [f"{pos}{offset}" for offset in synsets]


def _read_data(path: Path, pos: str) -> dict[str, tuple[str, ...]]:
    """The words of every synset."""
    members = {}
    for number, line in _lines(path):
        if line.startswith("  "):
            continue
        fields = line.split("|")[0].split()
        try:
            count = int(fields[3], 16)
            words = fields[4 : 4 + 2 * count : 2]
            is_complete = len(words) == count > 0
        except (ValueError, IndexError):
            is_complete = False
        if not is_complete:
            raise _wrong_line(path, number, line, "offset, file, type, number of words and words")
        members[f"{pos}{fields[0]}"] = tuple(word.partition("(")[0].replace("_", " ") for word in words)
    return members


def _wrong_line(path: Path, number: int, line: str, expected: str) -> DataError:
    return DataError(f"{path}, line {number}: {line[:40]!r} is not a line of WordNet's database; expected {expected}")


def _is_usable(word: str) -> bool:
    return len(word) <= MAX_WORD
