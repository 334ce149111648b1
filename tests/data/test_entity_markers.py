"""Entities through a translator as markers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbox.data.entity_markers import mark_entities
from spanbox.spans import CharSpan

TEXT = "The cat is left of the dog"


def spans_of(text: str, *names: str) -> list[CharSpan]:
    return [(text.index(name), text.index(name) + len(name)) for name in names]


def restored(text: str, translated: str, *names: str, english: bool = False) -> tuple[str, list[str]] | None:
    """The text and what its spans read."""
    result = mark_entities(text, spans_of(text, *names)).restore(translated, english=english)
    return result and (result[0], [result[0][start:end] for start, end in result[1]])


def test_markers_take_the_place_of_entities() -> None:
    marked = mark_entities(TEXT, spans_of(TEXT, "dog", "cat"))
    assert marked.text == "The X1 is left of the X2"
    assert marked.has_words
    assert not mark_entities("🐈 cat!", [(2, 5)]).has_words


@pytest.mark.parametrize(
    ("translated", "expected"),
    [
        ("X2 is right of X1", "dog is right of cat"),
        ("x 1在X2的左边", "cat在dog的左边"),
        ("(X2), X1!", "(dog), cat!"),
        ("X2 is right of it", None),  # one was lost
        ("X1 X2 X1", None),  # one came twice
        ("X1 X2 X3", None),  # one that was never there
        ("X12", None),
        ("AX1 X2", None),
        ("", None),
    ],
)
def test_entities_are_put_back(translated: str, expected: str | None) -> None:
    result = restored(TEXT, translated, "dog", "cat")
    assert result == (expected and (expected, ["dog", "cat"]))


def test_a_letter_that_the_text_has_no_marker_of() -> None:
    text = "An x1 phone and a Y 2 beside the cat"
    marked = mark_entities(text, spans_of(text, "cat"))
    assert marked.text == "An x1 phone and a Y 2 beside the Z1"


def test_overlapping_entities_share_a_marker() -> None:
    text = "a red cat on a mat and a red cat"
    spans = [(2, 9), (6, 9), (15, 18), (6, 14)]
    marked = mark_entities(text, spans)
    assert marked.text == "a X1 X2 and a red cat"
    result = marked.restore("X2, X1", english=False)
    assert result is not None
    assert [result[0][start:end] for start, end in result[1]] == ["red cat", "cat", "mat", "cat on a"]


def test_spaces_between_chinese_characters_go() -> None:
    assert restored("猫在狗的左边", "X2 在 X1 的右边", "猫", "狗") == ("狗在猫的右边", ["猫", "狗"])
    assert restored("T恤在DNA旁", "在 X1 旁 X2 的", "T恤", "DNA") == ("在 T恤旁 DNA 的", ["T恤", "DNA"])


@pytest.mark.parametrize(
    ("translated", "expected"),
    [("see an X1", "see a cat"), ("An X1 sits", "A cat sits"), ("a X1", "a cat"), ("vitamin an-X1", "vitamin an-cat")],
)
def test_the_english_article_fits_the_entity(translated: str, expected: str) -> None:
    assert restored("the cat sits", translated, "cat", english=True) == (expected, ["cat"])


def test_other_languages_have_no_such_article() -> None:
    assert restored("the owl sits", "a X1", "owl") == ("a owl", ["owl"])


texts = st.lists(
    st.sampled_from(["cat", " ", "X1", "x 2", "Y3", "猫", "e\u0301", "👩\u200d👧", "שלום", "a ", "an "])
    | st.text(max_size=2),
    max_size=10,
).map("".join)


@pytest.mark.slow
@given(st.data(), texts)
def test_a_translator_that_copies_gives_the_text_back(data: st.DataObject, text: str) -> None:
    places = st.integers(0, len(text))
    pairs = [(min(pair), max(pair)) for pair in data.draw(st.lists(st.tuples(places, places), max_size=4))]
    spans = [(start, end) for start, end in pairs if text[start:end].strip()]
    marked = mark_entities(text, spans)
    result = marked.restore(marked.text, english=False)
    if result is not None:
        assert [result[0][start:end] for start, end in result[1]] == [text[start:end] for start, end in spans]
        # Only spaces between characters that are written without may go.
        assert re.sub(r"\s", "", result[0]) == re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "spans"),
    [("红色汽车停着", [(0, 2), (2, 4)]), ("有3猫在", [(2, 3)]), ("狗猫鸟在12", [(0, 1), (1, 2), (2, 3)])],
)
def test_entities_without_a_space_between_them_come_back(text: str, spans: list[tuple[int, int]]) -> None:
    marked = mark_entities(text, spans)
    assert marked.restore(marked.text, english=False) == (text, spans)


@pytest.mark.timeout(20)
def test_thousands_of_entities_take_no_quadratic_time() -> None:
    text = "a dog " * 8000
    spans = [(6 * number + 2, 6 * number + 5) for number in range(8000)]
    marked = mark_entities(text, spans)
    assert marked.restore(marked.text, english=True) == (text, spans)
