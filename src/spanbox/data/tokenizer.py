"""Tokenizers: from a local transformers folder, or a small one trained on the training texts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spanbox.documents import read_json, read_text
from spanbox.errors import ConfigError, first_line

JSON_FILES = frozenset(
    (
        *("config.json", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
    )
)
TEXT_FILES = frozenset(("vocab.txt", "merges.txt"))
LONGEST_WORD = 100  # in characters, as for BERT's WordPiece; BPE takes quadratic time in the length of a word
SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a local transformers folder, or of a model in the local hub cache.

    Texts are truncated and padded at their end, whatever the folder's settings, since the class token is the first.

    Raises:
        ConfigError: there is none, it has no vocabulary or no padding token, or it is a slow tokenizer, which does not
            map tokens to characters.
    """
    try:
        _check_files(Path(path))
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare `Exception` for a damaged file
        raise ConfigError(
            f"{path}: no tokenizer could be loaded ({first_line(error)}); expected tokenizer.json in that folder"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{path}: is a slow tokenizer, which does not map tokens to characters; expected tokenizer.json"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # as transformers makes it from a config.json alone
        raise ConfigError(f"{path}: the tokenizer has no vocabulary; expected tokenizer.json in that folder")
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{path}: the tokenizer has no padding token; name it as pad_token in tokenizer_config.json")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _check_files(folder: Path) -> None:
    """Refuse files that would hang or fill memory: special files, and JSON and text beyond the limits."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not (file.is_file() or file.is_dir()):
            raise OSError(f"{file.name} is not a regular file")
        if file.name in JSON_FILES:
            read_json(file)
        if file.name in TEXT_FILES:
            read_text(file)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Train a small BPE tokenizer with BERT's normalisation (lower case, Chinese by character) on texts.

    For text towers with random weights. It has at most `vocabulary` tokens. BPE is deterministic, because its trainer
    breaks ties by code point; the WordPiece trainer is not. Words of more than 100 characters are split.

    Raises:
        ConfigError: the texts have more than `vocabulary` different characters.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pieces])
    special = list(SPECIAL_TOKENS.values())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() > vocabulary:
        raise ConfigError(
            f"model.text.architecture.vocab_size: {vocabulary} is too small for all characters of the texts; set it "
            f"to {tokenizer.get_vocab_size()} or more"
        )
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    )
    names = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def mostly_unknown(tokenizer: Any, encoding: Encoding) -> str | None:
    """How many tokens of a text are unknown, if at least half of them are; None otherwise.

    Tokens that the tokenizer adds do not count: CLIP's unknown token is also the end of a text and its padding.
    """
    tokens = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    own = [token for token, is_added in tokens if not is_added]
    unknown = own.count(tokenizer.unk_token_id)
    return f"{unknown} of {len(own)} tokens are {tokenizer.unk_token}" if unknown and 2 * unknown >= len(own) else None


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """The parts of a text that the tokenizer reads as its unknown token, each once, in their order. Unknown tokens
    side by side are one part."""
    encoding = tokenizer(text).encodings[0]
    runs: list[list[int]] = []
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if token != tokenizer.unk_token_id or start == end:  # known, or a special token
            continue
        if runs and runs[-1][1] == start:
            runs[-1][1] = end
        else:
            runs.append([start, end])
    return list(dict.fromkeys(text[start:end] for start, end in runs))
