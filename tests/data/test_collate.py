"""Samples to a batch: spans become exactly their tokens, what is cut off is reported, padding is marked."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pairs import sample
from spanbox.data.collate import Collated, Collator
from spanbox.data.tokenizer import train_tokenizer
from spanbox.structures import PADDING_ID, Batch, Incident, Sample, stable_id

ENGLISH = "The red dog sat near the old park"
CHINESE = "一只红狗坐在公园里"
FULL = len(ENGLISH.split()) + 2  # tokens: the words, [CLS] and [SEP]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Every word is one token, every Chinese character is one."""
    return train_tokenizer([ENGLISH, CHINESE, "[MASK] cats and playgrounds"] * 3, 500)


def words(tokenizer: Any, batch: Batch, row: int, span: int) -> list[str]:
    """The tokens of a span."""
    tokens: list[str] = tokenizer.convert_ids_to_tokens(batch.token_ids[row][batch.span_tokens[row, span]].tolist())
    return tokens


def own_words(tokenizer: Any, batch: Batch, row: int, span: int) -> list[str]:
    """The tokens of a span's text read by itself."""
    assert batch.own_token_ids is not None
    assert batch.own_token_mask is not None
    ids = batch.own_token_ids[row, span][batch.own_token_mask[row, span]]
    tokens: list[str] = tokenizer.convert_ids_to_tokens(ids.tolist())
    return tokens


def collate(tokenizer: Any, *samples: Sample, max_tokens: int = 32, own_spans: bool = False) -> Collated:
    return Collator(tokenizer, max_tokens, own_spans=own_spans)(samples)


def test_tokens_of_the_sentences(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample(ENGLISH), sample("The dog")).batch
    assert batch.token_ids.shape == batch.token_mask.shape == (2, FULL)
    assert tokenizer.convert_ids_to_tokens(batch.token_ids[1, :5].tolist()) == ["[CLS]", "the", "dog", "[SEP]", "[PAD]"]
    assert batch.token_mask.sum(1).tolist() == [FULL, 4]


def test_tokens_of_english_spans(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample(ENGLISH, ["red dog", "The", "old park", "near"])).batch
    assert [words(tokenizer, batch, 0, k) for k in range(4)] == [["red", "dog"], ["the"], ["old", "park"], ["near"]]


def test_tokens_of_chinese_spans(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample(CHINESE, ["红狗", "公园", "一只"])).batch
    assert [words(tokenizer, batch, 0, k) for k in range(3)] == [["红", "狗"], ["公", "园"], ["一", "只"]]


def test_tokens_of_both_languages_in_one_batch(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample(CHINESE, ["公园"]), sample(ENGLISH, ["park", "dog"])).batch
    assert words(tokenizer, batch, 0, 0) == ["公", "园"]
    assert words(tokenizer, batch, 1, 0) == ["park"]
    assert words(tokenizer, batch, 1, 1) == ["dog"]
    assert batch.span_identity.tolist() == [[stable_id("公园"), PADDING_ID], [stable_id("park"), stable_id("dog")]]
    assert batch.span_entity.tolist() == [[0, PADDING_ID], [0, 1]]
    assert batch.span_valid.tolist() == [[True, False], [True, True]]
    assert not batch.span_tokens[0, 1].any()


def test_tokens_of_a_word_in_pieces(tokenizer: Any) -> None:
    text = "parks and dog"
    batch = collate(tokenizer, sample(text, ["parks", "dog"])).batch
    pieces = tokenizer.tokenize("parks")
    assert len(pieces) > 1
    assert words(tokenizer, batch, 0, 0) == pieces
    assert words(tokenizer, batch, 0, 1) == ["dog"]


def test_code_points_beyond_the_basic_plane_shift_nothing(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample("😀🏳️‍🌈 dog 😀 park", ["dog", "park"])).batch
    assert words(tokenizer, batch, 0, 0) == ["dog"]
    assert words(tokenizer, batch, 0, 1) == ["park"]


