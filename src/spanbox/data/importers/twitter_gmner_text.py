"""The texts of Twitter-GMNER: tweets and where their entities stand, from either of the two forms in use.

Columns: `IMGID:<id>`, then a token a line with its tag after a tab (FMNERG: two tags, coarse and fine), a blank line
after each tweet. JSON: a list of `{content, img_id, ans: [{ent}]}`, where an entity is found by its text.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from spanbox.data.importers import SplitSummary, check_id
from spanbox.errors import DataError

EntityTypes = Literal["coarse", "fine"]

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
    """The tweets of a file in either form; what is odd about them goes to `summary`.

    Raises:
        DataError: the file is not UTF-8, a line is wrong, an id is no file name, or there are no tweets.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
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
    tweets: list[tuple[str, list[tuple[str, str]]]] = []
    # Not splitlines(): a token may hold a character that only Python takes for the end of a line.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.startswith("IMGID:"):
            tweets.append((check_id(line.removeprefix("IMGID:").strip(), f"{path}, line {number}"), []))
        elif line.strip():
            token, *tags = line.split("\t")
            if not (tweets and token.strip() and len(tags) in (1, 2) and all(map(_TAG.fullmatch, tags))):
                raise DataError(
                    f"{path}, line {number}: {line!r} is no line of a tweet; expected IMGID:<id> first, then token, "
                    "tab, tag (O, B-TYPE or I-TYPE), in FMNERG followed by another tab and tag"
                )
            tweets[-1][1].append((token, tags[-1] if entity_types == "fine" else tags[0]))
    for image_id, tagged in tweets:
        yield _join_tokens(image_id, tagged, summary)


def _join_tokens(image_id: str, tagged: Iterable[tuple[str, str]], summary: SplitSummary) -> Tweet:
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
            mentions.append(Mention(position, end, kind))
        tokens.append(token)
        position, open_type = end + 1, kind
    return Tweet(image_id, " ".join(tokens), mentions)


class _JsonEntity(msgspec.Struct):
    ent: str


class _JsonTweet(msgspec.Struct):
    content: str
    img_id: str
    ans: list[_JsonEntity]


def _read_json(path: Path, content: str, summary: SplitSummary) -> Iterator[Tweet]:
    try:
        items = msgspec.json.decode(content, type=list[_JsonTweet])
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}; expected a list of {{content, img_id, ans: [{{ent}}]}}") from None
    for number, item in enumerate(items, start=1):
        image_id = check_id(item.img_id.removeprefix("IMGID:").strip(), f"{path}, tweet {number}")
        text = " ".join(item.content.split())
        mentions: list[Mention] = []
        for entity in item.ans:
            mention = _find_mention(text, " ".join(entity.ent.split()), mentions)
            if mention is None:
                summary.add("entity not found in its text", image_id, repr(entity.ent))
            else:
                mentions.append(mention)
        yield Tweet(image_id, text, sorted(mentions))


def _find_mention(text: str, name: str, taken: list[Mention]) -> Mention | None:
    """The first place of `name` that no other entity has taken.

    Whole tokens come before parts of tokens, and places after the previous entity before earlier ones: names are listed
    in the order of the text.
    """
    pattern = re.escape(name)
    previous_end = taken[-1].end if taken else 0
    for edges in (rf"(?<!\S){pattern}(?!\S)", pattern):
        places = [Mention(*match.span(), "") for match in re.finditer(edges, text) if name]
        for place in sorted(places, key=lambda place: place.start < previous_end):
            if all(place.end <= other.start or other.end <= place.start for other in taken):
                return place
    return None
