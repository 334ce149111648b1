"""Every importer: a second time, on damaged copies, without its source, and on names that leave the folder."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from import_sources import coco, flickr30k, image, instances, refcoco, reference, run, write_json, write_tar
from spanbox.data.importers.driver import Source, run_import
from spanbox.data.importers.formats import FORMATS
from spanbox.data.manifest import Manifest
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
    for bad, advice in (("../../etc/passwd", "correct its name"), ("/etc/passwd", "as --images")):
        root = coco(tmp_path / "src")
        content = instances()
        content["images"][0]["file_name"] = bad
        write_json(root / "annotations" / "instances_val2017.json", content)
        with pytest.raises(DataError, match=f"lies outside of .*; .*{advice}"):
            run("coco", root)


def test_absolute_paths_into_the_folder_of_the_images_are_those_images(tmp_path: Path) -> None:
    """The folder may be given by a link, and the paths by the folder that it leads to."""
    image(tmp_path / "照片 1" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "照片 1")
    (tmp_path / "s.yaml").write_text("{image: image, text: text}")
    names = [
        str(tmp_path / "照片 1" / "a.png"),
        str(tmp_path / "照片 1" / "../x.png"),
        str(tmp_path / "link" / "a.png"),
    ]
    for folder, usable in (("照片 1", [0]), ("link", [0, 2])):
        write_json(tmp_path / "m.json", [{"image": name, "text": "猫"} for name in names])
        source = Source(tmp_path / "m.json", tmp_path / "out", tmp_path / folder, tmp_path / "s.yaml")
        counts = run_import("json", FORMATS["json"].importer, source).splits["all"].oddity_counts
        assert counts == {"unusable record": 3 - len(usable)}
        found = Manifest(tmp_path / "out" / "all.jsonl")
        assert [int(record.id) - 1 for record in found] == usable
        assert all(found.image_path(record).is_file() for record in found)