@pytest.mark.parametrize(
    ("span", "limit"),
    [("park", FULL), ("old", FULL - 1), ("old park", FULL), ("The", 3), ("the old", FULL - 1)],
)
def test_a_span_that_just_fits_is_used(tokenizer: Any, span: str, limit: int) -> None:
    loaded = collate(tokenizer, sample(ENGLISH, [span]), max_tokens=limit)
    assert words(tokenizer, loaded.batch, 0, 0) == span.lower().split()
    assert loaded.batch.span_valid.all()
    assert loaded.incidents == []
    assert loaded.batch.token_ids.shape[1] == limit


@pytest.mark.parametrize(
    ("span", "limit"),
    [("park", FULL - 1), ("old park", FULL - 1), ("park", 3), ("The red", 3), ("near", 4)],
    ids=["its only token", "its last token", "far beyond", "the second of two", "beyond"],
)
def test_a_span_that_loses_a_token_is_not_used_and_noted(tokenizer: Any, span: str, limit: int) -> None:
    loaded = collate(tokenizer, sample(ENGLISH, [span], id="x"), max_tokens=limit)
    assert loaded.incidents == [Incident("truncated span", "x", f"'{span}' lies beyond the first {limit} tokens")]
    assert loaded.batch.span_identity.tolist() == loaded.batch.span_entity.tolist() == [[PADDING_ID]]
    assert not loaded.batch.span_tokens.any()


def test_a_region_whose_spans_are_all_cut_off_is_not_used() -> None:
    """Unlinked, it would pass for a negative of what it shows. One that another span shares stays, and a proposal."""
    tokenizer = train_tokenizer([ENGLISH], 100)
    links = [(0, 0), (0, 1), (1, 1)]
    batch = collate(tokenizer, sample(ENGLISH, ["park", "red"], regions=3, links=links), max_tokens=6).batch
    assert batch.span_valid.tolist() == [[False, True]]
    assert batch.region_valid.tolist() == [[False, True, True]]
    assert batch.links.tolist() == [[[False, False, False], [False, True, False]]]


def test_a_span_right_before_the_cut_is_used(tokenizer: Any) -> None:
    """Chinese has no space between what is kept and what is cut."""
    fits, cut = (collate(tokenizer, sample(CHINESE, ["红狗"]), max_tokens=limit) for limit in (6, 5))
    assert words(tokenizer, fits.batch, 0, 0) == ["红", "狗"]
    assert fits.incidents == []
    assert [incident.kind for incident in cut.incidents] == ["truncated span"]


def test_truncation_of_one_span_leaves_the_others(tokenizer: Any) -> None:
    loaded = collate(tokenizer, sample(ENGLISH, ["red dog", "old park", "sat"]), sample("cats", ["cats"]), max_tokens=8)
    assert loaded.batch.span_valid.tolist() == [[True, False, True], [True, False, False]]
    assert loaded.batch.span_entity.tolist() == [[0, PADDING_ID, 2], [0, PADDING_ID, PADDING_ID]]
    assert words(tokenizer, loaded.batch, 0, 0) == ["red", "dog"]
    assert words(tokenizer, loaded.batch, 0, 2) == ["sat"]
    assert len(loaded.incidents) == 1


def test_truncation_within_a_word(tokenizer: Any) -> None:
    text = "dog parks"
    pieces = len(tokenizer.tokenize("parks"))
    assert pieces > 1
    fits, cut = (collate(tokenizer, sample(text, ["dog", "parks"]), max_tokens=3 + n) for n in (pieces, pieces - 1))
    assert fits.incidents == []
    assert fits.batch.span_valid.tolist() == [[True, True]]
    assert [incident.kind for incident in cut.incidents] == ["truncated span"]
    assert cut.batch.span_valid.tolist() == [[True, False]]


def test_a_cut_sentence_whose_spans_fit_is_no_incident(tokenizer: Any) -> None:
    assert collate(tokenizer, sample(ENGLISH, ["red"]), max_tokens=4).incidents == []


