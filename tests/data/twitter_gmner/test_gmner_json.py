"""The JSON form of Twitter-GMNER: entities are found by their text; other shapes and too much of it are refused."""

import json
from pathlib import Path

import pytest

from gmner_sets import json_form, oddities, records
from spanbox.data.importers.twitter_gmner import import_twitter_gmner
from spanbox.errors import DataError


def test_the_json_form_finds_entities_by_their_text(source: Path, tmp_path: Path) -> None:
    folder = json_form(tmp_path / "json_form", ("Tom in  New York City ", ["New  York City", "Tom"]))
    import_twitter_gmner(folder, tmp_path / "out")
    (record,) = records(tmp_path / "out", "test")
    assert record.text == "Tom in New York City"
    assert [record.span_text(entity) for entity in record.entities] == ["Tom", "New York City"]
    assert [len(entity.boxes) for entity in record.entities] == [1, 1]
    assert len(record.objects) == 2


@pytest.mark.parametrize(
    ("text", "entities", "starts"),
    [
        ("Tom and Tom", ["Tom", "Tom"], [0, 8]),  # the second entity is the second place
        ("@ NBA : Ann plays in the NBA", ["Ann", "NBA"], [8, 25]),  # in the order of the text
        ("NBA and Ann", ["Ann", "NBA"], [0, 8]),  # or before
        ("USA or US", ["US"], [7]),  # whole tokens first
        ("in #USA", ["USA"], [4]),  # parts of tokens if need be
        ("New York , York", ["New York", "York"], [0, 11]),  # never inside of another entity
        ("a.b", ["a.b"], [0]),
        ("aXb", ["a.b"], []),
        ("one Tom", ["Tom", "Tom"], [4]),
        ("Tom", [""], []),
    ],
)
def test_which_place_of_a_name_is_taken(
    source: Path, tmp_path: Path, text: str, entities: list[str], starts: list[int]
) -> None:
    folder = json_form(tmp_path / "json_form", (text, entities))
    import_twitter_gmner(folder, tmp_path / "out")
    (record,) = records(tmp_path / "out", "test")
    assert [entity.start for entity in record.entities] == starts
    not_found = oddities(tmp_path / "out", "test").get("entity not found in its text", [])
    assert len(starts) + len(not_found) == len(entities)


def test_json_of_another_shape_is_named(source: Path, tmp_path: Path) -> None:
    for content in ("[", "{}", '[{"content": "x"}]'):
        (tmp_path / "train.json").write_text(content)
        with pytest.raises(DataError, match=r"train\.json: .*; expected a list of"):
            import_twitter_gmner(tmp_path / "train.json", tmp_path / "out", boxes=source / "xml")


def test_json_is_read_up_to_a_limit(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    for content, message in (
        ('[{"x":' + "[" * 500_000, "recursion depth"),
        (json.dumps([{"content": "a " * 3000, "img_id": "1", "ans": []}]), "tweet 1: this tweet has 5999 characters"),
        (json.dumps([{"content": "a", "img_id": "1", "ans": [{"ent": "a"}] * 201}]), "and 201 entities"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            import_twitter_gmner(path, tmp_path / "out", boxes=source / "xml")
