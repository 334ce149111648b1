"""Spans to tokens with real tokenizers: what the chosen tokens spell must be the span. And spans through edits."""

import itertools
import unicodedata
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import text_reference
from spanbox.spans import CharSpan, EditMap, Piece, merge_spans, span_token_mask, trim_span

LENGTH = 96  # every encoding is padded to this many tokens

# (text, span): the whole words that a tokenizer may be asked for.
WORDS = [
    ("The geometry of plants . Garfield Park Conservatory", "Garfield Park"),
    ("The geometry of plants . Garfield Park Conservatory", "The"),
    ("The geometry of plants . Garfield Park Conservatory", "Conservatory"),
    ("Café Müller opened in Zürich", "Café Müller"),
    ("A naïve façade , Zürich", "façade"),
    ("加菲猫 在 芝加哥 公园", "芝加哥"),
    ("小明 visits Garfield Park 和 北京", "Garfield Park"),
    ("小明 visits Garfield Park 和 北京", "北京"),
    ("so happy 😀 at the 公园", "😀"),
    ("so happy 😀 at the 公园", "公园"),
    ("flags 🏳️‍🌈 and 👍🏽 thumbs", "👍🏽"),
]
# Spans that cut through a word, or a run of Chinese characters.
INSIDE = [
    ("The geometry of plants", "metr"),
    ("Conservatory", "serva"),
    ("我爱北京天安门", "北京"),
    ("Müllerstraße", "straße"),
]
CORPUS = [text for text, _ in WORDS + INSIDE]


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return trained(tokenizer, trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False))


def byte_level_bpe(trim_offsets: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = trained(tokenizer, trainer)
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=trim_offsets), tokenizer.post_processor]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False),
    )


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def trained(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    """Learn the corpus and nothing more: frequent words become one token, rare ones several."""
    tokenizer.train_from_iterator(CORPUS * 2 + ["Garfield Park plants"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.enable_padding(length=LENGTH, pad_id=tokenizer.token_to_id("[PAD]"))
    return tokenizer


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": word_piece,
    "byte-level BPE": lambda: byte_level_bpe(trim_offsets=False),
    "byte-level BPE, trimmed offsets": lambda: byte_level_bpe(trim_offsets=True),
    "Unigram": unigram,
}


@pytest.fixture(scope="module", params=list(BUILDERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return BUILDERS[request.param]()


def find(text: str, span: str) -> CharSpan:
    start = text.index(span)
    return start, start + len(span)


def mask_of(spans: list[CharSpan], offsets: list[CharSpan]) -> list[list[bool]]:
    """`span_token_mask` of one sentence, from and to plain lists."""
    edges = [torch.tensor(intervals, dtype=torch.int64).reshape(-1, 2) for intervals in (spans, offsets)]
    rows: list[list[bool]] = span_token_mask(*edges).tolist()
    return rows


def spelled(tokenizer: Tokenizer, text: str, span: CharSpan) -> str:
    """What the tokens of a span decode to, without what tokenizers do to case, accents and spaces."""
    encoding = tokenizer.encode(text)
    (mask,) = mask_of([trim_span(text, span)], encoding.offsets)
    ids = [token for token, chosen in zip(encoding.ids, mask, strict=True) if chosen]
    return plain(tokenizer.decode(ids))


def plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter) and not letter.isspace())


@pytest.mark.parametrize(("text", "span"), WORDS)
def test_whole_words_are_spelled_exactly(tokenizer: Tokenizer, text: str, span: str) -> None:
    assert spelled(tokenizer, text, find(text, span)) == plain(span)


@pytest.mark.parametrize(("text", "span"), INSIDE)
def test_part_of_a_word_is_spelled_with_no_more_than_the_tokens_it_touches(
    tokenizer: Tokenizer, text: str, span: str
) -> None:
    start, end = find(text, span)
    assert plain(span) in spelled(tokenizer, text, (start, end))
    encoding = tokenizer.encode(text)
    for chosen, (low, high) in zip(mask_of([(start, end)], encoding.offsets)[0], encoding.offsets, strict=True):
        assert chosen == bool({*range(start, end)} & {*range(low, high)})


@pytest.mark.parametrize("padding", [(0, 1), (1, 0), (1, 1)], ids=["after", "before", "around"])
def test_white_space_at_the_ends_of_a_span_changes_nothing(tokenizer: Tokenizer, padding: tuple[int, int]) -> None:
    text = "The geometry of plants . Garfield Park Conservatory"
    start, end = find(text, "Garfield Park")
    assert spelled(tokenizer, text, (start - padding[0], end + padding[1])) == "garfieldpark"


def test_special_tokens_and_padding_belong_to_no_span(tokenizer: Tokenizer) -> None:
    text = "The geometry of plants"
    encoding = tokenizer.encode(text)
    (mask,) = mask_of([(0, len(text))], encoding.offsets)
    real = sum(encoding.attention_mask)
    assert not mask[0]  # [CLS]
    assert not any(mask[real - 1 :])  # [SEP] and padding
    assert all(mask[1 : real - 1])


@pytest.mark.slow
def test_equals_the_loop_on_real_offsets(tokenizer: Tokenizer) -> None:
    for text in CORPUS:
        spans = [(start, end) for start in range(0, len(text), 3) for end in range(start, len(text) + 1, 2)]
        offsets = tokenizer.encode(text).offsets
        assert mask_of(spans, offsets) == text_reference.span_token_mask(spans, offsets)


def test_span_beyond_the_truncation_has_no_tokens(tokenizer: Tokenizer) -> None:
    text = "The geometry of plants . Garfield Park Conservatory"
    offsets = tokenizer.encode(text).offsets[:3]
    assert mask_of([find(text, "Conservatory")], offsets) == [[False] * 3]


intervals = st.tuples(st.integers(0, 12), st.integers(0, 12))


@given(spans=st.lists(intervals, max_size=4), offsets=st.lists(intervals, max_size=6))
def test_equals_the_loop(spans: list[CharSpan], offsets: list[CharSpan]) -> None:
    """Empty and inverted intervals included: they overlap nothing."""
    assert mask_of(spans, offsets) == text_reference.span_token_mask(spans, offsets)


@pytest.mark.parametrize(("spans", "tokens"), [(0, 3), (2, 0), (0, 0)])
def test_without_spans_or_tokens(spans: int, tokens: int) -> None:
    mask = span_token_mask(torch.zeros(spans, 2, dtype=torch.int64), torch.zeros(tokens, 2, dtype=torch.int64))
    assert mask.shape == (spans, tokens)
    assert mask.dtype == torch.bool


def test_a_batch_is_its_sentences_one_by_one() -> None:
    spans, offsets = torch.randint(9, (3, 4, 2)), torch.randint(9, (3, 5, 2))
    together = span_token_mask(spans, offsets)
    assert together.shape == (3, 4, 5)
    for row in range(3):
        assert torch.equal(together[row], span_token_mask(spans[row], offsets[row]))


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("Garfield Park", (0, 8), (0, 8)),
        ("a  b ", (1, 5), (3, 4)),
        ("a\u3000北京\u00a0b", (1, 5), (2, 4)),
        ("a   b", (1, 4), (4, 4)),
        ("ab", (1, 1), (1, 1)),
    ],
    ids=["nothing to trim", "both ends", "ideographic and no-break space", "only white space", "empty"],
)
def test_trim(text: str, span: CharSpan, expected: CharSpan) -> None:
    assert trim_span(text, span) == expected


