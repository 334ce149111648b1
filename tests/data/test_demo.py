"""The demo's scenes: sentences, spans and boxes are true to what is drawn."""

import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spanbox.data import demo, demo_artwork
from spanbox.data.demo import DemoSettings, Split, choose_concepts, draw_scene, write_demo
from spanbox.data.demo_sentences import Language
from spanbox.data.images import load_image
from spanbox.data.manifest import Box, Entity, Manifest, Record
from spanbox.errors import DataError, OutputError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
BOTH: tuple[Language, ...] = ("en", "zh")
SMALL = DemoSettings(concepts=20, languages=BOTH, size=64)
COUNT = 60

RELATION: dict[Language, dict[str, str]] = {
    "en": {"left of": "left", "right of": "right", "above": "above", "below": "below"},
    "zh": {"左边": "left", "右边": "right", "上方": "above", "下方": "below"},
}
# What a sentence says: how <a> and <c> lie to <b>. `(ab)` and `(cb)` are relations.
SENTENCES: dict[Language, list[str]] = {
    "en": [
        r"The <a> is (ab) the <b>, and the <c> is (cb) it\.",
        r"A picture of the <a> (ab) the <b>, with the <c> (cb) the latter\.",
        r"Look: the <b>, the <a> (ab) it and the <c> (cb) it\.",
        r"We found the <a>, the <b> and the <c>; the first is (ab) the second\.",
    ],
    "zh": [
        r"<a>在<b>的(ab)，<c>在它的(cb)。",
        r"图中<a>位于<b>(ab)，还有<c>在\1(cb)。",
        r"看：<b>，(ab)是<a>，(cb)是<c>。",
        r"这里有<a>、<b>和<c>，第一个在第二个的(ab)。",
    ],
}


# What may follow when a fourth object is named.
FOURTHS: dict[Language, list[str]] = {
    "en": [r" The <d> is (da) the <a>\.", r" And (da) the <a> is the <d>\."],
    "zh": [r"<d>在<a>的(da)。", r"<a>的(da)是<d>。"],
}


def scenes(
    settings: DemoSettings = SMALL, split: Split = "train", count: int = COUNT
) -> list[tuple[Image.Image, Record]]:
    return [draw_scene(split, index, settings) for index in range(count)]


def records(settings: DemoSettings = SMALL, split: Split = "train", count: int = COUNT) -> list[Record]:
    return [record for _, record in scenes(settings, split, count)]


def shown(record: Record) -> list[Entity]:
    return [entity for entity in record.entities if entity.boxes]


def absent(record: Record) -> list[Entity]:
    return [entity for entity in record.entities if not entity.boxes]


def named_set(record: Record) -> frozenset[str]:
    return frozenset(entity.identity for entity in shown(record))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def test_a_scene_is_the_same_on_every_call() -> None:
    for split in SPLITS:
        for (image, record), (again, same) in zip(scenes(SMALL, split, 5), scenes(SMALL, split, 5), strict=True):
            assert record == same
            assert (pixels(image) == pixels(again)).all()


def test_scenes_differ_by_split_index_and_seed() -> None:
    drawn = [*records(count=20), *records(split="val", count=20), *records(DemoSettings(seed=1, size=64), count=20)]
    assert len({(record.text, record.objects) for record in drawn}) == 60


def test_spans_are_the_names_of_their_concepts() -> None:
    concepts = {concept.id: concept for concept in choose_concepts(SMALL)}
    for record in records():
        assert record.lang in BOTH
        for entity in record.entities:
            concept = concepts[entity.identity]
            assert record.text[entity.start : entity.end] == concept.names[record.lang]  # type: ignore[index]
            assert entity.type == concept.subgroup


def test_named_objects_have_one_box_each() -> None:
    for record in records():
        assert len(named_set(record)) in (3, 4)
        assert {len(entity.boxes) for entity in shown(record)} == {1}
        boxes = [proposal.box for proposal in record.objects]
        assert {entity.boxes[0] for entity in shown(record)} == set(boxes[: len(named_set(record))])


