"""Splits, samples and merged manifests: no group is divided, the shares hold, nothing changes between two calls."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from spanbox.data.audit import audit
from spanbox.data.card import dataset_card
from spanbox.data.manifest import Entity, Manifest, Record, write_manifest
from spanbox.data.partition import merge, sample, split
from spanbox.errors import ConfigError, DataError, OutputError

SHARES = {"train": 8.0, "val": 1.0, "test": 1.0}


def write(folder: Path, pairs: int = 1000, *, name: str = "all.jsonl", reverse: bool = False) -> Path:
    """Pairs in groups of one to four, in two languages, with a type that one in ten has."""
    records = []
    for number in range(pairs):
        image, rare = number * 2 // 5, number * 2 // 5 % 10 == 0
        entities = (Entity(0, 3, "RARE" if rare else "PER"),)
        records.append(
            Record(
                str(number), f"images/{image}.png", f"cat {number}", lang="zh" if image % 3 else "en", entities=entities
            )
        )
    folder.mkdir(exist_ok=True)
    write_manifest(folder / name, records[::-1] if reverse else records)
    return folder / name


def test_no_image_is_in_two_splits_and_the_shares_hold(tmp_path: Path) -> None:
    path = write(tmp_path)
    counts = split(path, tmp_path / "out", SHARES)
    parts = {name: list(Manifest(tmp_path / "out" / f"{name}.jsonl")) for name in SHARES}
    assert {name: len(records) for name, records in parts.items()} == counts
    assert sum(counts.values()) == 1000
    images = {name: {record.image for record in records} for name, records in parts.items()}
    assert not images["train"] & images["val"] | images["train"] & images["test"] | images["val"] & images["test"]
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(counts[name] / 1000 - share) < 0.02
        types = Counter(entity.type for record in parts[name] for entity in record.entities)
        languages = Counter(record.lang for record in parts[name])
        assert abs(types["RARE"] / counts[name] - 0.1) < 0.05
        assert abs(languages["en"] / counts[name] - 1 / 3) < 0.08


def test_a_split_does_not_depend_on_the_order_of_the_lines(tmp_path: Path) -> None:
    members = []
    for reverse in (False, True):
        split(write(tmp_path / str(reverse), reverse=reverse), tmp_path / f"out-{reverse}", SHARES, seed=1)
        members.append({r.id for r in Manifest(tmp_path / f"out-{reverse}" / "val.jsonl")})
    assert members[0] == members[1]
    split(tmp_path / "False" / "all.jsonl", tmp_path / "other", SHARES, seed=2)
    assert {r.id for r in Manifest(tmp_path / "other" / "val.jsonl")} != members[0]


@pytest.mark.parametrize("reverse", [False, True])
def test_groups_that_share_an_image_are_in_one_split(tmp_path: Path, reverse: bool) -> None:
    """Pairs 0 to 3 share images in a chain of groups, pairs 4 to 7 too, and so on; one of each has no group."""
    records = []
    for number in range(80):
        group = "" if number % 4 == 3 else f"g{number // 4}-{(number % 4 + 1) // 2}"
        image = f"./{number // 4}-{number % 4 // 2}.png" if number % 2 else f"{number // 4}-{number % 4 // 2}.png"
        records.append(Record(str(number), image, "a cat", group=group))
    write_manifest(tmp_path / "m.jsonl", records[::-1] if reverse else records)
    assert split(tmp_path / "m.jsonl", tmp_path / "out", {"train": 1, "test": 1}) == {"train": 40, "test": 40}
    train = {int(record.id) for record in Manifest(tmp_path / "out" / "train.jsonl")}
    assert train == {4 * chain + place for chain in {number // 4 for number in train} for place in range(4)}


def test_absolute_and_relative_paths_are_of_one_image(tmp_path: Path) -> None:
    """As in a manifest that several programs wrote; without an image of its own each pair would be a group."""
    records = [
        Record(f"{number} {kind}", f"{folder}{number}.png", f"猫 {kind}")
        for kind, folder in (("relative", "图片/"), ("absolute", f"{tmp_path}/图片/"))
        for number in range(20)
    ]
    write_manifest(tmp_path / "m.jsonl", records)
    split(tmp_path / "m.jsonl", tmp_path / "out", {"train": 1, "test": 1})
    train = [record.id.split() for record in Manifest(tmp_path / "out" / "train.jsonl")]
    assert Counter(number for number, _ in train) == dict.fromkeys({number for number, _ in train}, 2)
    for part in (0, 1):
        write_manifest(tmp_path / f"{part}.jsonl", records[20 * part : 20 * part + 20])
    merge([tmp_path / "0.jsonl", tmp_path / "1.jsonl"], tmp_path / "new" / "merged.jsonl")
    assert len({record.group_key for record in Manifest(tmp_path / "new" / "merged.jsonl")}) == 20


def test_the_images_of_the_parts_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, 40)
    for number in range(16):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{number}.png")
    split(path, tmp_path / "out", {"a": 1, "b": 1})
    sample(path, tmp_path / "deep" / "er" / "s.jsonl", 10)
    for out in ("out/a.jsonl", "out/b.jsonl", "deep/er/s.jsonl"):
        manifest = Manifest(tmp_path / out)
        assert all(manifest.image_path(record).is_file() for record in manifest)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 10, 333, 1000, 5000])
def test_a_sample_has_whole_groups(tmp_path: Path, count: int) -> None:
    path = write(tmp_path)
    drawn = sample(path, tmp_path / "s.jsonl", count)
    assert min(count, 1000) <= drawn <= min(count + 2, 1000)
    sizes = Counter(record.group_key for record in Manifest(path))
    assert all(
        sizes[group] == size for group, size in Counter(r.group_key for r in Manifest(tmp_path / "s.jsonl")).items()
    )
    again = sample(path, tmp_path / "again.jsonl", count)
    assert again == drawn
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "s.jsonl").read_bytes()


def test_merged_manifests_keep_their_groups_apart(tmp_path: Path) -> None:
    one, two = Record("1", "a.png", "a", group="g"), Record("1", "a.png", "b", group="g", source="coco")
    write_manifest(tmp_path / "x.jsonl", [one, Record("2", "b.png", "c")])
    (tmp_path / "sub").mkdir()
    write_manifest(tmp_path / "sub" / "y.jsonl", [two, Record("3", "../b.png", "d")])
    assert merge([tmp_path / "x.jsonl", tmp_path / "sub" / "y.jsonl"], tmp_path / "all" / "m.jsonl") == 4
    found = list(Manifest(tmp_path / "all" / "m.jsonl"))
    assert [(r.id, r.image, r.group_key, r.source) for r in found] == [
        ("1", "../a.png", "x/g", "x"),
        ("2", "../b.png", "../b.png", "x"),
        ("1-2", "../sub/a.png", "y/g", "coco"),
        ("3", "../b.png", "../b.png", "y"),  # the same file, so the same group
    ]


def test_manifests_of_one_file_name_keep_their_groups_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "train.jsonl" for folder in ("coco", "flickr")]
    for path in paths:
        path.parent.mkdir()
        write_manifest(path, [Record("1", "a.png", path.parent.name, group="7")])
    merge([*paths, paths[0]], tmp_path / "m.jsonl")
    assert [(r.group, r.source) for r in Manifest(tmp_path / "m.jsonl")] == [
        ("coco/train/7", "coco/train"),
        ("flickr/train/7", "flickr/train"),
        ("coco/train/7", "coco/train"),
    ]


def test_groups_of_one_image_file_are_one_group_when_merged(tmp_path: Path) -> None:
    """As of COCO and RefCOCO, whose images are the same and whose groups have names of their own."""
    folders = [tmp_path / name for name in ("coco", "refcoco", "plain")]
    sets = [
        [("1", "1"), ("2", "2")],
        [("1", "a"), ("3", "a"), ("4", "b")],
        [("3", ""), ("4", ""), ("5", "")],
    ]
    for folder, pairs in zip(folders, sets, strict=True):
        folder.mkdir()
        records = [Record(name, f"../images/{name}.jpg", f"猫 {name}", group=group) for name, group in pairs]
        write_manifest(folder / "train.jsonl", records)
    merge([folder / "train.jsonl" for folder in folders], tmp_path / "m.jsonl")
    assert [(r.image, r.group_key) for r in Manifest(tmp_path / "m.jsonl")] == [
        ("images/1.jpg", "coco/train/1"), ("images/2.jpg", "coco/train/2"),
        ("images/1.jpg", "coco/train/1"), ("images/3.jpg", "coco/train/1"), ("images/4.jpg", "refcoco/train/b"),
        ("images/3.jpg", "coco/train/1"), ("images/4.jpg", "refcoco/train/b"), ("images/5.jpg", "images/5.jpg"),
    ]  # fmt: skip


@pytest.mark.parametrize("others", [0, 1])
def test_a_group_with_the_path_of_an_image_is_still_one_group_when_merged(tmp_path: Path, others: int) -> None:
    """As `data fix` makes of copies of an image: the first pair has no group, the others have its path."""
    (tmp_path / "照片").mkdir()
    paths = [tmp_path / "照片" / "x.jsonl", tmp_path / "y.jsonl"][: 1 + others]
    write_manifest(
        paths[0], [Record("1", "a.png", "猫"), Record("2", "b.png", "狗", group="a.png"), Record("3", "c.png", "d")]
    )
    if others:
        write_manifest(paths[1], [Record("4", "a.png", "another")])
    merge(paths, tmp_path / "new" / "m.jsonl")
    first, second, third, *rest = (record.group_key for record in Manifest(tmp_path / "new" / "m.jsonl"))
    assert first == second != third
    assert len({first, third, *rest}) == 2 + others


def test_a_split_without_pairs_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, 10)  # 4 groups
    with pytest.raises(DataError, match="has 4 groups, none of them for test"):
        split(path, tmp_path / "out", SHARES)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_one_of_the_splits_would_replace_the_manifest(tmp_path: Path) -> None:
    path = write(tmp_path, 100, name="val.jsonl")
    (tmp_path / "train.jsonl").write_text("of another split\n")
    with pytest.raises(OutputError, match="is read by this command"):
        split(path, tmp_path, SHARES)
    assert (tmp_path / "train.jsonl").read_text() == "of another split\n"


def test_boxes_without_an_area_are_copied_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, pairs=20)
    inverted = Entity(0, 3, boxes=((20.0, 5.0, 4.0, 25.0),))
    write_manifest(path, [msgspec.structs.replace(record, entities=(inverted,)) for record in Manifest(path)])
    split(path, tmp_path / "out", {"train": 1.0, "val": 1.0})
    sample(path, tmp_path / "some.jsonl", 4)
    merge([path], tmp_path / "merged.jsonl")
    for name in ("out/train", "out/val", "some", "merged"):
        assert {record.entities for record in Manifest(tmp_path / f"{name}.jsonl", "keep")} == {(inverted,)}


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    with pytest.raises(DataError, match="1 groups, too few for 3 splits"):
        split(path, tmp_path, SHARES)
    for attempt in (
        lambda: sample(path, path, 1),
        lambda: merge([path], path),
        lambda: split(path, tmp_path, {"all": 1}),
    ):
        with pytest.raises(OutputError, match="is read by this command"):
            attempt()


def test_the_card_has_counts_licences_and_findings(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    records = [
        Record("1", "a.png", "a cat", lang="en", entities=(Entity(2, 5, "x|<b>"),), source="coco"),
        Record("2", "none.png", "b"),
    ]
    write_manifest(tmp_path / "m.jsonl", records)
    card = dataset_card("My <data>", audit([tmp_path / "m.jsonl"]), {"coco": "CC BY 4.0"})
    assert "# My &lt;data>" in card
    assert "| pairs | 2 |" in card
    assert "| x\\|&lt;b> | 1 | 100.0% |" in card
    assert "| coco | 1 | CC BY 4.0 |" in card
    assert "| not given | 1 | not given |" in card
    assert "| missing image | problem | 1 |" in card


def test_the_card_counts_the_types_and_sources_beyond_the_most_frequent(tmp_path: Path) -> None:
    records = [
        Record(str(i), "none.png", "a cat", entities=(Entity(2, 5, f"T{i}"),), source=f"set {i}") for i in range(40)
    ]
    write_manifest(tmp_path / "m.jsonl", records)
    card = dataset_card("Some data", audit([tmp_path / "m.jsonl"]), {"set 39": "CC0"})
    assert "| 10 others | 10 | 25.0% |" in card
    assert "| 9 others | 9 | not given |" in card
    assert "| set 39 | 1 | CC0 |" in card


def test_the_card_tells_manifests_of_one_name_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "train.jsonl" for folder in ("coco", "flickr")]
    for path in paths:
        path.parent.mkdir()
        write_manifest(path, [Record("1", "none.png", "a cat")])
    assert f"| | {paths[0]} | {paths[1]} |" in dataset_card("Some data", audit(paths), {})


def test_a_licence_of_a_source_that_no_pair_has_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [Record("1", "none.png", "a cat", source="coco")])
    with pytest.raises(ConfigError, match="no pair has the source 'COCO'; the sources are 'coco'"):
        dataset_card("Some data", audit([tmp_path / "m.jsonl"]), {"COCO": "CC BY 4.0"})


def test_a_licence_for_pairs_without_a_source_has_no_name(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [Record("1", "none.png", "a cat")])
    report = audit([tmp_path / "m.jsonl"])
    with pytest.raises(ConfigError, match=r"no pair has the source 'coco'; the sources are none \(--licence =TEXT\)"):
        dataset_card("Some data", report, {"coco": "CC BY 4.0"})
    assert "| not given | 1 | CC BY 4.0 |" in dataset_card("Some data", report, {"": "CC BY 4.0"})


def test_the_card_of_a_manifest_with_a_wrong_line_names_it(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [Record("1", "none.png", "a cat", source="coco")])
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write("no record\n")
    card = dataset_card("Some data", audit([tmp_path / "m.jsonl"]), {})
    assert "| coco | 1 | not given |" in card
    assert "| wrong line | problem | 1 |" in card