# What makes characters hard to count: emoji of several code points, combining marks, right to left.
PIECES_OF_TEXT = st.sampled_from(
    [
        "cat",
        " ",
        "a",
        "é",
        "e\u0301",
        "猫",
        "北京",
        "、",
        "👩\u200d👩\u200d👧",
        "👍🏽",
        "🇨🇳",
        "שלום",
        "مرحبا",
        "नमस्ते",
        "ไทย",
        "\u202e",
        "\n",
    ]
)
texts = st.lists(PIECES_OF_TEXT | st.text(max_size=3), max_size=12).map("".join)


@st.composite
def edits(draw: st.DrawFn, text: str) -> list[Piece]:
    """A text cut at random into pieces, kept, replaced or deleted, with insertions, in any order or in theirs."""
    places = st.integers(0, len(text))
    cuts = sorted({0, len(text), *draw(st.lists(places, max_size=6))})
    pieces = [
        Piece(start, end, draw(st.none() | st.just("") | texts))
        for start, end in itertools.pairwise(cuts)
        if start < end
    ]
    pieces += [Piece(place, place, draw(texts)) for place in draw(st.lists(places, max_size=2)) if place in cuts]
    pieces.sort(key=lambda piece: piece[:2])
    return draw(st.permutations(pieces)) if draw(st.booleans()) else pieces


@st.composite
def spans_of(draw: st.DrawFn, text: str) -> list[CharSpan]:
    places = st.integers(0, len(text))
    return [span for span in draw(st.lists(st.tuples(places, places), max_size=5)) if span[0] < span[1]]


