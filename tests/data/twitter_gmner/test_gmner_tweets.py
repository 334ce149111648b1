"""What the importer of Twitter-GMNER makes of the lines of a set: records, entities, ids, and refusals by line."""

import json
from pathlib import Path

import pytest

from gmner_sets import TWEET, oddities, records, voc
from spanbox.data.importers import UniqueIds
from spanbox.data.importers.twitter_gmner import import_twitter_gmner
from spanbox.errors import DataError


def test_a_tweet_becomes_a_record(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "gmner"
    summary = import_twitter_gmner(source, out)

    (record,) = records(out)
    assert record.text == "Tom &amp ; New York City"
    assert (record.id, record.group, record.lang) == ("71044", "71044", "en")
    assert record.image == "../../Twitter10000_v2.0/images/71044.jpg"
    assert (out / record.image).is_file()
    assert [(record.span_text(e), e.type, e.boxes, e.identity) for e in record.entities] == [
        ("Tom", "PER", ((1.0, 2.0, 30.0, 28.0),), ""),
        ("New York City", "LOC", ((0.0, 0.0, 40.0, 30.0),), ""),
    ]
    assert [(p.box, p.score, p.label) for p in record.objects] == [
        ((1.5, 2.25, 10.1, 20.2), 0.9, "cat"),
        ((0.0, 0.0, 5.0, 5.0), 0.1, "cat"),
    ]
    assert oddities(out) == {}
    assert summary.splits["train"].counts == {
        "pairs": 1,
        "entities": 2,
        "entities with a box": 2,
        "boxes": 2,
        "proposals": 2,
    }


def test_dev_becomes_val_and_progress_counts_all_splits(source: Path, tmp_path: Path) -> None:
    for name in ("dev", "test"):
        (source / "txt" / f"{name}.txt").write_text(TWEET.replace("71044", name) * 2)
    seen: list[tuple[int, int]] = []
    import_twitter_gmner(source, tmp_path / "out", on_progress=lambda *counts: seen.append(counts))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert [record.id for record in records(tmp_path / "out", "val")] == ["dev", "dev-2"]
    assert len(records(tmp_path / "out", "test")) == 2


def test_several_boxes_of_one_name_and_several_entities_of_one_name(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_text("IMGID:1\nTom\tB-PER\nand\tO\nTom\tB-PER\nJerry\tB-PER\n")
    (source / "xml" / "1.xml").write_text(voc(("Tom", (1, 1, 5, 5)), ("Tom", (9, 9, 20, 20))))
    import_twitter_gmner(source, tmp_path / "out")
    both = ((1.0, 1.0, 5.0, 5.0), (9.0, 9.0, 20.0, 20.0))
    assert [entity.boxes for entity in records(tmp_path / "out")[0].entities] == [both, both, ()]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O"], [("a b", "PER")]),
        (["B-PER", "B-PER", "I-PER"], [("a", "PER"), ("b c", "PER")]),
        (["B-PER", "I-LOC", "I-LOC"], [("a", "PER"), ("b c", "LOC")]),
        (["I-PER", "I-PER", "O"], [("a b", "PER")]),
        (["B-PER", "O", "I-PER"], [("a", "PER"), ("c", "PER")]),
    ],
)
def test_tags(source: Path, tmp_path: Path, tags: list[str], expected: list[tuple[str, str]]) -> None:
    lines = "".join(f"{token}\t{tag}\n" for token, tag in zip("abc", tags, strict=True))
    (source / "txt" / "train.txt").write_text(f"IMGID:1\n{lines}")
    import_twitter_gmner(source, tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert [(record.span_text(entity), entity.type) for entity in record.entities] == expected
    orphan = any(tag[0] == "I" and before[1:] != tag[1:] for before, tag in zip(["O", *tags], tags, strict=False))
    assert ("I- tag without a B- tag" in oddities(tmp_path / "out")) == orphan


def test_windows_line_ends_a_byte_order_mark_and_odd_characters(source: Path, tmp_path: Path) -> None:
    # U+0085 and U+2028 end a line for str.splitlines, not for the file.
    content = "\ufeffIMGID:1\r\n🐈\tO\r\nTom\x85\u2028x\tB-PER\r\n\r\n\r\nIMGID:2\r\nb\tO"
    (source / "txt" / "train.txt").write_bytes(content.encode())
    import_twitter_gmner(source, tmp_path / "out")
    first, second = records(tmp_path / "out")
    assert first.span_text(first.entities[0]) == "Tom\x85\u2028x"
    assert second.text == "b"


@pytest.mark.parametrize(("types", "expected"), [("coarse", "person"), ("fine", "politician")])
def test_fmnerg_has_two_columns_of_types(source: Path, tmp_path: Path, types: str, expected: str) -> None:
    (source / "txt" / "train.txt").write_text("IMGID:71044\nTom\tB-person\tB-politician\nran\tO\tO\n")
    import_twitter_gmner(source, tmp_path / "out", entity_types=types)
    (record,) = records(tmp_path / "out")
    assert record.entities[0].type == expected
    assert record.entities[0].boxes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Tom\tO\n", "line 1: 'Tom\\tO' is not a line of a tweet; expected IMGID:<id> first"),
        ("IMGID:1\nTom\n", "line 2: 'Tom' is not a line of a tweet"),
        ("IMGID:1\nTom\tPER\n", "line 2: 'Tom\\tPER' is not a line"),
        ("IMGID:1\nTom\tB-\n", "line 2: 'Tom\\tB-' is not a line"),
        ("IMGID:1\na\tO\tO\tO\n", "line 2: 'a\\tO\\tO\\tO' is not a line"),
        ("IMGID:1\n \tO\n", "line 2: ' \\tO' is not a line"),
        ("\n\n", "holds no tweets"),
    ],
)
def test_a_wrong_line_of_text_is_named(source: Path, tmp_path: Path, content: str, message: str) -> None:
    path = source / "txt" / "train.txt"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        import_twitter_gmner(source, tmp_path / "out")
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "image_id",
    [
        "x" * 300,
        "图" * 100,
        "../71044",
        "a/b",
        "a\\b",
        "..",
        "a..b",
        "",
        ".hidden",
        "/etc/passwd",
        "C:71044",
        "a\0b",
        "a b",
    ],
)
def test_an_id_that_leaves_the_folder_is_refused(source: Path, tmp_path: Path, image_id: str) -> None:
    (source / "txt" / "train.txt").write_text(f"IMGID:{image_id}\nTom\tO\n")
    with pytest.raises(DataError, match=r"train\.txt, line 1: image id .* cannot be the name of a file"):
        import_twitter_gmner(source, tmp_path / "out")
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"content": "Tom", "img_id": f"IMGID:{image_id}", "ans": []}]))
    with pytest.raises(DataError, match=r"train\.json, tweet 1: image id"):
        import_twitter_gmner(path, tmp_path / "out", boxes=source / "xml")


