"""Conventions of offsets are told from all spans of a set, in English, Chinese and beside emoji."""

import random
from collections.abc import Callable

import pytest

from spanbox.data.audit.spans import READINGS, SpanStatistics, without
from spanbox.data.manifest import Entity, Record

HOW_MANY = pytest.mark.parametrize("sets", [12, pytest.param(100, marks=pytest.mark.slow)])
ENGLISH = [
    "the",
    "cat",
    "and",
    ",",
    "a",
    "big",
    "dog",
    "runs",
    "over",
    "old",
    "bridge",
    "near",
    ":",
    "grey",
    "house",
    "with",
    "red",
    "roof",
    "while",
    "it",
    "rains",
]
CHINESE = ["一只", "红色的", "猫", "坐在", "公园", "里", "，", "旁边", "有", "长椅", "。", "小狗", "跑过", "石桥", "！"]
EMOJI = ["🐈", "🚗", "👩‍🚀", "🎻", "🏳️‍🌈", "❤️", "✨"]
Change = Callable[[str, int, int], tuple[int, int]]


def units(encoding: str, unit: int) -> Change:
    return lambda text, a, b: (len(text[:a].encode(encoding)) // unit, len(text[:b].encode(encoding)) // unit)


def leaving_out(left_out: Callable[[str], bool]) -> Change:
    def count(text: str) -> int:
        return sum(not left_out(character) for character in text)

    return lambda text, a, b: (count(text[:a]), count(text[:b]))


CONVENTIONS: dict[str | None, Change] = {
    None: lambda text, a, b: (a, b),
    "spans look like inclusive ends": lambda text, a, b: (a, b - 1),
    "spans look one too long": lambda text, a, b: (a, b + 1),
    "spans look counted from 1": lambda text, a, b: (a + 1, b + 1),
    "spans look one too low": lambda text, a, b: (a - 1, b - 1),
    "spans look like UTF-16 offsets": units("utf-16-le", 2),
    "spans look like byte offsets": units("utf-8", 1),
    "spans look like offsets without white space": leaving_out(str.isspace),
    "spans look like offsets without emoji": leaving_out(lambda c: c > "\uffff" or c in "\u200d\ufe0f"),
    "spans look like offsets without emoji and symbols": leaving_out(
        lambda c: c > "\uffff" or c in "\u200d\ufe0f\u2764\u2728"
    ),
}


def draw_set(seed: int, words: list[str], join: str, emoji: bool, change: Change, named: bool) -> list[Record]:
    generator = random.Random(seed)
    names = [word for word in words if word[0].isalpha()]
    records = []
    for number in range(60):
        parts, name = generator.choices(words, k=9), generator.choice(names)
        if emoji:
            parts[generator.randrange(4)] = generator.choice(EMOJI)
        place = generator.randrange(len(parts) + 1)
        text = join.join([*parts[:place], name, *parts[place:]])
        start = len(join.join(parts[:place])) + (len(join) if place else 0)
        given = change(text, start, start + len(name))
        identity = name if named and text.count(name) == 1 else ""
        records.append(Record(str(number), "a.png", text, entities=(Entity(*given, identity=identity),)))
    return records


def told(records: list[Record]) -> str | None:
    statistics = SpanStatistics()
    for line, record in enumerate(records, start=1):
        statistics.add(record, line)
    return statistics.reading()


@pytest.mark.slow
@HOW_MANY
@pytest.mark.parametrize("kind", CONVENTIONS, ids=str)
@pytest.mark.parametrize(("words", "join", "named"), [(ENGLISH, " ", False), (CHINESE, "", True)], ids=["en", "zh"])
def test_99_of_100_sets_are_told(kind: str | None, words: list[str], join: str, named: bool, sets: int) -> None:
    if kind == "spans look like offsets without white space" and not join:
        pytest.skip("there is no white space")
    right = sum(told(draw_set(seed, words, join, True, CONVENTIONS[kind], named)) == kind for seed in range(sets))
    assert right >= 0.99 * sets


@HOW_MANY
@pytest.mark.parametrize("kind", [None, "spans look like byte offsets"], ids=str)
def test_chinese_without_names_is_told_by_its_punctuation_and_its_end_or_not_at_all(
    kind: str | None, sets: int
) -> None:
    found = [told(draw_set(seed, CHINESE, "", True, CONVENTIONS[kind], False)) for seed in range(sets)]
    assert found.count(kind) >= 0.99 * sets


@pytest.mark.slow
@HOW_MANY
@pytest.mark.parametrize("kind", CONVENTIONS, ids=str)
def test_chinese_without_names_is_never_told_wrongly_for_long(kind: str | None, sets: int) -> None:
    """Cannot tell (None) is a right answer here; another convention is not."""
    found = [told(draw_set(seed, CHINESE, "", True, CONVENTIONS[kind], False)) for seed in range(sets)]
    assert sum(answer not in (kind, None) for answer in found) <= 0.01 * sets


def told_of(texts: list[str], names: tuple[str, str], change: Change) -> tuple[str | None, list[str]]:
    """The reading and the findings of spans of two names in each text."""
    statistics = SpanStatistics()
    for line, text in enumerate(texts, start=1):
        places = [(text.index(name), text.index(name) + len(name)) for name in names]
        spans = tuple(Entity(*change(text, *place)) for place in places)
        statistics.add(Record(str(line), "a.png", text, entities=spans), line)
    return statistics.reading(), [kind for kind, _, _ in statistics.findings()]


def test_of_readings_that_explain_the_same_spans_the_one_that_changes_fewer_counts() -> None:
    """All spans that are wrong follow an emoji; without their last character they would end before the comma, too."""
    texts = ["😀小狗，雨伞。", "小狗和雨伞在这里"] * 30
    kind = "spans look like UTF-16 offsets"
    assert told_of(texts, ("小狗", "雨伞"), CONVENTIONS[kind]) == (kind, [kind])


def test_readings_that_explain_the_spans_equally_well_cannot_be_told() -> None:
    change = CONVENTIONS["spans look counted from 1"]
    assert told_of(["小狗，旁边有雨伞。"] * 30, ("小狗", "雨伞"), change) == (None, ["spans of unknown convention"])


def test_the_finding_says_what_is_wrong_with_the_spans_and_what_they_may_be() -> None:
    statistics = SpanStatistics()
    for line in range(1, 31):
        statistics.add(Record(str(line), "a.png", "小狗，旁边有雨伞。", entities=(Entity(0, 3),)), line)
    ((_, _, detail),) = statistics.findings()
    wrong, _, readings = detail.partition("; ")
    assert wrong == (
        "30 of 30 spans cut a word, leave the text, begin or end with a space or a comma, or miss their name"
    )
    assert readings == "they may be inclusive ends or one too long or one too low or byte offsets"


@pytest.mark.parametrize("kind", ["spans look one too long", "spans look counted from 1"])
def test_in_scripts_with_particles_a_reading_parts_no_letters_without_need(kind: str) -> None:
    """A span that ends in a space may have a letter too many, or one too few of the next word."""
    assert told_of(["هنا كلب بجانب قطة صغيرة"] * 30, ("كلب", "قطة"), CONVENTIONS[kind]) == (kind, [kind])


def test_identities_that_are_a_part_of_their_word_are_no_other_convention() -> None:
    """`dogs` is the entity `dog`: not a span one too long."""
    statistics = SpanStatistics()
    for line in range(60):
        word = ("dogs", "cats", "cars")[line % 3]
        text = f"two {word} here"
        statistics.add(Record("1", "a.jpg", text, entities=(Entity(4, 8, identity=word[:-1]),)), line)
    assert statistics.reading() is None


def test_a_text_is_counted_once_for_all_its_spans() -> None:
    """Otherwise a page of text takes time by the square of its length."""
    looked_at = []

    def left_out(character: str) -> bool:
        looked_at.append(character)
        return character == "🐈"

    places = [without("猫🐈 sits", offset, left_out, end=False) for offset in range(6)]
    assert places == [0, 2, 3, 4, 5, 6]
    assert "".join(looked_at) == "猫🐈 sits"


def test_every_reading_undoes_its_convention() -> None:
    text = "两 🐈 and a 👩‍🚀 in 公园"
    for kind, change in CONVENTIONS.items():
        if kind is not None:
            start = text.index("公园") if "white" in kind else text.index("in")
            assert READINGS[kind](text, change(text, start, start + 2)) == (start, start + 2), kind
