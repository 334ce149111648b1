"""Entities from a tagger and objects from a detector: filled, checked, counted, resumed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectors import install_fake_spacy
from pairs import entity, save_manifest
from spanbox.data.auto_annotate import AutoAnnotation, Options
from spanbox.data.manifest import Manifest, ObjectBox, Record
from spanbox.data.paraphrases import Paraphrase, ParaphraseSpan
from spanbox.data.spacy_tagger import SpacyTagger
from spanbox.errors import ConfigError, DataError, OutputError

WHOLE = (0.0, 0.0, 40.0, 20.0)


class Model:
    """A tagger or a detector that remembers what it was asked."""

    name, key = "model", "1"

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.answer = answer
        self.seen: list[Any] = []

    def tag(self, texts: Sequence[str]) -> Any:
        self.seen += texts
        return [self.answer(text) for text in texts]

    def detect(self, images: Sequence[Any], labels: Sequence[Sequence[str]]) -> Any:
        self.seen += map(list, labels)
        return [self.answer(image, own) for image, own in zip(images, labels, strict=True)]


def words(text: str) -> list[dict[str, Any]]:
    """Spans of the words cat, dog and 猫."""
    return [
        {"start": text.index(name), "end": text.index(name) + len(name), "type": "animal"}
        for name in ("cat", "dog", "猫")
        if name in text
    ]


def halves(image: Any, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The first label in the left half, the others in the right one."""
    width, height = image.size
    return [
        {"box": [width / 2 * (i > 0), 0, width / (2 - (i > 0)), height], "score": 0.9 - i / 10, "label": label}
        for i, label in enumerate(labels)
    ]


def run(manifest: Manifest, **arguments: Any) -> tuple[list[Record], AutoAnnotation]:
    work = AutoAnnotation(manifest.path, manifest.path.parent / "new" / "out.jsonl", **arguments)
    work.run()
    return list(Manifest(work.out)), work


def test_entities_and_then_objects_named_by_them(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "a cat and a dog"), Record("2", "2.png", "一只猫")])
    found, work = run(manifest, tagger=Model(words), detector=Model(halves), options=Options(link=True))
    first, second = found
    left, right = (0.0, 0.0, 20.0, 20.0), (20.0, 0.0, 40.0, 20.0)
    assert [(first.span_text(e), e.type, e.boxes, e.ambiguous) for e in first.entities] == [
        ("cat", "animal", (left,), False), ("dog", "animal", (right,), False),
    ]  # fmt: skip
    assert first.entities[1].relevance == pytest.approx((0.8,))
    assert [(o.box, o.label) for o in first.objects] == [(left, "cat"), (right, "dog")]
    assert [second.span_text(e) for e in second.entities] == ["猫"]
    assert work.counts["entities found"] == work.counts["entities linked to a box"] == 3
    assert Manifest(work.out).image_path(first).is_file()


def test_a_type_or_a_label_may_be_the_number_0(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "一只猫")])
    tagger = Model(lambda text: [{"start": 2, "end": 3, "type": 0}])
    detector = Model(lambda image, labels: [{"box": [0, 0, 9, 9], "label": 0}, {"box": [20, 0, 39, 9], "label": None}])
    (found,), _ = run(manifest, tagger=tagger, detector=detector)
    assert [entity.type for entity in found.entities] == ["0"]
    assert [proposal.label for proposal in found.objects] == ["0", ""]


def test_without_a_detector_it_is_unknown_whether_the_image_shows_an_entity(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "a cat"), Record("2", "2.png", "nothing")])
    found, work = run(manifest, tagger=Model(words))
    assert [[(e.boxes, e.ambiguous) for e in record.entities] for record in found] == [[((), True)], []]
    assert work.counts["pairs without an entity found"] == 1


def test_what_is_there_is_left_unless_it_is_replaced(tmp_path: Path) -> None:
    text = "a cat and a dog"
    own = Record(
        "1",
        "1.png",
        text,
        entities=(entity(text, "dog", WHOLE),),
        objects=(ObjectBox(WHOLE, label="old"),),
        paraphrases=(Paraphrase("the dog", (ParaphraseSpan(0, 4, 7),)),),
        meta={"页": 1},
    )
    manifest = save_manifest(tmp_path, [own])
    tagger, detector = Model(words), Model(halves)
    (kept,), work = run(manifest, tagger=tagger, detector=detector)
    assert (kept.entities, kept.objects, kept.paraphrases, kept.meta) == (
        own.entities, own.objects, own.paraphrases, own.meta,
    )  # fmt: skip
    assert tagger.seen == detector.seen == []
    assert work.counts["pairs with entities: left as they are"] == 1
    assert work.counts["pairs with objects: left as they are"] == 1
    (new,), _ = run(manifest, tagger=tagger, detector=detector, options=Options(replace=True))
    assert [new.span_text(e) for e in new.entities] == ["cat", "dog"]
    assert [o.label for o in new.objects] == ["cat", "dog"]
    assert new.paraphrases == (Paraphrase("the dog"),)


