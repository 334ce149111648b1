"""Entities and noun phrases of texts by a pipeline of spaCy, which is optional."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from spanbox.errors import ConfigError, first_line

Spans = Literal["entities", "noun-phrases", "both"]


class SpacyTagger:
    """Tags texts with a pipeline of spaCy.

    Args:
        pipeline: name of an installed pipeline, such as `en_core_web_sm`, or a folder.
        spans: named entities, noun phrases (without pronouns), or both; then noun phrases that touch no entity.

    Raises:
        ConfigError: spaCy is missing, or has no such pipeline.
    """

    def __init__(self, pipeline: str, spans: Spans) -> None:
        try:
            import spacy
        except ImportError:
            raise ConfigError("--tagger: pipelines of spaCy need the package: pip install 'spanbox[spacy]'") from None
        try:
            self._pipeline = spacy.load(pipeline)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(
                f"--tagger: spaCy has no pipeline {pipeline!r} ({first_line(error)}); install it, as with `python -m "
                "spacy download en_core_web_sm`, or give its folder"
            ) from None
        self.name = f"spacy:{pipeline}"
        version = getattr(self._pipeline, "meta", {}).get("version", "")
        self.key = f"{self.name} {version} {spans}"
        self._spans = spans

    def tag(self, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        """The spans of each text. Raises ConfigError where the pipeline has no noun phrases."""
        return [list(self._spans_of(document)) for document in self._pipeline.pipe(texts)]

    def _spans_of(self, document: Any) -> Iterator[dict[str, Any]]:
        entities = [] if self._spans == "noun-phrases" else list(document.ents)
        for span in entities:
            yield {"start": span.start_char, "end": span.end_char, "type": span.label_}
        if self._spans == "entities":
            return
        try:
            phrases = [phrase for phrase in document.noun_chunks if phrase.root.pos_ != "PRON"]
        except (NotImplementedError, ValueError) as error:  # no such language, no parser
            reason = (str(error).splitlines() or ["no parser"])[0]
            raise ConfigError(
                f"--tagger: {self.name} finds no noun phrases ({reason}); use --spans entities, or a pipeline with a "
                "parser of a language that has them"
            ) from None
        for phrase in phrases:
            if all(phrase.end_char <= span.start_char or phrase.start_char >= span.end_char for span in entities):
                yield {"start": phrase.start_char, "end": phrase.end_char, "type": ""}