def test_a_span_that_the_tokenizer_skips_is_not_used_and_noted(tokenizer: Any) -> None:
    """BERT's normaliser removes control characters."""
    loaded = collate(tokenizer, sample("dog \u200b\u200d park", ["\u200b\u200d", "park"], id="x"))
    assert loaded.batch.span_valid.tolist() == [[False, True]]
    assert [(incident.kind, incident.sample) for incident in loaded.incidents] == [("span without tokens", "x")]


def test_spans_read_by_themselves(tokenizer: Any) -> None:
    loaded = collate(tokenizer, sample(ENGLISH, ["red dog", "park"]), sample(CHINESE, ["公园"]), own_spans=True)
    batch = loaded.batch
    assert batch.own_token_ids is not None
    assert batch.own_token_ids.shape == (2, 2, 4)
    assert own_words(tokenizer, batch, 0, 0) == ["[CLS]", "red", "dog", "[SEP]"]
    assert own_words(tokenizer, batch, 0, 1) == ["[CLS]", "park", "[SEP]"]
    assert own_words(tokenizer, batch, 1, 0) == ["[CLS]", "公", "园", "[SEP]"]
    assert own_words(tokenizer, batch, 1, 1) == []
    assert words(tokenizer, batch, 0, 0) == ["red", "dog"]


def test_spans_read_by_themselves_survive_truncation(tokenizer: Any) -> None:
    loaded = collate(tokenizer, sample(ENGLISH, ["red", "park"]), max_tokens=4, own_spans=True)
    assert loaded.incidents == []
    assert loaded.batch.span_identity.tolist() == [[stable_id("red"), stable_id("park")]]
    assert own_words(tokenizer, loaded.batch, 0, 1) == ["[CLS]", "park", "[SEP]"]


def test_no_spans_read_by_themselves(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample(ENGLISH), sample(CHINESE), own_spans=True).batch
    assert batch.own_token_ids is not None
    assert batch.own_token_mask is not None
    assert batch.own_token_ids.shape == batch.own_token_mask.shape == (2, 0, 1)


def test_own_tokens_are_left_out_unless_asked_for(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample(ENGLISH, ["red"])).batch
    assert batch.own_token_ids is None
    assert batch.own_token_mask is None


def test_regions_and_links_are_padded(tokenizer: Any) -> None:
    first = sample(ENGLISH, ["red dog", "park"], regions=3, links=[(0, 0), (0, 2), (1, 1)])
    second = sample(CHINESE, ["公园"], id="b", regions=1, links=[(0, 0)])
    batch = collate(tokenizer, first, second).batch
    assert torch.equal(batch.regions[0], first.regions)
    assert torch.equal(batch.regions[1, :1], second.regions)
    assert (batch.regions[1, 1:] == 0).all()
    assert batch.region_valid.tolist() == [[True, True, True], [True, False, False]]
    assert batch.links.int().tolist() == [[[1, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, 0, 0]]]


def test_crops_are_padded(tokenizer: Any) -> None:
    crops = [torch.randint(1, 256, (count, 3, 5, 5), dtype=torch.uint8) for count in (2, 0)]
    first = sample(ENGLISH, regions=2, crops=crops[0])
    second = sample(CHINESE, regions=0, crops=crops[1])
    batch = collate(tokenizer, first, second).batch
    assert batch.crops is not None
    assert batch.crops.dtype == torch.uint8
    assert torch.equal(batch.crops[0], crops[0])
    assert batch.crops[1].shape == (2, 3, 5, 5)
    assert not batch.crops[1].any()


def test_no_spans_and_no_regions_at_all(tokenizer: Any) -> None:
    batch = collate(tokenizer, sample(ENGLISH), sample(CHINESE)).batch
    assert batch.span_tokens.shape == (2, 0, batch.token_ids.shape[1])
    assert batch.span_identity.shape == (2, 0)
    assert batch.regions.shape == (2, 0, 4)
    assert batch.links.shape == (2, 0, 0)
    assert batch.crops is None


def test_one_sample_without_spans_and_one_with(tokenizer: Any) -> None:
    with_spans = sample(ENGLISH, ["red dog"], regions=2, links=[(0, 1)])
    batch = collate(tokenizer, sample(CHINESE, id="b"), with_spans).batch
    assert batch.span_valid.tolist() == [[False], [True]]
    assert batch.region_valid.tolist() == [[False, False], [True, True]]
    assert batch.links.int().tolist() == [[[0, 0]], [[0, 1]]]
    assert words(tokenizer, batch, 1, 0) == ["red", "dog"]


