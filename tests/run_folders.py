"""Run folders as training and evaluation leave them, in miniature and without any training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import pairs
from spanbox.data.manifest import Entity, ObjectBox, Record

SCRIPT = "<script>alert(1)</script>"
TEXTS = (f"A {SCRIPT} left of Garfield", "加菲猫在公园里", 'Say "cheese" & smile', "A park without a cat")
STEPS = 40
QUERIES = 200  # of two an image, in the outcomes


def write_data(folder: Path) -> Path:
    """Four pairs: the entity of the first is a script, the image of the last is broken. Returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "3.png").write_text("no image")
    names = (SCRIPT, "加菲猫", "cheese", "park")
    records = [
        Record(
            id=f"pair-{index}",
            image=f"{index}.png",
            text=text,
            entities=(_entity(text, name),),
            objects=(ObjectBox((0, 0, 20, 20)), ObjectBox((20, 0, 40, 20))),
        )
        for index, (text, name) in enumerate(zip(TEXTS, names, strict=True))
    ]
    return pairs.save_manifest(folder, records).path


def _entity(text: str, name: str) -> Entity:
    return pairs.entity(text, name, (20.0, 0.0, 40.0, 20.0))


def write_run(
    folder: Path, *, manifest: Path | None = None, steps: int = STEPS, boxes: bool = True, offset: float = 0.0
) -> Path:
    """A run of `STEPS` steps of which `steps` are done; with a manifest it is evaluated too. `offset` is added to its
    figures. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed": 0, "data": {"train": "train.jsonl"}, "train": {"steps": STEPS, "minutes": None, "lr": 0.1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [log_line(step) for step in range(10, steps + 1, 10)]
    if steps == STEPS:
        lines.append({"step": steps, "kind": "validation", "retrieval.t2i.r1": 0.75, "matching.within_image": 0.5})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if manifest:
        evaluate(folder, manifest, boxes=boxes, offset=offset)
    return folder


def log_line(step: int, **values: Any) -> dict[str, Any]:
    by_level = {f"{name}.{level}": 1.0 / step for name in ("loss", "temperature") for level in ("coarse", "fine")}
    times = {"seconds": float(step), "pairs_per_second": 100.0, "data_wait": 0.1, "lr": 0.01, "incidents": {}}
    return {"step": step, "kind": "train", "loss": 2.0 / step} | by_level | times | values


def evaluate(folder: Path, manifest: Path, *, boxes: bool, offset: float) -> None:
    """Write what `spanbox evaluate` writes."""
    metrics: dict[str, Any] = {
        "checkpoint": "step-000040",
        "data": str(manifest),
        "fingerprint": f"content of {manifest.parent.name}",
    }
    for name in ("retrieval.i2t.r1", "retrieval.t2i.r1") + (("matching.within_image",) if boxes else ()):
        metrics |= score(name, 0.75 + offset)
    if boxes:
        metrics |= score(f"matching.within_image.type.{SCRIPT}", 0.25) | score("matching.within_image.size.small", 0.5)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "cores": 2, "cuda": ["a card"]}))
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    (evaluation / "examples.json").write_text(json.dumps(examples(manifest, boxes=boxes)))
    (evaluation / "audit.json").write_text(json.dumps({"test": {"pairs": 4}, "all": {"pairs": 4, "broken image": 1}}))
    image = np.arange(QUERIES) // 2
    values = np.arange(QUERIES) >= QUERIES * (0.25 - offset)
    np.savez(evaluation / "outcomes.npz", **{"retrieval.i2t.r1/values": values, "retrieval.i2t.r1/image": image})
    if boxes:
        heat = np.array([[0.0, 1.0], [0.0, 0.5]], dtype=np.float32)
        np.savez(evaluation / "heatmaps.npz", **{"0/similarity": heat, "0/rollout": heat})


def score(name: str, value: float) -> dict[str, float]:
    return {
        name: value,
        f"{name}.low": value - 0.1,
        f"{name}.high": value + 0.1,
        f"{name}.chance": 0.25,
        f"{name}.baseline": 0.3,
        f"{name}.count": 40.0,
    }


def examples(manifest: Path, *, boxes: bool) -> dict[str, Any]:
    ids = [f"pair-{index}" for index in range(4)]
    found = [{"id": id, "score": 0.9 - 0.1 * row, "right": id == "pair-1"} for row, id in enumerate(ids)]
    lost = {"kind": "worst", "query": "pair-0", "rank": 7, "right": {"id": "pair-0", "score": 0.1}, "found": found[1:]}
    met = {"kind": "best", "query": "pair-1", "rank": 2, "right": found[1], "found": found}
    content: dict[str, Any] = {
        "manifest": str(manifest),
        "retrieval": {direction: [met, lost] for direction in ("i2t", "t2i")},
        "similarity": {"coarse": {"ids": ids, "matrix": np.eye(4).tolist()}},
    }
    if boxes:
        left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
        content["matching"] = [
            {
                "id": id,
                "entity": 0,
                "right": index % 2 == 1,
                "candidates": [
                    {"box": left, "score": 0.5, "linked": False},
                    {"box": right, "score": 0.4 + 0.2 * (index % 2), "linked": True},
                ],
            }
            for index, id in enumerate(ids)
        ]
        content["similarity"]["fine"] = {
            "spans": [{"id": "pair-0", "entity": 0}],
            "regions": [{"id": "pair-0", "box": left}, {"id": "pair-0", "box": right}],
            "matrix": [[0.1, 0.9]],
            "linked": [[False, True]],
            "same_identity": [[False, False]],
        }
        maps = {"similarity": "0/similarity", "rollout": "0/rollout"}
        content["heatmaps"] = [{"id": "pair-0", "entity": 0, "maps": maps}]
    return content


def write_ablation(folder: Path) -> Path:
    """Two variants by three seeds. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["variant,metric,seed,value,difference"]
    for seed, (plain, other) in enumerate(((0.7, 0.8), (0.6, 0.8), (0.8, 0.9))):
        lines += [f"plain,retrieval.t2i.r1,{seed},{plain},0.0"]
        lines += [f"<b>other</b>,retrieval.t2i.r1,{seed},{other},{other - plain}"]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder
