"""Twitter-GMNER in small: its tweets, boxes and proposals as files, and what an import made of them."""

import json
from pathlib import Path

import numpy as np

from spanbox.data.manifest import Manifest, Record

TWEET = "IMGID:71044\nTom\tB-PER\n&amp\tO\n;\tO\nNew\tB-LOC\nYork\tI-LOC\nCity\tI-LOC\n\n"


def voc(*objects: tuple[str, tuple[object, object, object, object]], size: tuple[int, int] = (40, 30)) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = "".join(
        f"<object><name>{name}</name><bndbox>{''.join(f'<{c}>{v}</{c}>' for c, v in zip(corners, box, strict=True))}"
        "</bndbox></object>"
        for name, box in objects
    )
    width, height = size
    return (
        f"<annotation><filename>another.jpg</filename><size><width>{width}</width><height>{height}</height></size>"
        f"{boxes}</annotation>"
    )


def vinvl(path: Path, boxes: list[list[float]], **changes: object) -> None:
    arrays = {
        "num_boxes": len(boxes),
        "image_w": 40,
        "image_h": 30,
        "bounding_boxes": np.array(boxes, dtype=np.float32),
        "scores": np.linspace(0.9, 0.1, len(boxes), dtype=np.float32),
        "objects": np.array(["cat"] * len(boxes)),
        "box_features": np.zeros((len(boxes), 8), dtype=np.float32),
    }
    np.savez(path, **(arrays | changes))


def json_form(folder: Path, *tweets: tuple[str, list[str]], name: str = "entity_text_test.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = [
        {"content": text, "img_id": "IMGID:71044", "ans": [{"ent": e} for e in entities], "pred": [{"ent": "ignored"}]}
        for text, entities in tweets
    ]
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def records(out: Path, split: str = "train") -> list[Record]:
    return list(Manifest(out / f"{split}.jsonl"))


def oddities(out: Path, split: str = "train") -> dict[str, list[dict[str, str]]]:
    return json.loads((out / "import.json").read_text())["splits"][split]["oddities"]
