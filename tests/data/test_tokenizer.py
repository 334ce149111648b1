"""Tokenizers that are learned, saved, loaded, and refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from spanbox.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer, unknown_words
from spanbox.errors import ConfigError

TEXTS = [
    "The geometry of plants . Garfield Park Conservatory",
    "Café Müller opened in Zürich; visits and flags",
    "我爱北京天安门，加菲猫在芝加哥",
    "小明 visits Garfield Park 和 北京 😀",
    "the quick brown fox jumps over lazy dogs",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 400)


def serialised(texts: list[str], vocabulary: int) -> str:
    return str(train_tokenizer(texts, vocabulary).backend_tokenizer.to_str())


@pytest.mark.parametrize("vocabulary", [100, 130, 400])
def test_equal_texts_give_an_equal_tokenizer(vocabulary: int) -> None:
    """Ties between pairs of pieces abound in so little text."""
    first = serialised(TEXTS, vocabulary)
    assert all(serialised(TEXTS, vocabulary) == first for _ in range(4))


def test_order_of_the_texts_does_not_matter() -> None:
    assert serialised(TEXTS[::-1], 130) == serialised(TEXTS, 130)


@pytest.mark.slow
def test_another_process_learns_the_same() -> None:
    program = (
        "import sys; from spanbox.data.tokenizer import train_tokenizer; "
        "print(train_tokenizer(sys.argv[1:], 130).backend_tokenizer.to_str())"
    )
    run = subprocess.run([sys.executable, "-c", program, *TEXTS], capture_output=True, encoding="utf-8", check=True)
    assert run.stdout.strip() == serialised(TEXTS, 130)


def test_frequent_words_become_one_token_and_rare_ones_pieces() -> None:
    tokenizer = train_tokenizer(["garfield park"] * 9 + ["gardening"], 26)
    assert tokenizer.tokenize("garfield park") == ["garfield", "park"]
    pieces = tokenizer.tokenize("gardening")
    assert len(pieces) > 1
    assert "".join(pieces) == "gardening"


def test_vocabulary_is_kept_to() -> None:
    assert len(train_tokenizer(TEXTS, 130)) == 130
    assert len(train_tokenizer(["ab ab"], 130)) < 130, "there is no more to learn"


def test_a_vocabulary_without_room_for_the_characters_is_refused() -> None:
    """Or ids would run past the embedding."""
    with pytest.raises(ConfigError, match=r"vocab_size: 20 is too small .* set it to (\d+) or more") as refusal:
        train_tokenizer(TEXTS, 20)
    needed = int(str(refusal.value).split()[-3])
    assert len(train_tokenizer(TEXTS, needed)) == needed


@pytest.mark.parametrize("vocabulary", [110, 400])
def test_training_texts_have_no_unknown_tokens(vocabulary: int) -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary)
    for text in TEXTS:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_characters_never_seen_are_unknown(tokenizer: Any) -> None:
    assert tokenizer.tokenize("the ж") == ["the", SPECIAL_TOKENS["unk"]]


def test_chinese_goes_by_character(tokenizer: Any) -> None:
    assert tokenizer.tokenize("北京天安门") == list("北京天安门")


def test_case_and_accents_do_not_matter(tokenizer: Any) -> None:
    assert tokenizer.tokenize("CAFÉ ZÜRICH") == tokenizer.tokenize("cafe zurich")


def test_special_tokens_frame_a_sentence_and_pad_it(tokenizer: Any) -> None:
    names = [SPECIAL_TOKENS[name] for name in ("pad", "unk", "cls", "sep", "mask")]
    assert [
        tokenizer.pad_token,
        tokenizer.unk_token,
        tokenizer.cls_token,
        tokenizer.sep_token,
        tokenizer.mask_token,
    ] == names
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4]
    encoded = tokenizer(["the fox", "the"], padding=True)
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[1]) == ["[CLS]", "the", "[SEP]", "[PAD]"]
    assert encoded.attention_mask == [[1, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_spell_the_tokens(tokenizer: Any, text: str) -> None:
    encoding = tokenizer(text).encodings[0]
    assert encoding.offsets[0] == encoding.offsets[-1] == (0, 0)
    for token, (start, end) in zip(encoding.tokens[1:-1], encoding.offsets[1:-1], strict=True):
        assert tokenizer.backend_tokenizer.normalizer.normalize_str(text[start:end]).strip() == token


def test_long_words_are_split() -> None:
    """A word of 400 equal characters is four pieces of at most 100, in order; shorter words are as before."""
    tokenizer = train_tokenizer(["x" * 400, "a red car"], 40)
    encoding = tokenizer("x" * 400 + " red", return_offsets_mapping=True, add_special_tokens=False)
    widths = [end - start for start, end in encoding["offset_mapping"]]
    assert sum(widths) == 403
    assert max(widths) <= 100
    assert tokenizer.decode(encoding["input_ids"][-1]) == "red"


def test_texts_without_a_word() -> None:
    assert len(train_tokenizer(["", " "], 60)) == len(SPECIAL_TOKENS)


def test_a_saved_tokenizer_loads_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.is_fast
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for text in TEXTS:
        first, second = (one(text, truncation=True, max_length=6).encodings[0] for one in (tokenizer, loaded))
        assert (first.ids, first.offsets) == (second.ids, second.offsets)


def test_a_vocabulary_file_alone_loads(tmp_path: Path) -> None:
    """Folders of older models hold vocab.txt and no tokenizer.json."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS.values(), "the", "fox"]))
    assert load_tokenizer(str(tmp_path)).tokenize("The fox") == ["the", "fox"]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no tokenizer could be loaded .* expected tokenizer\.json"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_damaged_file_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.')
    with pytest.raises(ConfigError, match=r"no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "roberta", "clip"])
def test_a_model_folder_without_its_tokenizer_is_refused(tmp_path: Path, kind: str) -> None:
    """From a config alone transformers makes a tokenizer that knows no word."""
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    with pytest.raises(ConfigError, match=r"has no vocabulary; expected tokenizer\.json"):
        load_tokenizer(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_a_file_beyond_the_limit_is_not_read(
    tokenizer: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("was read"))
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ConfigError, match=r"the file has more than .* MiB, the limit for it"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_padding_token_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"no padding token; name it as pad_token in tokenizer_config\.json"):
        load_tokenizer(str(tmp_path))


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"slow tokenizer, which does not map tokens to characters"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a red kite", []),
        ("a ροζ kite and 风筝 ροζ", ["ροζ", "风筝"]),
        ("", []),
        ("红 kite", []),
    ],
)
def test_unknown_words(text: str, unknown: list[str]) -> None:
    tokenizer = train_tokenizer(["a red kite and a boat", "红船"] * 5, 60)
    assert unknown_words(tokenizer, text) == unknown


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_texts_are_read_from_their_beginning_whatever_the_folder_says(side: str, tmp_path: Path) -> None:
    texts = ["a red dog sat near the park", "a dog"]
    train_tokenizer(texts, 100).save_pretrained(tmp_path)
    before = load_tokenizer(str(tmp_path))(texts, truncation=True, max_length=6, padding=True)["input_ids"]
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {side: "left"}))
    after = load_tokenizer(str(tmp_path))(texts, truncation=True, max_length=6, padding=True)["input_ids"]
    assert after == before
