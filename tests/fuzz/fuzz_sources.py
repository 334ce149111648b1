"""Sources of the importers that read files of others: tables, JSON, annotations, Parquet, Arrow and tars."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import fuzz_images
import pyarrow
import pyarrow.parquet
from fuzz_isolated import Case
from fuzz_mutate import (
    NASTY_NUMBERS,
    NASTY_TEXTS,
    encode_oddly,
    mutate_bytes,
    mutate_file,
    mutate_json_file,
    mutate_text,
    mutate_tree,
)
from fuzz_samples import Samples
from PIL import Image

SPEC = {
    "id": "id", "image": "image", "text": "text", "split": "split", "boxes": "x y width height",
    "entities": {"list": "names", "text": "word", "boxes": "box", "type": "kind"},
    "objects": {"list": "found", "box": "box", "score": "score", "label": "label"},
}  # fmt: skip
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
FEATURES = {"names": [{"kind": {"_type": "ClassLabel", "names": ["animal", "物"]}}]}


def picture(size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def published(rng: Random, samples: Samples, folder: Path) -> Case:
    """A published data set with a damaged file, imported; what was written is then checked."""
    name = rng.choice(sorted(SOURCES))
    source = folder / "source"
    source.mkdir()
    (source / "images").mkdir()
    (source / "images" / "7.jpg").write_bytes(picture())
    arguments = SOURCES[name](rng, samples, source)
    path = next((path for path in sorted(folder.glob("source/*.json*")) if name == "json"), source)
    table = next((path for path in (source / "t.csv", source / "t.tsv") if path.is_file() or path.is_symlink()), path)
    return Case(
        [],
        call=lambda: _import_and_check(["data", "import", name, str(table.relative_to(folder)), "out", *arguments]),
        writes=("out*", "source/*.index.npy", "source/.*"),
    )


def _import_and_check(arguments: list[str]) -> None:
    """What an importer writes is a manifest without a wrong line."""
    import sys

    from spanbox.cli.main import main
    from spanbox.data.manifest import Manifest

    sys.argv = ["spanbox", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    for path in sorted(Path("out").glob("*.jsonl")):
        if path.stat().st_size:
            Manifest(path, "drop")
    sys.argv = ["spanbox", "data", "check", *map(str, sorted(Path("out").glob("*.jsonl")))]
    main()


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "id": str(i),
            "image": "7.jpg",
            "text": f"一只 cat number {i}",
            "split": "train",
            "names": [{"word": "cat", "box": [1.0, 2.0, 10.0, 10.0], "kind": 0}],
            "found": [{"box": [0.0, 0.0, 5.0, 5.0], "score": 0.5, "label": "猫"}],
        }
        for i in range(4)
    ]


def _spec(rng: Random, source: Path) -> list[str]:
    spec = mutate_tree(rng, SPEC) if rng.random() < 0.15 else SPEC | {"unit": rng.choice(["pixels", "fractions"])}
    (source / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8", errors="replace")
    return ["--spec", "source/spec.yaml", "--images", "source/images"]


def any_json(rng: Random, samples: Samples, source: Path) -> list[str]:
    path = source / rng.choice(["d.json", "d.jsonl"])
    rows = _rows()
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        mutate_json_file(rng, path, samples.bombs)
    else:
        at = rng.randrange(len(rows))
        rows[at] = mutate_tree(rng, rows[at])
        path.write_text("\n".join(map(json.dumps, rows)))
        if rng.random() < 0.4:
            mutate_file(rng, path, samples.bombs)
    return _spec(rng, source)


def table(rng: Random, samples: Samples, source: Path) -> list[str]:
    path = source / rng.choice(["t.csv", "t.tsv"])
    comma = "," if path.suffix == ".csv" else "\t"
    lines = [comma.join(["image", "text"]), *(comma.join(["7.jpg", f'"一只, cat {i}"']) for i in range(4))]
    path.write_bytes(encode_oddly(rng, mutate_text(rng, "\n".join(lines) + "\n")))
    if rng.random() < 0.3:
        mutate_file(rng, path, samples.bombs)
    return ["--images", "source/images"]


def flickr8k(rng: Random, samples: Samples, source: Path) -> list[str]:
    path = source / "Flickr8k.token.txt"
    text = "".join(f"7.jpg#{i}\tA cat, 一只猫 {i} .\n" for i in range(4))
    path.write_bytes(encode_oddly(rng, mutate_text(rng, text)))
    if rng.random() < 0.3:
        mutate_file(rng, path, samples.bombs)
    return []


def _instances() -> dict[str, Any]:
    box = {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1, 2, 20, 20], "iscrowd": 0}
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [box, box | {"id": 2}],
    }


def coco(rng: Random, samples: Samples, source: Path) -> list[str]:
    captions = {"annotations": [{"image_id": 7, "id": i, "caption": "a dog 狗"} for i in range(3)]}
    for name, content in (("captions", captions), ("instances", _instances())):
        (source / f"{name}_train2017.json").write_text(json.dumps(content))
    mutate_json_file(rng, rng.choice(sorted(source.glob("*.json"))), samples.bombs)
    return ["--images", "source/images"]


class _Executes:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def refcoco(rng: Random, samples: Samples, source: Path) -> list[str]:
    sentences = [{"sent_id": 4, "sent": "the dog", "raw": "The dog!"}]
    references = [{"ref_id": 3, "ann_id": 1, "image_id": 7, "split": "testA", "sentences": sentences}]
    path = source / "refs(unc).p"
    (source / "instances.json").write_text(json.dumps(_instances()))
    choice = rng.randrange(4)
    if choice == 0:
        path.write_bytes(pickle.dumps(rng.choice([_Executes(), [_Executes()], {"a": _Executes()}]), protocol=2))
        return ["--images", "source/images"]
    tree = mutate_tree(rng, references) if choice == 1 else references
    path.write_bytes(pickle.dumps(tree, protocol=rng.choice([0, 2, 4])))
    if choice == 2:
        mutate_file(rng, path, samples.bombs)
    elif choice == 3:
        mutate_json_file(rng, source / "instances.json", samples.bombs)
    return ["--images", "source/images"]


def visual_genome(rng: Random, samples: Samples, source: Path) -> list[str]:
    region = {"region_id": 4, "image_id": 7, "phrase": "a 红 dog", "x": 1, "y": 2, "width": 20, "height": 20}
    files: dict[str, Any] = {
        "region_descriptions": [{"id": 7, "regions": [region]}],
        "objects": [{"image_id": 7, "objects": [{"x": 1, "y": 2, "w": 3, "h": 4, "names": ["dog"]}]}],
        "image_data": [{"image_id": 7, "width": 40, "height": 30, "url": "https://x/images/7.jpg"}],
    }
    for name, content in files.items():
        (source / f"{name}.json").write_text(json.dumps(content))
    mutate_json_file(rng, rng.choice(sorted(source.glob("*.json"))), samples.bombs)
    return []


def flickr30k(rng: Random, samples: Samples, source: Path) -> list[str]:
    for name in ("Sentences", "Annotations"):
        (source / name).mkdir()
    (source / "Sentences" / "7.txt").write_text("[/EN#1/people A woman] with [/EN#0/notvisual it] 猫 .\n")
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (source / "Annotations" / "7.xml").write_text(
        f"<annotation><size><width>40</width><height>30</height></size><object><name>1</name>{box}</object></annotation>"
    )
    (source / "train.txt").write_text("7\n")
    path = rng.choice([path for path in sorted(source.rglob("*")) if path.suffix in (".txt", ".xml")])
    if rng.random() < 0.6:
        path.write_text(mutate_text(rng, path.read_text()), encoding="utf-8", errors="surrogatepass")
    else:
        mutate_file(rng, path, samples.bombs)
    return ["--images", "source/images"]


def _arrow_table(rng: Random) -> Any:
    """Rows with images inside; values and types that are not those expected."""
    content = fuzz_images.damaged(rng, picture()) if rng.random() < 0.2 else picture()
    rows = [row | {"image": {"bytes": content, "path": "7.jpg"}} for row in _rows()]
    rows = [{name: value for name, value in row.items() if name != "split"} for row in rows]
    plain = pyarrow.Table.from_pylist(rows)
    found = plain
    if rng.random() < 0.5:
        at = rng.randrange(len(rows))
        del rows[at]["image"]["bytes"]
        with suppress(pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            found = pyarrow.Table.from_pylist([*rows[:at], mutate_tree(rng, rows[at]), *rows[at + 1 :]])
    features = mutate_tree(rng, FEATURES) if rng.random() < 0.2 else FEATURES
    with suppress(UnicodeEncodeError):
        metadata = json.dumps({"info": {"features": features}}).encode()
        metadata = mutate_bytes(rng, metadata) if rng.random() < 0.1 else metadata
        found = found.replace_schema_metadata({b"huggingface": metadata})
    return found


def parquet(rng: Random, samples: Samples, source: Path) -> list[str]:
    path = source / rng.choice(["train-00000-of-00001.parquet", "a.parquet"])
    found = _arrow_table(rng)
    try:
        compression = rng.choice(["snappy", "zstd", "gzip", "none"])
        pyarrow.parquet.write_table(found, path, row_group_size=2, compression=compression)
    except (pyarrow.ArrowException, OSError):  # a type that the format lacks
        pyarrow.parquet.write_table(pyarrow.table({"image": [b"x"], "text": ["a"]}), path)
    if rng.random() < 0.6:
        mutate_file(rng, path, samples.bombs)
    return _spec(rng, source) if rng.random() < 0.7 else []


def huggingface(rng: Random, samples: Samples, source: Path) -> list[str]:
    found = _arrow_table(rng)
    new = pyarrow.ipc.new_file if rng.random() < 0.2 else pyarrow.ipc.new_stream
    options = pyarrow.ipc.IpcWriteOptions(compression=rng.choice([None, None, "lz4", "zstd"]))
    with new(str(source / "data-00000-of-00001.arrow"), found.schema, options=options) as writer:
        writer.write_table(found, max_chunksize=2)
    (source / "state.json").write_text(
        '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}'
    )
    (source / "dataset_info.json").write_text("{}")
    choice = rng.randrange(6)
    if choice < 4:
        mutate_file(rng, source / "data-00000-of-00001.arrow", samples.bombs)
    elif choice == 4:
        mutate_json_file(rng, source / "state.json", samples.bombs)
    else:
        (source / "dataset_dict.json").write_text('{"splits": ["a"]}')
        mutate_json_file(rng, source / "dataset_dict.json", samples.bombs)
    return _spec(rng, source) if rng.random() < 0.7 else []


def tars(rng: Random, samples: Samples, source: Path) -> list[str]:
    """Shards: hostile names, links, sizes, attributes; damaged bytes; a damaged index beside them."""
    members = [(f"{i}.{ending}", content) for i in range(3) for ending, content in (
        ("png", picture()), ("json", json.dumps({"caption": f"一只 cat {i}", "url": "u"}).encode()), ("txt", b"a cat"),
    )]  # fmt: skip
    form = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    path = source / "0.tar"
    hostile = rng.randrange(len(members)) if rng.random() < 0.7 else -1
    with tarfile.open(path, "w", format=form) as archive:
        for number, (name, content) in enumerate(members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if number == hostile:
                content = _make_hostile(rng, member, content)
            with suppress(ValueError, OSError):  # a name or size that cannot be written
                archive.addfile(member, io.BytesIO(content))
    if rng.random() < 0.5:
        mutate_file(rng, path, samples.bombs)
    if rng.random() < 0.1 and path.is_file():
        (source / "0.tar.index.npy").write_bytes(rng.randbytes(300))
    return []


def _make_hostile(rng: Random, member: tarfile.TarInfo, content: bytes) -> bytes:
    choice = rng.randrange(6)
    if choice == 0:
        member.name = rng.choice([*NASTY_TEXTS, "../../up.png", "/etc/x.png", "0.png", "a/../../0.json"])
    elif choice == 1:
        member.type = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"S", b"Z"])
        member.linkname = rng.choice(["/etc/passwd", "../x", "0.png"])
    elif choice == 2:
        member.pax_headers = {
            rng.choice(["size", "path", "GNU.sparse.size", "GNU.sparse.map", "hdrcharset", "comment"]): rng.choice(
                [*map(str, NASTY_NUMBERS), "x" * 2_000_000, "../up", "BINARY"]
            )
        }
    elif choice == 3:
        content = rng.choice([b"", b"{", b"[" * 100_000, b'"\\ud800"', b"\xff\xfe", b'{"text": 5}', b" " * 2**22])
        member.size = len(content)
    elif choice == 4:
        member.size = rng.choice([0, 2**33 - 1, 10**9, len(content) - 1])
    else:
        content = fuzz_images.damaged(rng, content)
        member.size = len(content)
    return content


Make = Callable[[Random, Samples, Path], list[str]]
SOURCES: dict[str, Make] = {
    "coco": coco,
    "flickr30k-entities": flickr30k,
    "flickr8k": flickr8k,
    "huggingface": huggingface,
    "json": any_json,
    "parquet": parquet,
    "refcoco": refcoco,
    "table": table,
    "visual-genome": visual_genome,
    "webdataset": tars,
}


def tar_images(rng: Random, samples: Samples, folder: Path) -> Case:
    """A manifest whose images are in a damaged tar, checked."""
    lines = (samples.scenes / "train.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    records = [json.loads(line) for line in lines]
    with tarfile.open(folder / "x.tar", "w") as archive:
        for number, record in enumerate(records):
            archive.add(samples.scenes / record["image"], f"{number}.png")
            record["image"] = f"x.tar/{number}.png"
    if rng.random() < 0.5:
        records = [mutate_tree(rng, record, 1) for record in records]
    (folder / "m.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if rng.random() < 0.5:
        shutil.copyfile(folder / "x.tar", folder / "y.tar")
        mutate_file(rng, folder / "x.tar", samples.bombs)
    return Case(["data", "check", "m.jsonl"], writes=("m.jsonl.*", ".m.jsonl.*", "*.tar.index.npy"))