def test_linking_fills_entities_without_a_box_alone(tmp_path: Path) -> None:
    text = "a cat and a dog"
    entities = (entity(text, "cat", WHOLE), entity(text, "dog"))
    manifest = save_manifest(tmp_path, [Record("1", "1.png", text, entities=entities, objects=(ObjectBox(WHOLE),))])
    (found,), _ = run(manifest, detector=Model(halves), options=Options(link=True))
    assert [e.boxes for e in found.entities] == [(WHOLE,), ((20.0, 0.0, 40.0, 20.0),)]
    assert found.objects == (ObjectBox(WHOLE),)


def test_labels_are_those_given_or_the_distinct_texts_of_entities(tmp_path: Path) -> None:
    text = "Cat, cat and  red\tdog"
    entities = tuple(entity(text, name) for name in ("Cat", "cat", "red\tdog"))
    records = [Record("1", "1.png", text, entities=entities), Record("2", "2.png", "none")]
    detector = Model(halves)
    _, work = run(save_manifest(tmp_path, records), detector=detector)
    assert detector.seen == [["cat", "red dog"]]
    assert work.counts["pairs without an entity to look for"] == 1
    detector = Model(halves)
    run(save_manifest(tmp_path, records), detector=detector, options=Options(("shoe", "帽子")))
    assert detector.seen == [["shoe", "帽子"]] * 2


def test_boxes_are_clipped_checked_and_counted(tmp_path: Path) -> None:
    given = [
        {"box": np.array([-50.0, -1e300, 20.0, 10.0]), "score": torch.tensor(0.5), "label": "a"},
        {"box": (0.0, 0.0, 20.0, 10.5), "score": 0.4, "label": "a"},
        {"box": [0.0, 0.0, 20.0, 10.0], "score": 0.3, "label": "b"},
        {"box": [90.0, 0.0, 95.0, 10.0], "score": 0.9, "label": "a"},
        {"box": [5.0, 5.0, 5.0, 10.0], "score": 0.9, "label": None},
        {"box": [30, 0, 40, 20]},
        {"box": [25, 0, 40, 20], "score": 0.01, "label": "c"},
    ]
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "x")])
    (found,), work = run(manifest, detector=Model(lambda *_: given), options=Options(("a",), most=3))
    assert [(o.box, o.score, o.label) for o in found.objects] == [
        ((30.0, 0.0, 40.0, 20.0), 1.0, ""),
        ((0.0, 0.0, 20.0, 10.0), 0.5, "a"),
        ((0.0, 0.0, 20.0, 10.0), 0.3, "b"),
    ]
    assert {kind: count for kind, count in work.counts.items() if count} == {
        "boxes without an area within their image: left out": 2,
        "boxes clipped to their image": 1,
        "boxes that repeat a better one: left out": 1,
        "boxes over the limit of an image: left out": 1,
        "objects found": 3,
    }


def test_spans_are_checked_and_counted(tmp_path: Path) -> None:
    given = [(0, 1), (0, 1), (3, 99), (-1, 2), (2, 2), (1, 2), (2, 5)]
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "猫 dog")])
    (found,), work = run(manifest, tagger=Model(lambda _: [{"start": a, "end": b} for a, b in given]))
    assert [found.span_text(e) for e in found.entities] == ["猫", "dog"]
    assert work.counts["spans given twice: left out"] == 1
    assert work.counts["spans outside of their text, or of white space: left out"] == 4


def test_nothing_is_asked_twice_and_a_failure_loses_nothing(tmp_path: Path) -> None:
    records = [Record(str(i), f"{i}.png", f"a cat {i % 3}") for i in range(12)]
    manifest = save_manifest(tmp_path, records)
    tagger = Model(words)
    calls = 0

    def fails(image: Any, labels: Sequence[str]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("no credit left")
        return halves(image, labels)

    with pytest.raises(DataError, match=r"model failed with RuntimeError: no credit left .* goes on from there"):
        run(manifest, tagger=tagger, detector=Model(fails), batch_size=3)
    assert len(tagger.seen) == 3  # of equal texts one
    assert not (tmp_path / "new" / "out.jsonl").exists()
    again, detector = Model(words), Model(halves)
    found, work = run(manifest, tagger=again, detector=detector, batch_size=3)
    assert again.seen == []
    assert len(detector.seen) == 6
    assert (work.counts["entities found"], work.counts["objects found"]) == (12, 12)
    other = tmp_path / "fresh"
    fresh = AutoAnnotation(manifest.path, other / "out.jsonl", tagger=Model(words), detector=Model(halves))
    fresh.run()
    assert [r.entities for r in Manifest(fresh.out)] == [r.entities for r in found]
    assert fresh.counts == work.counts


def test_an_image_that_changed_is_asked_again(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "x")])
    options = Options(("a",))
    run(manifest, detector=Model(halves), options=options)
    from PIL import Image

    Image.new("RGB", (60, 20)).save(tmp_path / "1.png")
    (found,), _ = run(manifest, detector=Model(halves), options=options)
    assert found.objects[0].box == (0.0, 0.0, 30.0, 20.0)


