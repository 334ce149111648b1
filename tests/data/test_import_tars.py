"""The importer of WebDataset: its records, and tars that name what lies outside of them."""

from pathlib import Path

from import_sources import image, records, run, write_tar
from spanbox.data.manifest import Manifest, Record, encode_record
from spanbox.data.source import stored


def test_webdataset(tmp_path: Path) -> None:
    picture = image(tmp_path / "a.png")
    described = encode_record(Record("r", "x.png", "a cat", lang="en"))
    members: dict[str, bytes | str] = {
        "s/1.png": picture, "s/1.txt": "一只猫".encode(),
        "s/2.png": picture, "s/2.json": described,
        "s/3.png": picture, "s/3.json": b'{"caption": "a dog", "url": "u"}',
        "s/4.png": picture, "s/5.txt": b"no image", "s/6.png": picture, "s/6.json": b"{",
    }  # fmt: skip
    root = tmp_path / "src"
    write_tar(root / "0.tar", members)
    summary = run("webdataset", root)
    assert [(r.id, r.text, r.meta) for r in records(root)] == [
        ("s-1", "一只猫", {}), ("r", "a cat", {}), ("s-3", "a dog", {"url": "u"}),
    ]  # fmt: skip
    manifest = Manifest(tmp_path / "out" / "all.jsonl")
    assert [stored(manifest.image_path(record)).read() for record in manifest] == [picture] * 3
    assert summary.splits["all"].oddity_counts == {"unusable record": 2, "sample without an image": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "all.jsonl", "all.jsonl.index.npy", "import.json",
    ]  # fmt: skip


def test_byte_order_marks_are_no_part_of_a_text(tmp_path: Path) -> None:
    picture = image(tmp_path / "a.png")
    described = '\ufeff{"caption": "一只狗", "width": 3}'.encode()
    members: dict[str, bytes | str] = {
        "1.png": picture, "1.txt": "\ufeff一只猫".encode(), "2.png": picture, "2.json": described,
    }  # fmt: skip
    write_tar(tmp_path / "src" / "0.tar", members)
    run("webdataset", tmp_path / "src")
    assert [(r.text, r.meta) for r in records(tmp_path / "src")] == [("一只猫", {}), ("一只狗", {"width": 3})]


def test_group_and_language_count_beside_fields_that_a_manifest_has_not(tmp_path: Path) -> None:
    described = b'{"text": "a dog", "group": "7", "lang": "en", "url": "u"}'
    write_tar(tmp_path / "src" / "0.tar", {"1.png": image(tmp_path / "a.png"), "1.json": described})
    run("webdataset", tmp_path / "src")
    (record,) = records(tmp_path / "src")
    assert (record.text, record.group, record.lang, record.meta["url"]) == ("a dog", "7", "en", "u")


def test_tars_that_name_a_split_are_of_it(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {"1.png": image(tmp_path / "a.png"), "1.txt": "一只猫".encode()}
    for name in ("cc3m-train-0000", "cc3m-train-0001", "cc3m-validation-0000", "0001"):
        write_tar(tmp_path / "src" / f"{name}.tar", members)
    summary = run("webdataset", tmp_path / "src")
    assert {name: split.counts["pairs"] for name, split in summary.splits.items()} == {
        "all": 1, "train": 2, "validation": 1,
    }  # fmt: skip


def test_a_hostile_tar_names_nothing_outside_of_it(tmp_path: Path) -> None:
    picture = image(tmp_path / "a.png")
    members: dict[str, bytes | str] = {
        "../../evil.png": picture, "../../evil.txt": b"a", "/tmp/evil2.png": picture, "/tmp/evil2.txt": b"b",
        "link.png": "/etc/passwd", "link.txt": b"c", "x/../../..png": picture, "x/../../..txt": b"d",
        "good.png": picture, "good.txt": b"e",
    }  # fmt: skip
    write_tar(tmp_path / "in" / "src" / "0.tar", members)
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    summary = run("webdataset", tmp_path / "in" / "src")
    after = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert after - before == {tmp_path / "in" / "src" / "0.tar.index.npy"}
    assert not Path("/tmp/evil2.png").exists()
    assert [record.image for record in Manifest(tmp_path / "in" / "out" / "all.jsonl")] == ["../src/0.tar/good.png"]
    assert summary.splits["all"].oddity_counts == {"member that is not read": 7, "sample without an image": 1}
