"""Tokenizers: from a local transformers folder, or a small one made from the texts at hand."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spanbox.errors import ConfigError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
INSIDE_WORD = 0x40000  # code points from here on are not assigned, or removed by the normaliser


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a local transformers folder, or of a model in the local hub cache.

    Raises:
        ConfigError: there is none, it has no vocabulary, or it is a slow one, which cannot tell which characters a
            token stands for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path}: no tokenizer could be loaded ({reason}); expected tokenizer.json in that folder"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{path}: its tokenizer is a slow one, which does not map tokens to characters; expected tokenizer.json"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a config.json alone
        raise ConfigError(f"{path}: its tokenizer has no vocabulary; expected tokenizer.json in that folder")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A WordPiece tokenizer in the manner of BERT (lower case, Chinese by character), learned from `texts`.

    For models that start from nothing. Equal texts give an equal tokenizer. It has at most `vocabulary` tokens.

    Raises:
        ConfigError: the characters of the texts alone are more.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(SPECIAL_TOKENS.values())
    words = (word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = special + _learn_pieces(words, vocabulary - len(special))
    if len(pieces) > vocabulary:
        raise ConfigError(
            f"model.text.architecture.vocab_size: {vocabulary} leaves no room for all characters of the texts; "
            f"set it to {len(pieces)} or more"
        )
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(special)
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    )
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _learn_pieces(words: Iterable[str], count: int) -> list[str]:
    """At most `count` pieces that words are made of, with every single character; "##" marks those inside a word.

    `trainers.WordPieceTrainer` learns the same, but breaks ties by the order of a hash table, which changes from call
    to call. `BpeTrainer` breaks them by code point, so it is shown the characters inside words as characters of their
    own. Words with characters that Unicode has not assigned are left out.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marked = (
        word[0] + "".join(chr(ord(letter) + INSIDE_WORD) for letter in word[1:])
        for word in words
        if ord(max(word)) < INSIDE_WORD
    )
    learner.train_from_iterator(marked, trainers.BpeTrainer(vocab_size=count, show_progress=False))
    numbers: dict[str, int] = learner.get_vocab()
    return [_unmarked(piece) for piece in sorted(numbers, key=numbers.__getitem__)]


def _unmarked(piece: str) -> str:
    prefix = "##" if ord(piece[0]) >= INSIDE_WORD else ""
    return prefix + "".join(chr(ord(letter) % INSIDE_WORD) for letter in piece)
