"""Small sources for the tests of the importers, how they are imported, and the records that come of it."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from spanbox.data.importers import ImportSummary
from spanbox.data.importers.driver import Source, run_import
from spanbox.data.importers.formats import FORMATS
from spanbox.data.manifest import Manifest, Record

BOX = (10.0, 5.0, 30.0, 25.0)


def image(path: Path, size: tuple[int, int] = (40, 30)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path.read_bytes()


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def flickr30k(root: Path) -> Path:
    image(root / "flickr30k-images" / "17.jpg")
    (root / "Sentences").mkdir()
    (root / "Annotations").mkdir()
    (root / "Sentences" / "17.txt").write_text(
        "[/EN#1/people A woman] holds [/EN#2/bodyparts/people a man 's arm] in [/EN#3/scene a park] "
        "with [/EN#0/notvisual it] .\n"
        "Nothing of the kind .\n"
    )
    (root / "Annotations" / "17.xml").write_text(
        "<annotation><size><width>40</width><height>30</height></size>"
        "<object><name>1</name><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox></object>"
        "<object><name>1</name><name>2</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>90</xmax><ymax>9</ymax></bndbox></object>"
        "<object><name>2</name><bndbox><xmin>x</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"
    )
    (root / "train.txt").write_text("17\n18\n")
    (root / "UNRELATED_CAPTIONS").write_text("# format: <imageID> <sentence number>\n17 2\n")
    return root


def instances() -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 77, "name": "cell phone"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 18,
                "bbox": [10, 5, 20, 20],
                "iscrowd": 0,
                "segmentation": [[1, 2]],
            },
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [20, 0, 90, 10], "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
            {"id": 5, "image_id": 7, "category_id": 1, "bbox": [50, 50, 5, 5]},
        ],
    }


def captions() -> dict[str, Any]:
    texts = ["Two men and a dog . ", "The puppy's bone", "nothing"]
    return {"annotations": [{"image_id": 7, "id": i, "caption": text} for i, text in enumerate(texts)]}


def coco(root: Path) -> Path:
    image(root / "val2017" / "7.jpg")
    write_json(root / "annotations" / "instances_val2017.json", instances())
    write_json(root / "annotations" / "captions_val2017.json", captions())
    return root


def refcoco(root: Path, references: object) -> Path:
    root.mkdir(exist_ok=True)
    (root / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    write_json(root / "instances.json", instances())
    image(root / "train2014" / "7.jpg")
    return root


def reference(**fields: Any) -> dict[str, Any]:
    sentences = [{"sent_id": 4, "sent": "the dog", "raw": "The dog!"}, {"sent_id": 5, "sent": "left one"}]
    return {"ref_id": 3, "ann_id": 1, "image_id": 7, "split": "testA", "sentences": sentences} | fields


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def run(name: str, root: Path, **options: Any) -> ImportSummary:
    return run_import(name, FORMATS[name].importer, Source(root, root.parent / "out", **options))


def records(root: Path, split: str = "all") -> list[Record]:
    return list(Manifest(root.parent / "out" / f"{split}.jsonl"))


def spans(record: Record) -> dict[str, tuple[tuple[float, ...], ...]]:
    return {record.span_text(entity): entity.boxes for entity in record.entities}
