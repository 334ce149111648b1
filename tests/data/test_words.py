"""Words in any script, and the English indefinite article."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import text_reference
from spanbox.data.words import cuts_word, end_of_marks, find_words, indefinite_article, starts_sentence


def words(text: str) -> list[str]:
    return [text[start:end] for start, end, _ in find_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's T-shirt - new", ["The", "cat's", "T-shirt", "new"]),
        ("cafe\u0301 na\u0308ıve", ["cafe\u0301", "na\u0308ıve"]),
        ("红色的猫，T恤", ["红色的猫", "T恤"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("می\u200cخواهم نان", ["می\u200cخواهم", "نان"]),
        ("👩\u200d👩\u200d👧 👍🏽 🇨🇳", []),
        ("a👍b", ["a", "b"]),
        ("don't 'quote' me-", ["don't", "quote", "me"]),
        ("", []),
        ("é", ["é"]),
    ],
    ids=[
        "English",
        "combining marks",
        "Chinese",
        "vowel signs",
        "joiner",
        "emoji",
        "between",
        "quotes",
        "empty",
        "one",
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_scripts_without_spaces_are_runs() -> None:
    assert [word.is_unspaced for word in find_words("cat 猫 T恤 สวัสดี かな 한국어 привет")] == [
        *(False, True, True, True, True),
        *(False, False),
    ]


@given(st.text(st.sampled_from("aé1e\u0301猫คำ'-’ \u200d\u200c_.👍🏽\ufe0f\U000e0100\u0915\u093f") | st.characters()))
def test_equals_the_loop_over_characters(text: str) -> None:
    assert [(start, end) for start, end, _ in find_words(text)] == text_reference.words(text)


@given(st.text())
def test_words_are_in_order_and_begin_with_a_letter_or_digit(text: str) -> None:
    position = 0
    for start, end, _ in find_words(text):
        assert position <= start < end <= len(text)
        assert text[start].isalnum()
        assert end == len(text) or not text[end].isalnum()
        assert end == len(text) or unicodedata.category(text[end])[0] != "M"
        position = end


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("cat", 1, True),
        ("cat", 3, False),
        ("a cat", 2, False),
        ("红猫", 1, False),
        ("T恤", 1, False),
        ("红e\u0301", 2, True),
        ("か\u3099", 1, True),
    ],
)
def test_cuts(text: str, place: int, expected: bool) -> None:
    assert cuts_word(text, place) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat", "The"),
        ("Yes. The cat", "Yes The"),
        ("“Look: the", "Look the"),
        ("图中。猫", "图中 猫"),
        ("a Tom", "a"),
    ],
)
def test_starts_of_sentences(text: str, expected: str) -> None:
    assert [text[s:e] for s, e, _ in find_words(text) if starts_sentence(text, s)] == expected.split()


ARTICLES = """
a cat, an owl, an hour, a house, a unicorn, an umbrella, a uniform, an uninteresting, a European, a one-eyed, an only,
an X-ray, a UFO, an SUV, a TV, an 8-ball, a 7-ball, an 11th, a 1st, an 18-hole, an honest, an heir, a ewe, a ukulele,
an Écu, a T-Rex, an e-mail, a used, an ugly
"""


@pytest.mark.parametrize("phrase", ARTICLES.strip().replace("\n", " ").split(", "))
def test_article(phrase: str) -> None:
    article, word = phrase.replace(",", "").split()
    assert indefinite_article(word) == article


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("cafe\u0301 bar", 4, 5),
        ("cafe\u0301", 4, 5),
        ("\u2764\ufe0f!", 1, 2),  # an emoji, and that it is shown as one
        ("हिन्दी", 5, 6),
        ("cafe bar", 4, 4),
        ("猫。", 1, 1),
        ("\u0301 alone", 0, 0),
        ("", 0, 0),
    ],
)
def test_marks_end_with_their_letter(text: str, end: int, expected: int) -> None:
    assert end_of_marks(text, end) == expected
