"""Image-text pairs for the tests of the data: on disk as a manifest, or already decoded as samples."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from spanbox.data.manifest import Entity, Manifest, Record, write_manifest
from spanbox.structures import Sample, stable_id

RED, BLUE = (255, 0, 0), (0, 0, 255)
Box = tuple[float, float, float, float]


def entity(text: str, name: str, *boxes: Box, identity: str = "") -> Entity:
    """The first mention of `name` in `text`."""
    start = text.index(name)
    return Entity(start=start, end=start + len(name), identity=identity, boxes=boxes)


def save_manifest(folder: Path, records: Sequence[Record], *, images: bool = True) -> Manifest:
    """The records as a manifest; each image 40 x 20 pixels of a colour of its own, unless it is there already."""
    for number, record in enumerate(records):
        path = folder / record.image
        if images and not path.exists():
            Image.new("RGB", (40, 20), (number * 40 % 256, number * 17 % 256, 128)).save(path)
    write_manifest(folder / "pairs.jsonl", records)
    return Manifest(folder / "pairs.jsonl")


def sample(
    text: str,
    spans: Sequence[str] = (),
    *,
    id: str = "a",
    regions: int = 0,
    links: Sequence[tuple[int, int]] = (),
    crops: Tensor | None = None,
) -> Sample:
    """A decoded pair; each span is the first mention of its text, each region its own diagonal strip of the image."""
    edges = [(text.index(span), text.index(span) + len(span)) for span in spans]
    link_mask = torch.zeros(len(spans), regions, dtype=torch.bool)
    for link in links:
        link_mask[link] = True
    low = torch.arange(regions)[:, None].float() / 10
    return Sample(
        id=id,
        place=0,
        pixels=torch.full((3, 4, 4), len(text), dtype=torch.uint8),
        text=text,
        group=stable_id(id),
        spans=tuple(edges),
        span_texts=tuple(spans),
        entities=tuple(range(len(spans))),
        identities=tuple(stable_id(span) for span in spans),
        shown=tuple(link_mask.any(dim=1).int().tolist()),
        regions=torch.cat([low, low, low + 0.1, low + 0.1], dim=1),
        links=link_mask,
        crops=crops,
        incidents=(),
    )
