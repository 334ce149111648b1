"""Every importer: a second time, on damaged copies, without its source, and on names that leave the folder."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from import_sources import coco, flickr30k, image, instances, refcoco, reference, run, write_json, write_tar
from spanbox.data.importers.formats import FORMATS
from spanbox.errors import DataError

SOURCES: dict[str, Callable[[Path], Path]] = {
    "flickr30k-entities": flickr30k,
    "coco": coco,
    "refcoco": lambda root: refcoco(root, [reference()]),
    "webdataset": lambda root: write_tar(root / "0.tar", {"1.png": image(root / "i.png"), "1.txt": b"a"}).parent,
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_second_import_gives_the_same_files(tmp_path: Path, name: str) -> None:
    root = SOURCES[name](tmp_path / "src")
    seen: list[dict[str, bytes]] = []
    for _ in range(2):
        run(name, root)
        seen.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()})
    assert seen[0] == {name: content for name, content in seen[1].items() if ".index." not in name}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("damage", ["cut", "types", "bytes", "empty"])
def test_a_damaged_source_is_an_error_or_counted(tmp_path: Path, name: str, damage: str) -> None:
    root = SOURCES[name](tmp_path / "src")
    for path in [path for path in root.rglob("*") if path.is_file() and path.suffix not in (".jpg", ".png")]:
        content = path.read_bytes()
        changed = {
            "cut": content[: len(content) // 2],
            "types": content.replace(b"40", b'"x"').replace(b"7", b"-1e99"),
            "bytes": bytes(byte ^ 0x55 if i % 7 == 0 else byte for i, byte in enumerate(content)),
            "empty": b"",
        }[damage]
        path.write_bytes(changed)
        with suppress(DataError):
            run(name, root)
        path.write_bytes(content)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_missing_source_names_what_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match=r"src|--spec"):
        run(name, tmp_path / "src")
    assert not list(tmp_path.glob("out/*.jsonl"))


def test_names_of_images_cannot_leave_their_folder(tmp_path: Path) -> None:
    for bad in ("../../etc/passwd", "/etc/passwd"):
        root = coco(tmp_path / "src")
        content = instances()
        content["images"][0]["file_name"] = bad
        write_json(root / "annotations" / "instances_val2017.json", content)
        with pytest.raises(DataError, match="lies outside of its folder"):
            run("coco", root)