@pytest.mark.parametrize("image_id", ["71044", "O_2371", "16_05_01_6", "17-x.y"])
def test_ids_of_the_set_are_accepted(source: Path, tmp_path: Path, image_id: str) -> None:
    (source / "txt" / "train.txt").write_text(f"IMGID:{image_id}\nTom\tO\n{TWEET}")
    import_twitter_gmner(source, tmp_path / "out")
    assert records(tmp_path / "out")[0].id == image_id


def test_an_image_that_comes_twice_gets_two_ids_and_one_group(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_text(TWEET + TWEET.replace("71044", "71044-2") + TWEET + TWEET)
    import_twitter_gmner(source, tmp_path / "out")
    found = records(tmp_path / "out")
    assert [record.id for record in found] == ["71044", "71044-2", "71044-3", "71044-4"]
    assert [record.group for record in found] == ["71044", "71044-2", "71044", "71044"]
    assert len(oddities(tmp_path / "out")["image used again"]) == 2


def test_an_image_in_two_splits_is_listed(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "test.txt").write_text(TWEET)
    import_twitter_gmner(source, tmp_path / "out")
    assert oddities(tmp_path / "out", "test") == {
        "image in two splits": [{"where": "71044", "detail": "also in train"}]
    }


def test_an_image_that_comes_very_often_gets_unique_ids() -> None:
    """Each id is found at once: looking through all earlier ones would take quadratic time."""
    ids = UniqueIds()
    given = [ids.add(wanted) for wanted in ("a", "a-2", "a", "a", "a-2", "b")]
    assert given == [
        "a",
        "a-2",
        "a-3",
        "a-4",
        "a-2-2",
        "b",
    ]
    assert [ids.add("c") for _ in range(100_000)][-1] == "c-100000"


def test_names_that_match_no_entity_are_listed(source: Path, tmp_path: Path) -> None:
    objects = [("Tim", (1, 2, 3, 4)), ("Tim", (2, 2, 3, 4)), ("New York  City\n", (5, 6, 7, 8)), ("", (1, 1, 2, 2))]
    (source / "xml" / "71044.xml").write_text(voc(*objects))
    import_twitter_gmner(source, tmp_path / "out")
    assert oddities(tmp_path / "out") == {
        "name that matches no entity": [
            {"where": "71044", "detail": "'', 1 box left out"},
            {"where": "71044", "detail": "'Tim', 2 boxes left out"},
        ]
    }
    (record,) = records(tmp_path / "out")
    assert [len(entity.boxes) for entity in record.entities] == [0, 1]


def test_tweets_without_text_are_left_out_and_listed(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_text(f"IMGID:5\n\n{TWEET}")
    import_twitter_gmner(source, tmp_path / "out")
    assert [record.id for record in records(tmp_path / "out")] == ["71044"]
    assert oddities(tmp_path / "out") == {"tweet without text": [{"where": "5", "detail": "left out"}]}


def test_a_text_that_is_not_utf_8_is_named(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_bytes(b"IMGID:1\nTom\xff\tO\n")
    with pytest.raises(DataError, match=r"train\.txt: is not UTF-8"):
        import_twitter_gmner(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("IMGID:1\n" + "a\tO\n" * 4_001, "line 1: this tweet has 4001 characters or more"),
        ("IMGID:1\n" + "aaaaaaaaa\tO\n" * 401, "line 1: this tweet has 4009 characters or more"),
        ("IMGID:1\n" + "a\tB-X\n" * 201, "line 1: this tweet has 401 characters or more and 201 entities"),
        ("\n" * (8 * 1024 * 1024 + 1), "is larger than 8 MiB"),
    ],
)
def test_texts_are_read_up_to_a_limit(source: Path, tmp_path: Path, content: str, message: str) -> None:
    (source / "txt" / "train.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        import_twitter_gmner(source, tmp_path / "out")