@pytest.mark.parametrize("spans", [[], ["dog"]])
def test_types_of_the_fields(tokenizer: Any, spans: list[str]) -> None:
    crops = torch.zeros(len(spans), 3, 2, 2, dtype=torch.uint8)
    one = sample(ENGLISH, spans, regions=len(spans), crops=crops)
    batch = collate(tokenizer, one, one, own_spans=True).batch
    assert {name: tensor.dtype for name, tensor in batch.named_tensors()} == {
        "pixels": torch.uint8,
        "token_ids": torch.int64,
        "token_mask": torch.bool,
        "span_tokens": torch.bool,
        "span_entity": torch.int64,
        "span_shown": torch.int8,
        "place": torch.int64,
        "span_identity": torch.int64,
        "regions": torch.float32,
        "region_valid": torch.bool,
        "links": torch.bool,
        "group": torch.int64,
        "sample": torch.int64,
        "wording": torch.int64,
        "own_token_ids": torch.int64,
        "own_token_mask": torch.bool,
        "crops": torch.uint8,
    }
    assert {len(tensor) for _, tensor in batch.named_tensors()} == {2}


def test_samples_keep_their_order_and_names(tokenizer: Any) -> None:
    samples = [sample("dog" * n, id=f"pair {n}") for n in (3, 1, 2)]
    loaded = collate(tokenizer, *samples)
    assert loaded.ids == ["pair 3", "pair 1", "pair 2"]
    assert loaded.batch.sample.tolist() == [stable_id(name) for name in loaded.ids]
    assert loaded.batch.group.tolist() == [one.group for one in samples]
    assert torch.equal(loaded.batch.pixels, torch.stack([one.pixels for one in samples]))


def test_incidents_of_the_samples_come_first(tokenizer: Any) -> None:
    clipped = Incident("clipped box", "x", "by hand")
    one = replace(sample(ENGLISH, ["park"], id="x"), incidents=(clipped,))
    loaded = collate(tokenizer, one, one, max_tokens=4)
    assert [incident.kind for incident in loaded.incidents] == ["clipped box"] * 2 + ["truncated span"] * 2


def test_a_tokenizer_that_gives_no_mask_unless_asked() -> None:
    """As SigLIP's, whose `model_input_names` has no attention mask."""
    tokenizer = train_tokenizer([ENGLISH], 500)
    tokenizer.model_input_names = ["input_ids"]
    assert "attention_mask" not in tokenizer(ENGLISH)
    batch = collate(tokenizer, sample(ENGLISH), sample("dog", ["dog"]), own_spans=True).batch
    assert batch.token_mask.sum(1).tolist() == [FULL, 3]


# ---------------------------------------------------------------- in the order of length


def mixed_lengths() -> list[Sample]:
    """Four lengths in no order, two of them equal; in tokens CHINESE is the longest, in characters ENGLISH."""
    return [
        sample(ENGLISH, ["red dog", "park"], id="a", regions=2, links=[(0, 1)], crops=crop_strip(2)),
        sample("The dog", ["dog"], id="b", regions=1, links=[(0, 0)], crops=crop_strip(1)),
        sample(CHINESE, ["公园"], id="c", crops=crop_strip(0)),
        sample("cats", id="d", regions=3, crops=crop_strip(3)),
        sample("old park", ["park"], id="e", crops=crop_strip(0)),
    ]


def crop_strip(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2)


def test_pairs_are_sorted_by_their_number_of_tokens(tokenizer: Any) -> None:
    samples = mixed_lengths()
    loaded = Collator(tokenizer, 32, own_spans=True, sort_by_length=True)(samples)
    lengths = loaded.batch.token_mask.sum(1).tolist()
    assert lengths == sorted(lengths)
    assert loaded.ids[-2:] == ["a", "c"], "tokens count, not characters"
    assert loaded.ids.index("b") < loaded.ids.index("e"), "equal lengths keep their order"


