"""The texts of Twitter-GMNER: tweets and their entities, from either of the two forms in use.

Columns: `IMGID:<id>`, then one token per line with its tag after a tab (FMNERG: two tags, coarse and fine), a blank
line after each tweet. JSON: a list of `{content, img_id, ans: [{ent}]}`, where an entity is found by its text.
"""

import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from spanbox.data.importers import SplitSummary, check_id, read_file
from spanbox.errors import DataError

EntityTypes = Literal["coarse", "fine"]

MAX_BYTES = 8 * 1024 * 1024  # of a file of texts; the published ones have 1
MAX_CHARACTERS = 4_000  # of a tweet
MAX_ENTITIES = 200  # of a tweet

_TAG = re.compile(r"O|[BI]-.+")


class Mention(NamedTuple):
    """An entity in the text of a tweet."""

    start: int  # characters, half-open
    end: int
    type: str


class Tweet(NamedTuple):
    """A tweet, its white space collapsed, and the name of its image without `.jpg`."""

    image_id: str
    text: str
    mentions: list[Mention]


def read_tweets(path: Path, entity_types: EntityTypes, summary: SplitSummary) -> list[Tweet]:
    """The tweets of a file in either form; their oddities go to `summary`.

    Raises:
        DataError: the file or a tweet is too large, it is not UTF-8, a line is wrong, an id cannot be a file name,
            or there are no tweets.
    """
    try:
        content = read_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error})") from None
    is_json = path.suffix == ".json"
    read = _read_json(path, content, summary) if is_json else _read_columns(path, content, entity_types, summary)
    tweets = []
    for tweet in read:
        if tweet.text:
            tweets.append(tweet)
        else:
            summary.add("tweet without text", tweet.image_id, "left out")
    if not tweets:
        raise DataError(f"{path}: holds no tweets; expected IMGID:<id> lines with tokens, or the JSON form")
    return tweets


def _read_columns(path: Path, content: str, entity_types: EntityTypes, summary: SplitSummary) -> Iterator[Tweet]:
    image_id = None
    tagged: list[tuple[str, str]] = []
    where = ""
    # Not splitlines(): a token may hold a character that only Python takes for the end of a line.
    for number, line in enumerate(io.StringIO(content, newline=None), start=1):
        line = line.rstrip("\n")
        if line.startswith("IMGID:"):
            if image_id is not None:
                yield _join_tokens(image_id, tagged, where, summary)
            where = f"{path}, line {number}"
            image_id, tagged = check_id(line.removeprefix("IMGID:").strip(), where), []
        elif line.strip():
            token, *tags = line.split("\t")
            valid = token.strip() and len(tags) in (1, 2) and all(map(_TAG.fullmatch, tags))
            if image_id is None or not valid:
                raise DataError(
                    f"{path}, line {number}: {line[:100]!r} is not a line of a tweet; expected IMGID:<id> first, then "
                    "token, tab, tag (O, B-TYPE or I-TYPE), in FMNERG followed by another tab and tag"
                )
            tagged.append((token, tags[-1] if entity_types == "fine" else tags[0]))
            _check_size(where, len(tagged), 0)  # before it fills the memory
    if image_id is not None:
        yield _join_tokens(image_id, tagged, where, summary)


def _join_tokens(image_id: str, tagged: Iterable[tuple[str, str]], where: str, summary: SplitSummary) -> Tweet:
    tokens: list[str] = []
    mentions: list[Mention] = []
    position, open_type = 0, ""
    for token, tag in tagged:
        prefix, _, kind = tag.partition("-")
        end = position + len(token)
        if prefix == "I" and kind == open_type:
            mentions[-1] = mentions[-1]._replace(end=end)
        elif prefix != "O":
            if prefix == "I":
                summary.add("I- tag without a B- tag", image_id, f"{token!r} is read as the start of an entity")
            mentions.append(Mention(position, end, sys.intern(kind)))
        tokens.append(token)
        position, open_type = end + 1, kind
    text = " ".join(tokens)
    _check_size(where, len(text), len(mentions))
    return Tweet(image_id, text, mentions)


def _check_size(where: str, characters: int, entities: int) -> None:
    if characters > MAX_CHARACTERS or entities > MAX_ENTITIES:
        raise DataError(
            f"{where}: this tweet has {characters} characters or more and {entities} entities; at most "
            f"{MAX_CHARACTERS} and {MAX_ENTITIES} are read"
        )


class _JsonEntity(msgspec.Struct):
    ent: str


class _JsonTweet(msgspec.Struct):
    content: str
    img_id: str
    ans: list[_JsonEntity]


def _read_json(path: Path, content: str, summary: SplitSummary) -> Iterator[Tweet]:
    try:
        items = msgspec.json.decode(content, type=list[_JsonTweet])
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{path}: {error}; expected a list of {{content, img_id, ans: [{{ent}}]}}") from None
    for number, item in enumerate(items, start=1):
        where = f"{path}, tweet {number}"
        image_id = check_id(item.img_id.removeprefix("IMGID:").strip(), where)
        text = " ".join(item.content.split())
        _check_size(where, len(text), len(item.ans))
        mentions: list[Mention] = []
        for entity in item.ans:
            mention = _find_mention(text, " ".join(entity.ent.split()), mentions)
            if mention is None:
                summary.add("entity not found in its text", image_id, repr(entity.ent))
            else:
                mentions.append(mention)
        yield Tweet(image_id, text, sorted(mentions))


def _find_mention(text: str, name: str, taken: list[Mention]) -> Mention | None:
    """The first place of `name` that no other entity has taken. White space is collapsed in both.

    Whole tokens come before parts of tokens, and places after the previous entity before earlier ones: names are listed
    in the order of the text.
    """
    if not name:
        return None
    previous_end = taken[-1].end if taken else 0
    for searched, wanted in ((f" {text} ", f" {name} "), (text, name)):
        for position in dict.fromkeys((previous_end, 0)):
            while (start := searched.find(wanted, position)) >= 0:
                end = start + len(name)
                overlapping = [other.end for other in taken if other.start < end and start < other.end]
                if not overlapping:
                    return Mention(start, end, "")
                position = max(overlapping)
    return None