@pytest.mark.slow
def test_shares_of_the_kinds_of_scenes() -> None:
    drawn = records(count=400)
    kinds = Counter((len(record.objects), len(named_set(record))) for record in drawn)
    assert set(kinds) == {(3, 3), (4, 4), (4, 3)}
    assert kinds[4, 4] / len(drawn) == pytest.approx(demo.FOUR_SHARE, abs=0.1)
    assert kinds[4, 3] / len(drawn) == pytest.approx(demo.DISTRACTOR_SHARE, abs=0.1)
    assert {len(absent(record)) for record in drawn} == {0, 1}
    assert sum(len(absent(record)) for record in drawn) / len(drawn) == pytest.approx(demo.ABSENT_SHARE, abs=0.1)


def test_boxes_lie_inside_the_scene_and_apart() -> None:
    for record in records():
        boxes = [proposal.box for proposal in record.objects]
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 64
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 192])
def test_boxes_fit_what_is_drawn_to_the_pixel(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Compared with the same scene drawn from transparent artwork, which is its background alone."""
    settings = DemoSettings(concepts=100, size=size)
    drawn = scenes(settings, count=30)
    artwork = demo.artwork
    monkeypatch.setattr(demo, "artwork", lambda name: Image.new("RGBA", artwork(name).size))
    for (image, record), (background, same) in zip(drawn, scenes(settings, count=30), strict=True):
        assert record == same
        painted = (pixels(image) != pixels(background)).any(axis=-1)
        for proposal in record.objects:
            x0, y0, x1, y1 = map(int, proposal.box)
            rows, columns = painted[y0:y1, x0:x1].nonzero()
            assert (rows.min(), rows.max()) == (0, y1 - y0 - 1)
            assert (columns.min(), columns.max()) == (0, x1 - x0 - 1)
            painted[y0:y1, x0:x1] = False
        assert not painted.any()


def test_an_absent_thing_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    artwork, images = demo_artwork._drawing, {concept.id: concept.image for concept in choose_concepts(SMALL)}
    taken: list[str] = []

    def watched(name: str) -> Image.Image:
        taken.append(name)
        return artwork(name)

    monkeypatch.setattr(demo_artwork, "_drawing", watched)
    for index in range(COUNT):
        taken.clear()
        record = draw_scene("train", index, SMALL)[1]
        assert not {images[entity.identity] for entity in absent(record)} & set(taken)
        assert {images[entity.identity] for entity in shown(record)} <= set(taken)
        assert len(set(taken)) == len(record.objects)


def direction(box: Box, other: Box) -> set[str]:
    """All that may truly be said of where a box lies as seen from another: its larger offset, both when equal."""
    dx = (box[0] + box[2]) - (other[0] + other[2])
    dy = (box[1] + box[3]) - (other[1] + other[3])
    across, down = ({"left"} if dx < 0 else {"right"}), ({"above"} if dy < 0 else {"below"})
    return across if abs(dx) > abs(dy) else down if abs(dy) > abs(dx) else across | down


def parse(record: Record) -> tuple[dict[str, str], str]:
    """The names and relations that a sentence gives its slots, and what follows it."""
    language: Language = record.lang  # type: ignore[assignment]
    names = "|".join(re.escape(record.span_text(entity)) for entity in shown(record))
    relations = "|".join(RELATION[language])
    found = []
    fourths = FOURTHS[language] if len(named_set(record)) == 4 else [""]
    for sentence, fourth in product(SENTENCES[language], fourths):
        pattern = re.sub(r"<(\w)>", rf"(?P<\1>{names})", sentence.replace(r"\1", "(?P=b)"))
        pattern += re.sub(r"<d>", rf"(?P<d>{names})", fourth.replace("<a>", "(?P=a)"))
        pattern = re.sub(r"\((ab|cb|da)\)", rf"(?P<\1>{relations})", pattern)
        if match := re.match(pattern, record.text):
            found.append((match.groupdict(), record.text[match.end() :]))
    assert len(found) == 1, record.text
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("language", BOTH)
def test_sentences_are_true_to_the_boxes(language: Language) -> None:
    said = set()
    for record in records(DemoSettings(concepts=60, languages=(language,), size=64), count=150):
        slots, _ = parse(record)
        box_of = {record.span_text(entity): entity.boxes[0] for entity in shown(record)}
        assert {slots[name] for name in "abcd" if name in slots} == set(box_of)
        for one, other in ("ab", "cb", "da"):
            if one + other in slots:
                meant = RELATION[language][slots[one + other]]
                said.add(meant)
                assert meant in direction(box_of[slots[one]], box_of[slots[other]]), record.text
    assert said == {"left", "right", "above", "below"}


@pytest.mark.slow
@pytest.mark.parametrize("language", BOTH)
def test_what_follows_a_sentence_names_the_absent_thing(language: Language) -> None:
    for record in records(DemoSettings(concepts=60, languages=(language,), size=64), count=100):
        rest = parse(record)[1]
        assert bool(rest) == bool(absent(record))
        for entity in absent(record):
            assert record.span_text(entity) in rest
            assert entity.identity not in named_set(record)


@pytest.mark.slow
def test_all_sentences_occur() -> None:
    for language in BOTH:
        drawn = records(DemoSettings(concepts=60, languages=(language,), size=64), count=600)
        forms = set()
        for record in drawn:
            form = record.text
            for entity in sorted(record.entities, key=lambda entity: -entity.start):
                form = form[: entity.start] + "*" + form[entity.end :]
            for word in RELATION[language]:
                form = form.replace(word, "*")
            forms.add(form)
        assert len(forms) == 4 * (1 + 2) * (1 + 3), "four sentences, perhaps a fourth object, perhaps an absence"


def without_names_and_relations(record: Record) -> str:
    """The frame of a sentence. An object of another shape may lie elsewhere in its quarter, so relations may change."""
    language: Language = record.lang  # type: ignore[assignment]
    names = sorted((record.span_text(entity) for entity in record.entities), key=len, reverse=True)
    return re.sub("|".join([*map(re.escape, names), *RELATION[language]]), "", record.text)


@pytest.mark.parametrize("language", BOTH)
def test_siblings_differ_in_one_object_and_its_name(language: Language) -> None:
    settings = replace(SMALL, concepts=60, languages=(language,), siblings=3)
    held_out = scenes(settings, "test", 20)
    for family in (held_out[first : first + 4] for first in range(0, 20, 4)):
        assert len({named_set(record) for _, record in family}) == 4
        first = family[0][1]
        for image, sibling in family[1:]:
            assert len(named_set(first) - named_set(sibling)) == 1
            assert without_names_and_relations(first) == without_names_and_relations(sibling)
            assert len(set(first.objects) - set(sibling.objects)) <= 1
            parse(sibling)  # the sentence is one of those that can be
            outside = np.abs(pixels(image) - pixels(family[0][0])).any(axis=2)
            for box in (*first.objects, *sibling.objects):
                x0, y0, x1, y1 = map(int, box.box)
                outside[y0:y1, x0:x1] = False
            assert not outside.any()


def test_siblings_lie_within_a_quarter_and_apart() -> None:
    for _, record in scenes(replace(SMALL, siblings=3), "val", 60):
        half = SMALL.size // 2
        quarters = set()
        for x0, y0, x1, y1 in (proposal.box for proposal in record.objects):
            assert 0 <= x0 < x1 <= SMALL.size
            assert 0 <= y0 < y1 <= SMALL.size
            quarter = (x0 >= half, y0 >= half)
            assert (x1 > half, y1 > half) == quarter
            quarters.add(quarter)
        assert len(quarters) == len(record.objects)


def test_training_scenes_have_no_siblings() -> None:
    assert records(replace(SMALL, siblings=3)) == records(SMALL)


def test_more_siblings_than_there_can_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"has only \d+ siblings, not 500: use fewer siblings, or more concepts than"):
        draw_scene("test", 500, replace(SMALL, siblings=500))


def test_languages_are_those_asked_for() -> None:
    assert {record.lang for record in records()} == {"en", "zh"}
    for language in BOTH:
        drawn = records(DemoSettings(languages=(language,), size=64), count=10)
        assert {record.lang for record in drawn} == {language}
        assert all(record.text.isascii() == (language == "en") for record in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_named_set_is_in_two_splits(seed: int) -> None:
    """Ten concepts make 120 sets, so that nearly all of them are drawn."""
    sets = [
        {named_set(record) for record in records(DemoSettings(concepts=10, size=48, seed=seed), split, count=200)}
        for split in SPLITS
    ]
    assert all(sets)
    for first, second in combinations(sets, 2):
        assert not first & second


@pytest.mark.slow
def test_every_concept_is_named_in_every_split() -> None:
    everything = {concept.id for concept in choose_concepts(SMALL)}
    for split in SPLITS:
        assert set().union(*map(named_set, records(split=split, count=200))) == everything


def test_the_manifest_is_accepted_and_its_images_load(tmp_path: Path) -> None:
    counts: dict[Split, int] = {"train": 5, "val": 2, "test": 1}
    paths = write_demo(tmp_path, counts, SMALL)
    assert paths == {split: tmp_path / f"{split}.jsonl" for split in SPLITS}
    for split, path in paths.items():
        manifest = Manifest(path)
        assert list(manifest) == records(split=split, count=counts[split])
        for (image, _), record in zip(scenes(split=split, count=counts[split]), manifest, strict=True):
            stored = load_image(manifest.image_path(record))
            assert stored.size == (64, 64)
            assert np.abs(pixels(stored) - pixels(image)).mean() < 12, "but for the losses of JPEG"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_equal_settings_give_equal_files(tmp_path: Path, workers: int) -> None:
    contents = []
    for folder, count in (("first", 1), ("second", workers)):
        write_demo(tmp_path / folder, {"train": 70, "val": 3}, SMALL, workers=count)
        files = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / folder): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 75


@pytest.mark.slow
def test_a_larger_demo_begins_as_a_smaller_one(tmp_path: Path) -> None:
    write_demo(tmp_path / "small", {"train": 2}, SMALL)
    write_demo(tmp_path / "large", {"train": 4}, SMALL)
    small, large = ((tmp_path / name / "train.jsonl").read_bytes() for name in ("small", "large"))
    assert large.startswith(small)


def test_progress_is_reported(tmp_path: Path) -> None:
    drawn: list[int] = []
    write_demo(tmp_path, {"train": 3, "val": 2}, SMALL, on_drawn=drawn.append)
    assert drawn == [1, 2, 3, 4, 5]


class TestFolderOfOtherData:
    def test_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "test.jsonl").write_text('{"id":"71044","image":"images/71044.jpg","text":"A park."}\n')
        with pytest.raises(OutputError, match=r"test\.jsonl: is not of a demo, .* name another folder"):
            write_demo(tmp_path, {"train": 1, "test": 1}, SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]

    @pytest.mark.parametrize("settings", [SMALL, replace(SMALL, siblings=2), replace(SMALL, relations="one")])
    def test_scenes_of_an_earlier_demo_are_replaced(self, settings: DemoSettings, tmp_path: Path) -> None:
        for count in (6, 3):
            written = write_demo(tmp_path, dict.fromkeys(SPLITS, count), settings)
        assert [len(Manifest(path)) for path in written.values()] == [3, 3, 3]

    def test_an_empty_manifest_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "train.jsonl").touch()
        assert len(Manifest(write_demo(tmp_path, {"train": 2}, SMALL)["train"])) == 2
