"""Relation scenes: pairs that differ only in which object is where."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from spanbox.data.demo import PARTNERS, DemoSettings, Relations, Split, draw_scene, write_demo
from spanbox.data.demo_sentences import Language
from spanbox.data.manifest import Box, Record
from spanbox.data.neighbours import load_neighbours
from spanbox.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
BOTH: tuple[Language, ...] = ("en", "zh")
SMALL = DemoSettings(concepts=20, languages=BOTH, size=64)
RELATION: dict[Language, dict[str, str]] = {
    "en": {"left of": "left", "right of": "right", "above": "above", "below": "below"},
    "zh": {"左边": "left", "右边": "right", "上方": "above", "下方": "below"},
}


def scenes(settings: DemoSettings, split: Split, count: int) -> list[tuple[Image.Image, Record]]:
    return [draw_scene(split, index, settings) for index in range(count)]


class TestRelations:
    SETTINGS = replace(SMALL, relations="several")
    each = pytest.mark.parametrize("relations", ["one", "several"])

    @pytest.mark.slow
    @each
    @pytest.mark.parametrize("split", SPLITS)
    def test_a_pair_differs_in_which_object_is_where(self, split: Split, relations: Relations) -> None:
        """In both languages: the same words, with two names and two boxes exchanged."""
        languages = set()
        for (_, one), (_, other) in pairwise_of(scenes(replace(SMALL, relations=relations), split, 30)):
            languages.add(one.lang)
            assert (one.lang, len(one.entities)) == (other.lang, len(other.entities))
            assert one.text != other.text
            identities = [[entity.identity for entity in record.entities] for record in (one, other)]
            assert set(identities[0]) == set(identities[1])
            changed = [i for i, (a, b) in enumerate(zip(*identities, strict=True)) if a != b]
            assert {identities[0][i] for i in changed} == {identities[1][i] for i in changed}
            assert len({identities[0][i] for i in changed}) == 2
            for name in identities[0]:
                mine, theirs = (box_of(record, name) for record in (one, other))
                if mine and name not in {identities[0][i] for i in changed}:
                    assert mine == theirs
        assert languages == {"en", "zh"}

    @each
    def test_the_words_between_the_names_are_the_same(self, relations: Relations) -> None:
        for (_, one), (_, other) in pairwise_of(scenes(replace(SMALL, relations=relations), "test", 30)):
            assert without_names(one) == without_names(other)

    @pytest.mark.parametrize("language", BOTH)
    def test_one_relation_is_that_of_two_boxes_in_a_row_or_a_column(self, language: Language) -> None:
        settings, found = replace(SMALL, relations="one", languages=(language,)), set()
        for _, record in scenes(settings, "train", 40):
            (relation,) = [name for word, name in RELATION[language].items() if word in "".join(without_names(record))]
            found.add(relation)
            third_is_first = record.text.startswith(("A picture of", "图中"))
            (box,), (other,) = (entity.boxes for entity in record.entities[third_is_first:][:2])
            dx, dy = (box[axis] - other[axis] for axis in (0, 1))
            along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
            assert (along > 0) == (relation in ("right", "below"))
            assert abs(across) < settings.size / 4
        assert len(found) == 4

    def test_the_partner_of_each_training_scene_is_its_neighbour(self, tmp_path: Path) -> None:
        manifests = write_demo(tmp_path, {"train": 5, "val": 2}, self.SETTINGS)
        found = load_neighbours(tmp_path / PARTNERS, manifests["train"], 5)
        assert found.tolist() == [[1], [0], [3], [2], [-1]]

    def test_without_relations_there_are_no_partners(self, tmp_path: Path) -> None:
        write_demo(tmp_path, {"train": 2}, SMALL)
        assert not (tmp_path / PARTNERS).exists()

    def test_siblings_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="relation scenes have no siblings"):
            write_demo(tmp_path, {"train": 2}, replace(self.SETTINGS, siblings=1))


def pairwise_of(drawn: list[tuple[Image.Image, Record]]) -> list[tuple[tuple[Image.Image, Record], ...]]:
    return list(zip(drawn[::2], drawn[1::2], strict=True))


def box_of(record: Record, identity: str) -> tuple[Box, ...]:
    return next(entity.boxes for entity in record.entities if entity.identity == identity)


def without_names(record: Record) -> list[str]:
    edges = [0, *(edge for entity in record.entities for edge in (entity.start, entity.end)), len(record.text)]
    return [record.text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
