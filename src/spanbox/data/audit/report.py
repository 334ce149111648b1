"""The result of an audit: counts, and every finding of each kind."""

import json
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from spanbox.data.audit.shape import Shape
from spanbox.data.manifest import Record
from spanbox.files import explained, replacing

EXAMPLES = 5  # of each kind, kept in memory and shown
_MEMORY = 1024 * 1024  # bytes of findings of a kind that are kept in memory; the rest is in a temporary file

# Each kind of finding, and its meaning for training or the remedy.
PROBLEMS = {
    "wrong line": "training stops here; fix or remove the line",
    "empty text": "the pair has nothing to learn from; remove it",
    "text in a wrong encoding": "read the original again, as UTF-8 or in its own encoding, and recompute the offsets",
    "unusable span": "training stops here; offsets are half-open and count Unicode code points from 0",
    "span given twice": "give the entity once, with all its boxes",
    "spans look like inclusive ends": "ends are half-open: add 1 to every end",
    "spans look one too long": "subtract 1 from every end",
    "spans look counted from 1": "offsets count from 0: subtract 1 from every start and end",
    "spans look one too low": "add 1 to every start and end",
    "spans look like offsets without white space": "offsets count every character, white space included",
    "spans look like offsets without emoji": "offsets count every character, emoji included",
    "spans look like offsets without emoji and symbols": "offsets count every character, emoji included",
    "spans look like UTF-16 offsets": "offsets count Unicode code points: convert them, as docs/data.md shows",
    "spans look like byte offsets": "offsets count Unicode code points: convert them, as docs/data.md shows",
    "boxes look like fractions": "multiply by the width and height of the image as shown",
    "boxes look like x y width height": "convert all of them: x1 = x + width, y1 = y + height; do not drop any",
    "boxes look like y0 x0 y1 x1": "exchange the coordinates: a box is x0 y0 x1 y1",
    "boxes look like centre x, centre y, width, height": "convert all of them to x0 y0 x1 y1; do not drop any",
    "boxes look like x0 x1 y0 y1": "exchange the coordinates: a box is x0 y0 x1 y1; do not drop any",
    "boxes look like x1 y1 x0 y0": "exchange the corners: a box is x0 y0 x1 y1",
    "boxes look like corners in any order": "sort the corners: x0 < x1 and y0 < y1; do not drop any",
    "boxes for another size of the images": "scale the boxes, or use the images that they were made for",
    "boxes of the image before turning": "turn them with the EXIF orientation: boxes refer to the image as shown",
    "inverted box": "fix it, or set data.inverted_boxes=drop",
    "box outside the image": "check scale and order: a box is x0 y0 x1 y1, in pixels of the image as shown",
    "box partly outside the image": "it will be clipped; check that it was made for this size of the image",
    "missing image": "counts against data.broken_limit",
    "broken image": "counts against data.broken_limit",
    "id used twice": "give every pair its own id",
    "image in two manifests": "remove it from one of them, or the model is tested on its training data",
    "same image content in two manifests": "remove it from one of them, or the model is tested on its training data",
    "near-duplicate image in two manifests": "look at both (--html); if it is one picture, keep it in one of them",
    "group in two manifests": "remove it from one of them, or the model is tested on its training data",
}
NOTES = {
    "no negatives": "nothing to contrast: the coarse level cannot learn from such pairs, nor the fine level from such "
    "entities",
    "boxes look like percent": "if so, multiply by the width and height of the image as shown and divide by 100",
    "boxes look like thousandths": "if so, multiply by the width and height of the image as shown and divide by 1000",
    "boxes of unknown convention": "see docs/data.md for the convention, and look at some: spanbox data show",
    "spans of unknown convention": "see docs/data.md for the offsets, and look at some: spanbox data show",
    "box below a pixel": "little can be seen in it; check the box",
    "box of the whole image": "no background is left to compare with; leave the box out if it marks nothing",
    "span cuts a word": "check the offsets; harmless where a part of a word is meant",
    "span with white space at its edge": "harmless for most tokenizers; other names for the same entity in scores",
    "span without a visible character": "most tokenizers make no token of it, and the span is left out",
    "text over the limit of tokens": "the rest is not read; shorten it, or raise data.max_tokens if the tower allows",
    "span over the limit of tokens": "it is not used; see the texts over the limit",
    "text of unknown tokens": "the vocabulary lacks its script; choose another text tower",
    "HTML in a text": "remove the tags and decode the entities, and recompute the offsets",
    "accents apart from their letters": "bring all texts into one form (NFC), and recompute the offsets",
    "language and script differ": "correct lang, or the text",
    "rare type": "little can be learned or measured of it",
    "unusual image size": "look at it; harmless if meant",
    "unusual shape of an image": "it is distorted to a square; look at it",
    "unusual text length": "look at it; harmless if meant",
    "unusual number of boxes": "look at it; boxes above data.max_regions are not used",
    "same pair twice": "remove one, or it counts twice",
    "paraphrase given twice": "it equals the text or another paraphrase; remove it",
    "different images in one group": "they are never each other's negatives; give each image its own group",
    "same image in different groups": "give these pairs the same group, or they are each other's negatives",
    "near-duplicate images": "look at both (--html); if they are one picture, give these pairs the same group",
    "same text in two manifests": "usual for short captions; such texts are easier to find",
    "id also in another manifest": "harmless for training; reports name pairs by their ids",
}
OTHER_FORMATS = frozenset(
    {
        "boxes look like fractions",
        "boxes look like x y width height",
        "boxes look like centre x, centre y, width, height",
        "boxes look like x0 x1 y0 y1",
        "boxes look like x1 y1 x0 y0",
        "boxes look like corners in any order",
        "boxes of unknown convention",
    }
)
"""Those of which some boxes are inverted as they are."""