def test_everything_moves_along_when_pairs_are_sorted(tokenizer: Any) -> None:
    """The sorted batch is the batch of the samples in that order."""
    samples = mixed_lengths()
    loaded = Collator(tokenizer, 8, own_spans=True, sort_by_length=True)(samples)
    named = {one.id: one for one in samples}
    expected = collate(tokenizer, *[named[name] for name in loaded.ids], max_tokens=8, own_spans=True)
    assert loaded.ids == expected.ids
    assert loaded.incidents == expected.incidents
    tensors = dict(expected.batch.named_tensors())
    assert tensors.keys() == dict(loaded.batch.named_tensors()).keys()
    for name, tensor in loaded.batch.named_tensors():
        assert torch.equal(tensor, tensors[name]), name


def test_incidents_follow_the_sorted_pairs(tokenizer: Any) -> None:
    noted = [replace(one, incidents=(Incident("clipped box", one.id, ""),)) for one in mixed_lengths()]
    loaded = Collator(tokenizer, 32, sort_by_length=True)(noted)
    assert [incident.sample for incident in loaded.incidents] == loaded.ids


def test_pairs_that_are_cut_count_as_equally_long(tokenizer: Any) -> None:
    samples = [sample(CHINESE, id="a"), sample(ENGLISH, id="b"), sample("cats", id="c")]
    assert Collator(tokenizer, 4, sort_by_length=True)(samples).ids == ["c", "a", "b"]


def test_sorting_one_pair(tokenizer: Any) -> None:
    assert Collator(tokenizer, 32, sort_by_length=True)([sample(ENGLISH)]).ids == ["a"]


def test_a_batch_is_its_samples_one_by_one(tokenizer: Any) -> None:
    samples = [
        sample(ENGLISH, ["red dog", "park"], id="a", regions=2, links=[(0, 1)]),
        sample(CHINESE, ["公园"], id="b", regions=1),
        sample("cats", id="c"),
    ]
    together = collate(tokenizer, *samples).batch
    for row, one in enumerate(samples):
        alone = collate(tokenizer, one).batch
        spans, regions, tokens = len(one.spans), len(one.regions), alone.token_ids.shape[1]
        assert torch.equal(together.token_ids[row, :tokens], alone.token_ids[0])
        assert not together.token_mask[row, tokens:].any()
        assert torch.equal(together.span_tokens[row, :spans, :tokens], alone.span_tokens[0])
        assert not together.span_tokens[row, spans:].any()
        assert not together.span_tokens[row, :, tokens:].any()
        assert torch.equal(together.span_identity[row, :spans], alone.span_identity[0])
        assert torch.equal(together.links[row, :spans, :regions], alone.links[0])


def test_texts_of_a_script_that_the_tokenizer_does_not_know_are_counted() -> None:
    """Half of the tokens unknown, or more; a few unknown ones in a readable text are normal."""
    tokenizer = train_tokenizer(["a dog , a cat ."] * 3, 100)
    texts = {"known": "a dog.", "few": "a dog, a 伞 cat.", "all": "雨中的红伞", "half": "雨中 a dog", "long": "伞" * 90}
    samples = [sample(text, id=name) for name, text in texts.items()]
    incidents = Collator(tokenizer, 64)(samples).incidents
    assert {incident.kind for incident in incidents} == {"text of unknown tokens"}
    assert [incident.sample for incident in incidents] == ["all", "half", "long"]
    assert incidents[0].detail == "5 of 5 tokens are [UNK]: '雨中的红伞'"
    assert incidents[2].detail == f"62 of 62 tokens are [UNK]: '{'伞' * 40}...'"


def test_the_end_and_the_padding_of_a_text_are_no_unknown_tokens() -> None:
    """CLIP names one token as the unknown one, as the end of a text and as its padding."""
    tokenizer = train_tokenizer(["a dog sat near the old park"], 100)
    tokenizer.unk_token = tokenizer.pad_token = tokenizer.sep_token
    assert not Collator(tokenizer, 64)([sample("a dog sat near the old park"), sample("a dog")]).incidents