def test_a_damaged_cache_is_asked_again(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "a cat")])
    found, work = run(manifest, tagger=Model(words), detector=Model(halves))
    for old, new in (("[[", "[5,["), ("0.9", '\\"x\\"'), ('"text":"', '"text":"x')):
        content = work.cache.path.read_text()
        work.cache.path.write_text(content.replace(old, new))
        assert work.cache.path.read_text() != content
        again, _ = run(manifest, tagger=Model(words), detector=Model(halves))
        assert again[0].objects == found[0].objects
        work.cache.path.write_text(content)


def test_images_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    records = [Record("1", "1.png", "x"), Record("2", "gone.png", "y"), Record("3", "坏.png", "z")]
    save_manifest(tmp_path, records[:1])
    (tmp_path / records[2].image).write_bytes(b"no image")
    manifest = save_manifest(tmp_path, records, images=False)
    found, work = run(manifest, detector=Model(halves), options=Options(("a",)))
    assert [len(record.objects) for record in found] == [1, 0, 0]
    assert work.counts["images that cannot be read"] == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: None, "gave a list with NoneType"),
        (lambda _: "text", "gave a list with str"),
        (lambda _: [5], "gave 5; expected"),
        (lambda _: [{"start": 1}], "gave .*; expected .*start"),
        (lambda _: [{"start": "x", "end": 2}], "gave .*; expected .*start"),
    ],
)
def test_a_tagger_that_returns_something_else_is_named(
    tmp_path: Path, answer: Callable[[str], Any], message: str
) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "a cat")])
    with pytest.raises(DataError, match=f"model {message}"):
        run(manifest, tagger=Model(answer))


@pytest.mark.parametrize("box", [[1, 2, 3], "text", [1, 2, 3, float("nan")], [1, 2, 3, None], None])
def test_a_detector_that_returns_something_else_is_named(tmp_path: Path, box: Any) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "a cat")])
    with pytest.raises(DataError, match=r"model gave .*expected finite numbers"):
        run(manifest, detector=Model(lambda *_: [{"box": box}]), options=Options(("a",)))


def test_the_wrong_number_of_results(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "a cat")])
    tagger = Model(words)
    tagger.tag = lambda texts: []  # type: ignore[method-assign]
    with pytest.raises(DataError, match="model gave 0 entries for 1 texts"):
        run(manifest, tagger=tagger)


def test_the_manifest_itself_is_not_replaced(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record("1", "1.png", "a cat")])
    with pytest.raises(OutputError, match="is read by this command"):
        AutoAnnotation(manifest.path, manifest.path, tagger=Model(words))


class TestSpacy:
    TEXT = "the red cat sees Tom and it"

    @pytest.fixture(autouse=True)
    def spacy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install_fake_spacy(monkeypatch)

    @pytest.mark.parametrize(
        ("spans", "expected"),
        [("entities", ["Tom"]), ("noun-phrases", ["the red cat"]), ("both", ["Tom", "the red cat"])],
    )
    def test_entities_and_noun_phrases(self, spans: Any, expected: list[str]) -> None:
        (found,) = SpacyTagger("xx_fake", spans).tag([self.TEXT])
        assert [self.TEXT[span["start"] : span["end"]] for span in found] == expected
        assert all(span["type"] == ("NAME" if span["start"] == 17 else "") for span in found)

    def test_noun_phrases_that_touch_an_entity_are_left_out(self) -> None:
        (found,) = SpacyTagger("xx_fake", "both").tag(["the Tom runs"])
        assert [(span["start"], span["end"]) for span in found] == [(4, 7)]

    def test_chinese_has_entities_but_no_noun_phrases(self, tmp_path: Path) -> None:
        assert SpacyTagger("zh_fake", "entities").tag(["一只猫"]) == [[{"start": 2, "end": 3, "type": "NAME"}]]
        manifest = save_manifest(tmp_path, [Record("1", "1.png", "一只猫")])
        with pytest.raises(ConfigError, match=r"finds no noun phrases .*--spans entities"):
            run(manifest, tagger=SpacyTagger("zh_fake", "both"))

    def test_a_missing_pipeline(self) -> None:
        with pytest.raises(ConfigError, match=r"no pipeline 'none' .*E050"):
            SpacyTagger("none", "entities")


def test_without_spacy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match=r"pip install 'spanbox\[spacy\]'"):
        SpacyTagger("en_core_web_sm", "entities")
