"""Cleaning, measured: faults planted in a good manifest, and how many of them `spanbox data clean` finds.

    spanbox data demo runs/scenes --n 6000
    python benchmarks/planted_noise.py runs/scenes/train.jsonl --out runs/planted --folds 3 train.steps=800

Planted are images exchanged among pairs, boxes moved to another box of the image, and entities stripped of their boxes.
The truth is known, so precision and recall are exact.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import msgspec

from spanbox.cleaning import clean
from spanbox.data.images import image_size
from spanbox.data.manifest import Box, Manifest, Record, relocated, write_manifest
from spanbox.geometry import SAME_OBJECT_IOU

Truth = dict[str, Any]  # by the id of the pair: "swapped", or by entity its fault and its right boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="folds trained at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--swapped", type=float, default=0.1, help="share of the images")
    parser.add_argument("--moved", type=float, default=0.2, help="share of the entities with a box")
    parser.add_argument("--stripped", type=float, default=0.1, help="share of the entities with a box")
    given = parser.parse_intermixed_args()
    noisy, truth = plant(given.manifest, given.out, (given.swapped, given.moved, given.stripped), given.seed)
    clean(
        noisy,
        given.out / "cleaned",
        recipe=given.recipe,
        overrides=given.overrides,
        folds=given.folds,
        jobs=given.jobs,
        seed=given.seed,
    )
    for line in table(noisy, given.out / "cleaned" / "verdicts.jsonl", truth):
        print(line)


def plant(path: Path, out: Path, shares: tuple[float, float, float], seed: int) -> tuple[Path, Truth]:
    """Write `out/noisy.jsonl`; return it and what is wrong in it."""
    generator, truth = random.Random(seed), Truth()
    swapped, moved, stripped = shares
    manifest = Manifest(path)
    records = [relocated(record, path.parent.resolve(), out.resolve()) for record in manifest]
    chosen = generator.sample(range(len(records)), round(swapped * len(records)))
    images = {place: records[other] for place, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)}
    for place, record in enumerate(records):
        if place in images:
            other = images[place]
            truth[record.id] = "swapped"
            records[place] = msgspec.structs.replace(record, image=other.image, group=other.group_key)
        else:
            records[place], faults = with_faults(record, moved, stripped, generator)
            truth[record.id] = faults
    write_manifest(out / "noisy.jsonl", records)
    return out / "noisy.jsonl", truth


def with_faults(
    record: Record, moved: float, stripped: float, generator: random.Random
) -> tuple[Record, dict[int, tuple[str, tuple[Box, ...]]]]:
    entities, faults = list(record.entities), {}
    every = [*(box for entity in entities for box in entity.boxes), *(proposal.box for proposal in record.objects)]
    for place, entity in enumerate(record.entities):
        draw = generator.random() if entity.boxes else 1.0
        others = [box for box in every if all(overlap(box, own) < 0.3 for own in entity.boxes)]
        if draw < moved and others:
            faults[place] = ("moved", entity.boxes)
            entities[place] = msgspec.structs.replace(entity, boxes=(generator.choice(others),))
        elif moved <= draw < moved + stripped:
            faults[place] = ("stripped", entity.boxes)
            entities[place] = msgspec.structs.replace(entity, boxes=())
    return msgspec.structs.replace(record, entities=tuple(entities)), faults


def table(noisy: Path, verdicts: Path, truth: Truth) -> list[str]:
    """Precision and recall of each kind of verdict. Links of exchanged images are in none."""
    counts = {kind: [0, 0, 0, 0] for kind in ("images exchanged", "boxes moved", "boxes put right", "boxes found")}
    manifest = Manifest(noisy)
    by_id = {json.loads(line)["id"]: json.loads(line) for line in verdicts.read_text().splitlines()}
    for record in manifest:
        verdict, faults = by_id.get(record.id), truth[record.id]
        if verdict is None:
            continue
        count(counts["images exchanged"], faults == "swapped", verdict["verdict"] == "wrong")
        if faults == "swapped":
            continue
        width, height = image_size(manifest.image_path(record))
        for link in verdict["links"]:
            fault, right = faults.get(link["entity"], ("", ()))
            hit = link["proposed"] is not None and any(
                overlap(tuple(v * s for v, s in zip(link["proposed"], (width, height) * 2, strict=True)), box)
                >= SAME_OBJECT_IOU
                for box in right
            )
            if link["box"] is not None:
                count(counts["boxes moved"], fault == "moved", link["verdict"] in ("another box", "wrong box"))
                count(counts["boxes put right"], fault == "moved", link["verdict"] == "another box", hit)
            else:
                count(counts["boxes found"], fault == "stripped", link["verdict"] == "box found", hit)
    lines = ["| | planted | flagged | precision | recall | good ones flagged |", "|---|---:|---:|---:|---:|---:|"]
    for kind, (planted, flagged, right, total) in counts.items():
        good = f"{(flagged - right) / (total - planted):.2%}" if total > planted else ""
        shares = f"{right / max(1, flagged):.3f} | {right / max(1, planted):.3f}"
        lines.append(f"| {kind} | {planted} | {flagged} | {shares} | {good} |")
    return lines


def count(row: list[int], planted: bool, flagged: bool, right: bool = True) -> None:
    row[0] += planted
    row[1] += flagged
    row[2] += planted and flagged and right
    row[3] += 1


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other))
    return width * height / (areas - width * height)


if __name__ == "__main__":
    main()