class TestEditMap:
    @pytest.mark.slow
    @given(data=st.data(), text=texts)
    def test_equals_the_loop_over_characters(self, data: st.DataObject, text: str) -> None:
        pieces = data.draw(edits(text))
        edit = EditMap(text, pieces)
        assert edit.text == "".join(text[start:end] if new is None else new for start, end, new in pieces)
        for span in data.draw(spans_of(text)):
            assert edit.map_span(span) == text_reference.mapped_span(text, pieces, span)

    @pytest.mark.slow
    @given(data=st.data(), text=texts)
    def test_a_span_through_any_chain_of_edits_reads_the_same_or_its_replacement(
        self, data: st.DataObject, text: str
    ) -> None:
        for span in data.draw(spans_of(text)):
            current, place = text, span
            for _ in range(data.draw(st.integers(1, 4))):
                pieces = data.draw(edits(current))
                edit = EditMap(current, pieces)
                mapped = edit.map_span(place)
                if mapped is None:
                    break
                touching = [piece for piece in pieces if piece.text is not None and within(piece, place)]
                expected = spelled_after(current, place, touching)
                assert edit.text[mapped[0] : mapped[1]] == expected
                if not touching:
                    assert expected == current[place[0] : place[1]]
                current, place = edit.text, mapped

    @pytest.mark.slow
    @given(data=st.data(), text=texts)
    def test_a_protected_span_is_kept_by_every_edit_around_it(self, data: st.DataObject, text: str) -> None:
        for start, end in data.draw(spans_of(text)):
            if text[start:end].strip():
                before, after = data.draw(texts), data.draw(texts)
                edit = EditMap.replace(text, [Piece(0, start, before), Piece(end, len(text), after)])
                assert edit.map_span((start, end)) == (len(before), len(before) + end - start)

    def test_nothing_changed(self) -> None:
        assert EditMap.replace("a 🐈‍⬛ b", []).map_span((2, 5)) == (2, 5)
        assert EditMap("", []).text == ""

    @pytest.mark.parametrize(
        ("replacements", "text", "span"),
        [
            ([Piece(0, 1, "The old")], "The old 红色的猫 sat", "红色的猫"),
            ([Piece(2, 6, "🐈")], "A 🐈 sat", "🐈"),
            ([Piece(2, 5, "")], "A 猫 sat", "猫"),
            ([Piece(2, 2, "big "), Piece(6, 6, "!")], "A big 红色的猫! sat", "红色的猫"),
            ([Piece(3, 3, "、")], "A 红、色的猫 sat", "红、色的猫"),
            ([Piece(5, 8, "dog")], "A 红色的dogat", None),
            ([Piece(2, 6, "")], "A  sat", None),
            ([Piece(0, 10, "nothing")], "nothing", None),
        ],
        ids=["before", "the span", "a part", "at its edges", "inside", "across an edge", "deleted", "around"],
    )
    def test_of_one_span(self, replacements: list[Piece], text: str, span: str | None) -> None:
        edit = EditMap.replace("A 红色的猫 sat", replacements)
        mapped = edit.map_span((2, 6))
        assert edit.text == text
        assert (mapped and text[mapped[0] : mapped[1]]) == span

    def test_moved_parts(self) -> None:
        text = "红猫。蓝狗。"
        edit = EditMap(text, [Piece(3, 5), Piece(2, 3), Piece(0, 2), Piece(5, 6)])
        assert edit.text == "蓝狗。红猫。"
        assert edit.map_spans([(0, 2), (3, 5), (4, 5)]) == [(3, 5), (0, 2), (1, 2)]
        assert edit.map_span((1, 4)) is None
        assert edit.map_spans([(0, 2), (1, 4)]) is None

    @pytest.mark.parametrize(
        "pieces", [[Piece(0, 2), Piece(1, 3)], [Piece(0, 1), Piece(2, 3)], [Piece(0, 2)], [Piece(0, 3), Piece(3, 4)]]
    )
    def test_pieces_are_a_partition(self, pieces: list[Piece]) -> None:
        with pytest.raises(AssertionError):
            EditMap("abc", pieces)


def within(piece: Piece, span: CharSpan) -> bool:
    """Whether a changed piece lies in a span; an insertion at its edge does not."""
    if piece.start == piece.end:
        return span[0] < piece.start < span[1]
    return span[0] <= piece.start and piece.end <= span[1]


def spelled_after(text: str, span: CharSpan, changes: list[Piece]) -> str:
    """The span with its changes, of which none crosses an edge of the span."""
    spelled, position = "", span[0]
    for start, end, new in sorted(changes, key=lambda piece: piece[:2]):
        assert new is not None
        spelled += text[position:start] + new
        position = end
    return spelled + text[position : span[1]]


@given(st.lists(intervals.map(sorted).map(tuple).filter(lambda span: span[0] < span[1]), max_size=6))
def test_merged_spans_cover_the_same_characters_and_none_twice(spans: list[CharSpan]) -> None:
    merged = merge_spans(spans)
    covered = [place for start, end in merged for place in range(start, end)]
    assert covered == sorted({place for start, end in spans for place in range(start, end)})
    assert all(any(span[0] <= start and end <= span[1] for span in merged) for start, end in spans)