class Example(NamedTuple):
    """The place of a finding."""

    manifest: str
    line: int
    detail: str
    other: tuple[str, int] | None = None  # manifest and line of the pair that it repeats or contradicts


class Finding:
    """One kind of problem or note: all its places, the first few of them in memory."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.advice = (PROBLEMS | NOTES)[kind]
        self.count = 0
        self.examples: list[Example] = []
        self._stored = tempfile.SpooledTemporaryFile(max_size=_MEMORY)  # noqa: SIM115 - closed with the finding
        weakref.finalize(self, self._stored.close)

    def add(self, example: Example) -> None:
        """Raises OutputError when the temporary folder is full."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)
        with explained(Path(tempfile.gettempdir())):
            content = {name: value for name, value in example._asdict().items() if value is not None}
            self._stored.write(_to_json(content) + b"\n")

    def all_places(self) -> Iterator[bytes]:
        """Each place as a JSON object with manifest, line and detail."""
        self._stored.seek(0)
        for line in self._stored:
            yield line.rstrip(b"\n")


@dataclass
class Counts:
    """The content of a manifest, or of all of them. `images`, `groups` and `texts` are numbers of different ones."""

    pairs: int = 0
    images: int = 0
    groups: int = 0
    texts: int = 0
    entities: int = 0
    entities_with_box: int = 0
    entities_without_box: int = 0
    boxes: int = 0
    proposals: int = 0
    paraphrases: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        with_box = sum(bool(entity.boxes) for entity in record.entities)
        self.pairs += 1
        self.entities += len(record.entities)
        self.entities_with_box += with_box
        self.entities_without_box += len(record.entities) - with_box
        self.boxes += sum(len(entity.boxes) for entity in record.entities)
        self.proposals += len(record.objects)
        self.paraphrases += len(record.paraphrases)
        self.languages[record.lang] += 1
        self.sources[record.source] += 1
        self.types.update(entity.type for entity in record.entities)


@dataclass
class AuditReport:
    """Counts and findings of an audit."""

    manifests: dict[str, Counts]
    total: Counts
    findings: dict[str, Finding]
    decoded: bool  # images were decoded and compared by content, not only their headers read
    shapes: dict[str, Shape]  # distributions of each manifest

    @property
    def names(self) -> list[str]:
        """The names of the manifests; their paths where two have one name."""
        names = [Path(path).name for path in self.manifests]
        return names if len(set(names)) == len(names) else list(self.manifests)

    @property
    def problems(self) -> list[Finding]:
        return [self.findings[kind] for kind in PROBLEMS if kind in self.findings]

    @property
    def notes(self) -> list[Finding]:
        return [self.findings[kind] for kind in NOTES if kind in self.findings]

    @property
    def ok(self) -> bool:
        return not self.problems

    def write(self, path: Path) -> None:
        """Write everything as JSON, every finding with its place, one per line. Raises OutputError."""
        with replacing(path) as file:
            for piece in self._pieces():
                file.write(piece)

    def _pieces(self) -> Iterator[bytes]:
        """The JSON in pieces: millions of findings are never in memory at once."""
        manifests = {
            path: vars(counts) | {"shape": self.shapes[path].summary()} for path, counts in self.manifests.items()
        }
        head = {"ok": self.ok, "decoded": self.decoded, "manifests": manifests, "total": vars(self.total)}
        yield _to_json(head, indent=1).removesuffix(b"\n}")
        for title, findings in (("problems", self.problems), ("notes", self.notes)):
            yield f',\n "{title}": ['.encode()
            for number, finding in enumerate(findings):
                entry = {"kind": finding.kind, "advice": finding.advice, "count": finding.count}
                yield (b",\n  " if number else b"\n  ") + _to_json(entry).removesuffix(b"}") + b', "examples": ['
                for place, content in enumerate(finding.all_places()):
                    yield (b",\n   " if place else b"\n   ") + content
                yield b"]}"
            yield b"]"
        yield b"\n}\n"


def _to_json(content: object, indent: int | None = None) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=indent).encode(errors="replace")
