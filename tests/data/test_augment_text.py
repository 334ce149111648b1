"""Changed texts: spans keep their entities, articles fit, what would make a text false stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbox.data.augment_text import AugmentedText, TextAugmentSettings, augment_text
from spanbox.data.synonym_files import load_synonyms
from spanbox.data.synonyms import Synonyms
from spanbox.data.words import find_words
from spanbox.spans import CharSpan

SYNONYMS = Synonyms(
    {
        "en": {
            "automobile": ("car",),
            "car": ("automobile",),
            "picture": ("image",),
            "old": ("ancient",),
            "ancient": ("old",),
            "fire engine": ("fire truck",),
            "above": ("over",),
        },
        "zh": {"左边": ("左侧",), "猫": ("猫咪",), "红色": ("赤色",), "图片": ("图像",)},
    }
)
ALWAYS = TextAugmentSettings(synonyms=1)
REPLACE = TextAugmentSettings(synonyms=1, entities="replace")
SWAP = TextAugmentSettings(swap=1)


def spans_of(text: str, *names: str) -> list[CharSpan]:
    return [(text.index(name), text.index(name) + len(name)) for name in names]


def augmented(
    text: str,
    settings: TextAugmentSettings,
    *names: str,
    language: str = "",
    seed: int = 0,
    synonyms: Synonyms = SYNONYMS,
) -> AugmentedText:
    generator = np.random.default_rng(seed)
    return augment_text(text, spans_of(text, *names), language, settings, synonyms, generator)


def read(result: AugmentedText) -> list[str]:
    return [result.text[start:end] for start, end in result.spans]


class TestSynonyms:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("A picture, above a car", "An image, over an automobile"),
            ("PICTURE of a Car", "IMAGE of a Car"),
            ("A PICTURE", "AN IMAGE"),
            ("an old automobile, an  automobile", "an ancient car, a  car"),
            ("an ancient vitamin A picture", "an old vitamin A image"),
            ("a old picture", "a ancient image"),  # as the author has it
            ("图片左边的猫", "图像左侧的猫"),  # one character alone is no word
        ],
    )
    def test_case_and_article(self, text: str, expected: str) -> None:
        assert augmented(text, ALWAYS).text == expected

    def test_articles_are_english(self) -> None:
        assert augmented("a picture", ALWAYS, language="en-US").text == "an image"
        anywhere = Synonyms({"": {"picture": ("image",)}})
        assert augmented("a picture", ALWAYS, language="pt", synonyms=anywhere).text == "a image"

    def test_entities_are_protected(self) -> None:
        text = "a picture of an old automobile above a fire engine"
        result = augmented(text, ALWAYS, "old automobile", "fire engine")
        assert result.text == "an image of an old automobile over a fire engine"
        assert read(result) == ["old automobile", "fire engine"]

    def test_entities_are_replaced_with_their_spans(self) -> None:
        text = "a picture of an automobile above the fire engine"
        result = augmented(text, REPLACE, "an automobile", "fire engine")
        assert result.text == "an image of a car over the fire truck"
        assert read(result) == ["a car", "fire truck"]

    def test_chinese_entities(self) -> None:
        text = "红色的猫在狗的左边"
        assert read(augmented(text, ALWAYS, "红色的猫", "狗", language="zh")) == ["红色的猫", "狗"]
        result = augmented(text, REPLACE, "红色的", "猫", language="zh")
        assert result.text == "赤色的猫咪在狗的左侧"
        assert read(result) == ["赤色的", "猫咪"]

    def test_nested_entities(self) -> None:
        result = augmented("old automobile above", REPLACE, "old automobile", "automobile")
        assert read(result) == ["ancient car", "car"]

    def test_the_changes(self) -> None:
        result = augmented("A picture above a 👩‍👩‍👧 car", ALWAYS)
        assert result.changes == (("picture", "image"), ("above", "over"), ("car", "automobile"))

    @pytest.mark.slow
    def test_a_long_text(self) -> None:
        """In time: no step looks at all of the text for each word."""
        text = "A picture of an old car. Mr. Smith sleeps. The dog runs; no car. " * 700
        names = [(start, start + 7) for start in range(16, len(text) - 80, 4 * len("A picture of an old car. "))]
        settings = TextAugmentSettings(synonyms=1, deletion=0.3, swap=1)
        result = augment_text(text, names, "", settings, SYNONYMS, np.random.default_rng(0))
        assert read(result) == [text[start:end] for start, end in names]
        assert len(result.changes) > 2500


class TestDeletion:
    DELETE = TextAugmentSettings(deletion=0.5)

    def never(self, text: str, *names: str, language: str = "") -> set[str]:
        """The words that no seed of many deletes."""
        kept = {text[start:end] for start, end, _ in find_words(text)}
        for seed in range(60):
            result = augmented(text, self.DELETE, *names, language=language, seed=seed)
            assert read(result) == list(names)
            kept &= {result.text[start:end] for start, end, _ in find_words(result.text)}
        return kept

    def test_entities_negations_numbers_and_first_words_stay(self) -> None:
        text = "We saw two 3 cats not far from the red car. There isn't any dog without the collar, lacking teeth"
        kept = {"We", "two", "3", "not", "red", "car", "There", "isn't", "without", "lacking"}
        assert self.never(text, "red car") == kept

    def test_numbers_in_letters_stay(self) -> None:
        text = "Over two hundred big cats saw half a million twenty-two-inch screens and zero dogs"
        kept = {"Over", "two", "hundred", "half", "million", "twenty-two-inch", "zero"}
        assert self.never(text, language="en") == kept
        synonyms = Synonyms({"zh": {"三只": ("三个",), "红色": ("赤色",)}})
        texts = {augmented("有三只红色猫", self.DELETE, seed=seed, synonyms=synonyms).text for seed in range(30)}
        assert texts == {"有三只红色猫", "有三只猫"}

    @pytest.mark.parametrize(
        ("text", "language"),
        [
            ("Ein Hund läuft nicht ohne Leine durch zwei Parks", "de-AT"),
            ("Un chien qui ne court pas sans laisse", "fr"),
            ("Собака не бежит без поводка", "ru"),
            ("الكلب لا يركض بدون مقود", "ar"),
        ],
    )
    def test_all_words_of_languages_stay_of_which_no_negations_are_known(self, text: str, language: str) -> None:
        assert {augmented(text, self.DELETE, language=language, seed=seed).text for seed in range(30)} == {text}

    def test_words_that_touch_marks_stay(self) -> None:
        assert self.never("RT @user see #cats (now) at x.com/a") == {"RT", "user", "cats", "now", "x", "com", "a"}

    def test_spaces(self) -> None:
        texts = {augmented("The big old car.", self.DELETE, seed=seed).text for seed in range(60)}
        assert texts == {
            *("The big old car.", "The old car.", "The big car.", "The big old.", "The car.", "The old."),
            *("The big.", "The."),
        }

    def test_chinese_words_that_are_known(self) -> None:
        texts = {augmented("猫在图片左边", self.DELETE, "猫", language="zh", seed=seed).text for seed in range(60)}
        assert texts == {"猫在图片左边", "猫在左边", "猫在图片", "猫在"}

    @pytest.mark.parametrize("text", ["图中没有猫", "圖中沒有貓", "圖中無貓"])
    def test_chinese_negations_stay(self, text: str) -> None:
        synonyms = Synonyms({"zh": {"没有": ("无",), "沒有": ("無",), "無貓": ("沒有貓",)}})
        for seed in range(20):
            left = augmented(text, self.DELETE, language="zh", seed=seed, synonyms=synonyms).text
            assert left.endswith(text[2:])

    def test_a_text_of_one_word_stays(self) -> None:
        assert {augmented("左边", self.DELETE, seed=seed).text for seed in range(30)} == {"左边"}

    def test_the_word_after_an_article_stays(self) -> None:
        texts = {augmented("See an old car", self.DELETE, seed=seed).text for seed in range(60)}
        assert texts == {"See an old car", "See old car", "See an old", "See old"}


class TestSwap:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The cat sleeps. The dog runs.", "The dog runs. The cat sleeps."),
            ("The cat sleeps . Garfield Park", "Garfield Park . The cat sleeps"),
            ("Is the cat here? The dog runs.", None),  # "here" refers
            ("Where is the cat? The dog runs.", "The dog runs. Where is the cat?"),
            ("a cat sleeps; a dog runs", "a dog runs; a cat sleeps"),
            ("The cat sleeps; the dog runs", None),  # the capital letter would move
            ("The dog runs. It is fast.", None),
            ("The dog runs. It's fast.", None),
            ("Dogs run. They’re fast.", None),
            ("Two dogs run. Each wears a collar.", None),
            ("The cat sleeps. There's a dog.", "There's a dog. The cat sleeps."),
            ("The dog runs. But the cat sleeps.", None),
            ("The dog runs. There is no cat.", "There is no cat. The dog runs."),
            ('He said: "The dog runs. The cat sleeps."', None),
            ("We met Mr. Smith in town", None),
            ("猫在左边。狗在右边。", "狗在右边。猫在左边。"),
            ("猫在左边。它很红。", None),
            ("猫和狗在左边。两者都很红。", None),
            ("一只猫在左边。另一只在右边。", None),
            ("猫和狗在左边。各自戴着帽子。", None),
            ("猫在左边。这里没有狗。", "这里没有狗。猫在左边。"),
            ("貓在左邊。狗在右邊。", "狗在右邊。貓在左邊。"),
            ("貓在左邊。這隻貓很紅。", None),
            ("貓在左邊。牠很紅。", None),
            ("貓在左邊。隨後狗跑了。", None),
            ("貓在左邊。這裡沒有狗。", "這裡沒有狗。貓在左邊。"),
            ("The cat sleeps", None),
            (".. ..", None),
        ],
    )
    def test_clauses_that_do_not_refer_to_each_other(self, text: str, expected: str | None) -> None:
        result = augmented(text, SWAP)
        assert result.text == (expected or text)
        assert bool(result.changes) == (expected is not None)

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("marks", ["." * 49_999, "!?" * 24_999])
    def test_a_long_run_of_marks_takes_no_quadratic_time(self, marks: str) -> None:
        assert augmented(f"{marks}x", SWAP).text == f"{marks}x"

    def test_spans_move_along(self) -> None:
        text = "The red cat sleeps. The dog 🐕‍🦺 runs."
        result = augmented(text, SWAP, "red cat", "dog 🐕‍🦺")
        assert result.text == "The dog 🐕‍🦺 runs. The red cat sleeps."
        assert read(result) == ["red cat", "dog 🐕‍🦺"]

    def test_not_across_an_entity(self) -> None:
        text = "The cat sleeps. The dog runs."
        assert augmented(text, SWAP, "sleeps. The").text == text

    def test_other_languages_are_left_alone(self) -> None:
        text = "Die Katze schläft. Der Hund rennt."
        assert augmented(text, SWAP, language="de").text == text


STRONG = TextAugmentSettings(synonyms=0.7, deletion=0.3, swap=1)
SCRIPTS = st.lists(
    st.sampled_from(
        [
            *(
                "The",
                "old",
                "car",
                "picture",
                "above",
                "a",
                "an",
                "fire engine",
                "图片",
                "左边",
                "猫",
                "红色",
                "。",
                ".",
                ";",
            ),
            *(
                " ",
                " ",
                " ",
                "e\u0301",
                "👩\u200d👩\u200d👧",
                "👍🏽",
                "שלום",
                "مرحبا",
                "नमस्ते",
                "ไทย",
                "한국어",
                "\u202e",
                "\n",
                "no",
            ),
        ]
    )
    | st.text(max_size=2),
    max_size=14,
).map("".join)


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[CharSpan]]:
    text = draw(SCRIPTS)
    places = st.integers(0, len(text))
    pairs = [(min(pair), max(pair)) for pair in draw(st.lists(st.tuples(places, places), max_size=4))]
    return text, [(start, end) for start, end in pairs if text[start:end].strip()]


@pytest.mark.slow
@given(texts_with_spans(), st.integers(0, 2**32 - 1), st.sampled_from(["", "en", "zh"]))
def test_protected_spans_read_the_same_in_any_script(
    case: tuple[str, list[CharSpan]], seed: int, language: str
) -> None:
    text, spans = case
    result = augment_text(text, spans, language, STRONG, SYNONYMS, np.random.default_rng(seed))
    assert read(result) == [text[start:end] for start, end in spans]
    assert bool(result.text.strip()) == bool(text.strip())


@pytest.mark.slow
@given(texts_with_spans(), st.integers(0, 2**32 - 1))
def test_replaced_spans_read_as_their_replacements(case: tuple[str, list[CharSpan]], seed: int) -> None:
    text, spans = case
    result = augment_text(text, spans, "", REPLACE, SYNONYMS, np.random.default_rng(seed))
    edges = {edge for span in spans for edge in span}
    matches = list(SYNONYMS.find(text, "", sorted(edges)))
    for span, now in zip(spans, read(result), strict=True):
        expected, position = "", span[0]
        for start, end, synonyms in matches:
            if span[0] <= start and end <= span[1]:
                expected += text[position:start] + synonyms[0]
                position = end
        expected += text[position : span[1]]
        assert without_articles(now) == without_articles(expected)


def without_articles(text: str) -> list[str]:
    return ["a" if word.lower() in ("a", "an") else word for word in text.split()]


def test_the_same_generator_draws_the_same() -> None:
    text = "A picture of the old car above a fire engine. There is no automobile."
    settings = TextAugmentSettings(synonyms=0.5, deletion=0.3, swap=0.5)
    results = {seed: augmented(text, settings, "old car", seed=seed) for seed in range(20)}
    assert all(augmented(text, settings, "old car", seed=seed) == result for seed, result in results.items())
    assert len({result.text for result in results.values()}) > 10


@pytest.mark.parametrize("text", ["", "a", "猫", "🐈", "\u0301", ".", " "])
def test_texts_of_at_most_one_character(text: str) -> None:
    for seed in range(10):
        result = augmented(text, STRONG, seed=seed)
        assert result.text == ("猫咪" if result.changes else text)


def test_nothing_is_drawn_by_default() -> None:
    settings = TextAugmentSettings()
    assert not settings.active
    assert augmented("A picture. A car.", settings).changes == ()


def test_presets() -> None:
    assert not TextAugmentSettings(preset="none").active
    strengths = [TextAugmentSettings(preset=name).synonyms for name in ("none", "light", "standard", "strong")]
    assert strengths == sorted(set(strengths))
    settings = TextAugmentSettings(preset="standard", synonyms=0)
    assert (settings.synonyms, settings.swap, settings.edits) == (0, 0.3, True)
    assert TextAugmentSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_the_demo_with_the_built_in_list() -> None:
    from spanbox.data.demo import DemoSettings, draw_scene

    synonyms = load_synonyms(["built-in"])
    changed = 0
    for index in range(12):
        _, record = draw_scene("train", index, DemoSettings(size=48, languages=("en", "zh")))
        spans = [(entity.start, entity.end) for entity in record.entities]
        result = augment_text(record.text, spans, record.lang, STRONG, synonyms, np.random.default_rng(index))
        assert read(result) == [record.span_text(entity) for entity in record.entities]
        changed += result.text != record.text
    assert changed == 12
