"""Machine translation by transformers' Marian models (OPUS-MT) from local folders."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from spanbox.documents import read_json
from spanbox.errors import ConfigError, first_line
from spanbox.models.pretrained import check_files, fingerprint, quiet

NEW_TOKENS = 2, 16  # at most so many per token of the source, and so many more


class MarianTranslator:
    """Translates with a Marian model from a local folder; beam search as the model's own settings have it.

    A model of several target languages needs the name of one after its folder: `opus-mt-en-zh@cmn_Hans`. Texts beyond
    the length of the model are cut off.

    Raises:
        ConfigError: no such folder, a package is missing, no Marian model, an unknown target language.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        folder, self._prefix = _folder_and_prefix(source)
        self.name = folder.resolve().name
        self.key = f"{fingerprint(folder)} {self._prefix}"
        self.device = device
        self.tokenizer, self.model = _load(folder)
        codes = getattr(self.tokenizer, "supported_language_codes", [])
        if self._prefix and self._prefix not in codes:
            known = ", ".join(code.strip("<>") for code in codes) or "none, as it has one target language"
            raise ConfigError(f"--via: {folder} has no target language {self._prefix.strip('<>')!r}; it has {known}")
        self.model.to(device).eval()

    @torch.inference_mode()
    def translate(self, texts: Sequence[str]) -> list[str]:
        """The translations, in the order of the texts; empty where one has not ended within its limit of tokens."""
        prefixed = [f"{self._prefix} {text}" if self._prefix else text for text in texts]
        limit = self.model.config.max_position_embeddings - 1
        inputs = self.tokenizer(prefixed, return_tensors="pt", padding=True, truncation=True, max_length=limit)
        inputs = inputs.to(self.device)
        factor, more = NEW_TOKENS
        longest = (factor * inputs["attention_mask"].sum(dim=1) + more).clamp(max=limit)
        with quiet():
            tokens = self.model.generate(
                **inputs, max_new_tokens=int(longest.max()), do_sample=False, forced_eos_token_id=None
            )
        ends = tokens[:, 1:] == self.model.generation_config.eos_token_id
        is_complete = ends.any(dim=1) & (ends.int().argmax(dim=1) < longest)
        translations: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text if complete else "" for text, complete in zip(translations, is_complete.tolist(), strict=True)]


def _folder_and_prefix(source: str) -> tuple[Path, str]:
    folder, at, language = source.rpartition("@")
    if not at or Path(source).is_dir():
        folder, language = source, ""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"--via: {path} is not a folder with a config.json; give the folder of a Marian model, fetched for example "
            "with `hf download Helsinki-NLP/opus-mt-en-zh --local-dir DIR`"
        )
    return path, f">>{language}<<" if language else ""


def _load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model."""
    try:
        kind = read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"--via: {folder}/config.json is not a transformers config: {error}") from None
    if kind != "marian":
        raise ConfigError(
            f"--via: {folder} holds a model of type {kind!r}; expected a Marian model. Other models can be used with "
            "--translator module:function"
        )
    if find_spec("sentencepiece") is None:
        raise ConfigError("--via: Marian models need the package sentencepiece: pip install 'spanbox[translate]'")
    check_files(folder, "--via")
    from transformers import MarianMTModel, MarianTokenizer

    try:
        with quiet(), warnings.catch_warnings():
            # For the punctuation of other alphabets; an optional package of Marian tokenizers.
            warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
            tokenizer = MarianTokenizer.from_pretrained(folder, local_files_only=True)
            model, report = MarianMTModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # sentencepiece, safetensors and transformers each raise other classes of errors
        raise ConfigError(f"--via: {folder} cannot be loaded as a Marian model: {first_line(error)}") from None
    if report["missing_keys"]:
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"--via: {folder} lacks weights of its model, such as {names}; fetch it again")
    return tokenizer, model
