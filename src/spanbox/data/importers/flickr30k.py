"""Flickr30k Entities: captions with phrases, and the boxes of the chains that the phrases belong to."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spanbox.data.importers import check_id, is_file, read_file
from spanbox.data.importers.driver import Images, Pairs, Source, clipped
from spanbox.data.importers.voc import parse_xml
from spanbox.data.manifest import Box, Entity, Record
from spanbox.errors import DataError

MAX_BYTES = 1024 * 1024  # of the sentences of an image
MAX_LIST_BYTES = 64 * 1024 * 1024  # of a list of images
PHRASE = re.compile(r"\[/EN#(\d+)/(\S+)\s+")
NOT_VISUAL = "0"
SPLITS = {
    "train": ("train.txt", "split_train.txt"),
    "val": ("val.txt", "split_val.txt"),
    "test": ("test.txt", "split_test.txt"),
}


def flickr30k_entities(source: Source) -> Pairs:
    """`Sentences/ID.txt`, `Annotations/ID.xml`, and the splits `train.txt`, `val.txt`, `test.txt`."""
    sentences = _folder(source, "Sentences")
    annotations = _folder(source, "Annotations")
    images = Images(source, source.image_folder("flickr30k-images", "flickr30k_images", "images", "Images", "."))
    unrelated = _unrelated(source)
    splits = dict(_splits(source, sentences))
    source.total = sum(map(len, splits.values()))
    for split, ids in splits.items():
        for image_id in ids:
            path = sentences / f"{check_id(image_id, str(source.root))}.txt"
            if not is_file(path):
                source.note(split, "image without sentences", image_id, str(path))
                continue
            yield from (
                (split, record) for record in _records(source, split, image_id, path, annotations, images, unrelated)
            )


def _records(
    source: Source,
    split: str,
    image_id: str,
    path: Path,
    annotations: Path,
    images: Images,
    unrelated: set[tuple[str, int]],
) -> Iterator[Record]:
    boxes, unclear = _boxes(source, split, image_id, annotations / f"{image_id}.xml") or ({}, None)
    image = images.path(split, f"{image_id}.jpg")
    content = read_file(path, MAX_BYTES).decode("utf-8-sig", errors="replace")
    for number, line in enumerate(content.split("\n")):  # not splitlines(): U+2028 may be within a caption
        if not line.strip():
            continue
        if "\ufffd" in line:
            source.note(split, "caption that is not UTF-8", image_id, f"caption {number}: {line[:80]}")
        if (image_id, number + 1) in unrelated:  # counted from 1
            source.note(split, "caption without a relation to its image", image_id, f"caption {number}, left out")
            continue
        text, phrases = parse_sentence(line)
        if "[/EN#" in text or not text:
            source.note(split, "unreadable caption", image_id, line[:80])
            continue
        entities = tuple(
            Entity(
                start,
                end,
                kind,
                boxes=tuple(boxes.get(chain, ())),
                ambiguous=chain not in (NOT_VISUAL, *boxes) and (unclear is None or chain in unclear),
            )
            for start, end, chain, kind in phrases
        )
        yield Record(
            f"{image_id}-{number}", image, text, group=image_id, lang="en", entities=entities, source="flickr30k"
        )


def parse_sentence(line: str) -> tuple[str, list[tuple[int, int, str, str]]]:
    """The text of a marked caption, and its phrases as (start, end, chain, type).

    A phrase ends at the first token that ends in `]`; tokens are joined by single spaces.
    """
    words: list[str] = []
    phrases: list[tuple[int, int, str, str]] = []
    length = 0
    opened: tuple[int, str, str] | None = None
    for token in line.split():
        mark = PHRASE.match(token + " ")
        if mark and opened is None:
            opened = (length, mark.group(1), mark.group(2).split("/")[0])
            continue
        closes = opened is not None and token.endswith("]")
        word = token[:-1] if closes else token
        if word:
            words.append(word)
            length += len(word) + 1
        if closes and opened is not None:
            start, chain, kind = opened
            if length - 1 > start:
                phrases.append((start, length - 1, chain, kind))
            opened = None
    return " ".join(words), phrases


def _boxes(source: Source, split: str, image_id: str, path: Path) -> tuple[dict[str, list[Box]], set[str]] | None:
    """The boxes of each chain, and the chains that are the whole scene or have no box for another reason.

    None: they are not known.
    """
    boxes: dict[str, list[Box]] = {}
    unclear: set[str] = set()
    if not is_file(path):
        source.note(split, "image without annotations", image_id, str(path))
        return None
    try:
        root = parse_xml(path)
    except DataError as error:
        source.note(split, "unreadable file of boxes", image_id, str(error))
        return None
    size = _size(root)
    for element in root.findall("object"):
        chains = [(name.text or "").strip() for name in element.findall("name")]
        corners = element.find("bndbox")
        if corners is None:
            unclear.update(chains)
            continue
        box = _box(corners, size)
        if box is None:
            source.note(split, "unusable box", image_id, f"of chain {', '.join(chains)}")
            unclear.update(chains)
            continue
        for chain in chains:
            if chain != NOT_VISUAL:
                boxes.setdefault(chain, []).append(box)
    return boxes, unclear


def _box(corners: Any, size: tuple[float, float] | None) -> Box | None:
    """Corners are counted from 1 and inclusive."""
    try:
        x0, y0, x1, y1 = (float(corners.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return clipped((x0 - 1, y0 - 1, x1, y1), size)


def _size(root: Any) -> tuple[float, float] | None:
    try:
        width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _folder(source: Source, name: str) -> Path:
    return source.root / name if (source.root / name).is_dir() else source.root


def _splits(source: Source, sentences: Path) -> Iterator[tuple[str, list[str]]]:
    """The ids of each split; all of them as `all` where there are no lists."""
    found = False
    for split, names in SPLITS.items():
        path = next((source.root / name for name in names if is_file(source.root / name)), None)
        if path is not None:
            found = True
            yield split, _text(path).split()
    if not found:
        ids = sorted(path.stem for path in sentences.glob("*.txt") if path.stem.isdigit())
        if not ids:
            raise DataError(
                f"{source.root}: no sentences; expected Sentences/ID.txt, and train.txt, val.txt and test.txt"
            )
        yield "all", ids


def _unrelated(source: Source) -> set[tuple[str, int]]:
    path = source.root / "UNRELATED_CAPTIONS"
    if not is_file(path):
        return set()
    lines = (line.split() for line in _text(path).splitlines())
    return {(parts[0], int(parts[1])) for parts in lines if len(parts) == 2 and parts[1].isdecimal()}


def _text(path: Path) -> str:
    return read_file(path, MAX_LIST_BYTES).decode("utf-8-sig", errors="replace")
