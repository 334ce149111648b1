"""Tags of a batch, texts without images, and candidates that are linked to the entities they match."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pairs
from spanbox.data.annotate import annotate
from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_text import TextAugmentSettings
from spanbox.data.collate import Collator
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record
from spanbox.data.paraphrases import Paraphrase, ParaphraseSpan
from spanbox.data.tagged import TaggingCollator, TextSamples, entity_types, tokenize
from spanbox.data.tokenizer import train_tokenizer
from spanbox.errors import DataError
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, PADDING_ID, SHOWN, Incident, Sample
from spanbox.tags import tagged_spans

ENGLISH = "Garfield is in New York"
CHINESE = "加菲猫在上海公园。"
LIMITS = SampleLimits(image_size=8, objects_only=True, link_iou=0.5)


def typed(text: str, name: str, kind: str, *boxes: tuple[float, float, float, float]) -> Entity:
    start = text.index(name)
    return Entity(start, start + len(name), type=kind, boxes=boxes)


def save(folder: Path, *records: Record) -> Manifest:
    folder.mkdir(exist_ok=True)
    return pairs.save_manifest(folder, list(records), images=False)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    english = (typed(ENGLISH, "Garfield", "animal"), typed(ENGLISH, "New York", "place"))
    chinese = (typed(CHINESE, "加菲猫", "animal"), typed(CHINESE, "上海", "place"))
    return save(
        tmp_path,
        Record(id="en", image="missing.png", text=ENGLISH, entities=english),
        Record(id="zh", image="missing.png", text=CHINESE, entities=chinese),
        Record(id="none", image="missing.png", text="nothing here"),
    )


def spans_of_tags(manifest: Manifest, place: int, types: tuple[str, ...]) -> list[tuple[str, str]]:
    """The texts and types that the tags of a pair stand for."""
    tokenizer = train_tokenizer((record.text for record in manifest), 300)
    collator = TaggingCollator(Collator(tokenizer, 64), manifest, types)
    batch = collator([TextSamples(manifest)[0, place]]).batch
    text = manifest[place].text
    tokens = tokenize(tokenizer, [text], 64)
    tagged = batch.tags[0] >= 0
    assert torch.equal(tagged, tokens.tagged[0])
    offsets = tokens.offsets[0][tagged].tolist()
    found = tagged_spans(batch.tags[0][tagged].tolist())
    return [(text[offsets[first][0] : offsets[end - 1][1]], types[kind]) for first, end, kind in found]


def test_the_tags_stand_for_the_entities_in_english_and_chinese(manifest: Manifest) -> None:
    types = entity_types(manifest)
    assert types == ("animal", "place")
    assert spans_of_tags(manifest, 0, types) == [("Garfield", "animal"), ("New York", "place")]
    assert spans_of_tags(manifest, 1, types) == [("加菲猫", "animal"), ("上海", "place")]
    assert spans_of_tags(manifest, 2, types) == []


def test_entities_of_other_types_are_outside(manifest: Manifest) -> None:
    assert spans_of_tags(manifest, 0, ("place",)) == [("New York", "place")]


def test_the_tokens_that_the_tokenizer_adds_have_no_tag(manifest: Manifest) -> None:
    tokenizer = train_tokenizer((record.text for record in manifest), 300)
    batch = TaggingCollator(Collator(tokenizer, 64), manifest, ("animal", "place"))(
        [TextSamples(manifest)[0, place] for place in range(3)]
    ).batch
    assert (batch.tags[:, 0] == PADDING_ID).all()
    assert (batch.tags[~batch.token_mask] == PADDING_ID).all()
    assert (batch.tags >= 0).sum(dim=1).tolist() == (batch.token_mask.sum(dim=1) - 2).tolist()


def test_a_nested_entity_is_an_incident(tmp_path: Path) -> None:
    text = "New York Times"
    nested = (typed(text, "New York", "place"), Entity(0, len(text), type="paper"))
    manifest = save(tmp_path, Record(id="a", image="a.png", text=text, entities=nested))
    tokenizer = train_tokenizer([text], 100)
    collated = TaggingCollator(Collator(tokenizer, 64), manifest, ("paper", "place"))([TextSamples(manifest)[0, 0]])
    assert [incident.kind for incident in collated.incidents] == ["nested entity"]
    assert "'New York'" in collated.incidents[0].detail


class TestAugmentedTexts:
    """No tag calls a name outside because nobody marked it in a paraphrase."""

    WITHOUT_PLACES = Paraphrase("New York is where Garfield lives")
    WITH_PLACES = Paraphrase("In New York lives Garfield", (ParaphraseSpan(0, 18, 26), ParaphraseSpan(1, 3, 11)))

    def save(self, folder: Path) -> Manifest:
        entities = (typed(ENGLISH, "Garfield", "animal"), typed(ENGLISH, "New York", "place"))
        paraphrases = (self.WITHOUT_PLACES, self.WITH_PLACES)
        return pairs.save_manifest(folder, [Record("a", "a.png", ENGLISH, entities=entities, paraphrases=paraphrases)])

    def test_of_texts_alone(self, tmp_path: Path) -> None:
        samples = TextSamples(self.save(tmp_path), TextAugmentSettings(paraphrases=0.5))
        self.check([samples[step, 0] for step in range(20)])
        assert samples[3, 0].text == samples[3, 0].text

    def test_of_images_with_candidates(self, tmp_path: Path) -> None:
        augment = AugmentSettings(text=TextAugmentSettings(paraphrases=0.5))
        dataset = PairDataset(self.save(tmp_path), replace(LIMITS, augment=augment), 0, replace_broken=True)
        self.check([dataset[step, 0] for step in range(20)])

    def check(self, samples: list[Sample | Incident]) -> None:
        drawn = {(one.text, one.span_texts) for one in samples if isinstance(one, Sample)}
        names = ("Garfield", "New York")
        assert drawn == {(ENGLISH, names), (self.WITH_PLACES.text, names)}


def test_the_end_of_a_long_text_is_not_read(manifest: Manifest) -> None:
    tokenizer = train_tokenizer((record.text for record in manifest), 300)
    tokens = tokenize(tokenizer, ["nothing here", CHINESE * 9], 16)
    assert tokens.token_ids.shape == (2, 16)
    assert tokens.truncated == [1]


def test_without_types_without_entities_and_with_too_many(tmp_path: Path) -> None:
    untyped = Record(id="a", image="a.png", text=ENGLISH, entities=(typed(ENGLISH, "Garfield", ""),))
    with pytest.raises(DataError, match="1 pairs have entities without a type"):
        entity_types(save(tmp_path / "1", untyped))
    with pytest.raises(DataError, match="no pair has entities"):
        entity_types(save(tmp_path / "2", Record(id="a", image="a.png", text=ENGLISH)))
    many = tuple(Entity(0, 1, type=f"type {number}") for number in range(501))
    with pytest.raises(DataError, match="501 entity types"):
        entity_types(save(tmp_path / "3", Record(id="a", image="a.png", text=ENGLISH, entities=many)))


class TestCandidates:
    @staticmethod
    def of(entity: Entity, *objects: tuple[float, float, float, float]) -> tuple[list[list[bool]], int, list[str]]:
        boxes = [ObjectBox(box) for box in objects]
        found = annotate(ENGLISH, [entity], boxes, (100, 100), LIMITS, sample="a")
        return found.links.tolist(), found.shown[0], [incident.kind for incident in found.incidents]

    def test_all_that_match_a_box_are_right(self) -> None:
        entity = typed(ENGLISH, "Garfield", "animal", (0, 0, 40, 40), (60, 60, 100, 100))
        links, shown, incidents = self.of(entity, (0, 0, 40, 38), (62, 60, 100, 100), (30, 30, 70, 70))
        assert links == [[True, True, False]]
        assert (shown, incidents) == (SHOWN, [])

    def test_an_overlap_of_exactly_half_is_none(self) -> None:
        """As in the official measure."""
        entity = typed(ENGLISH, "Garfield", "animal", (0, 0, 50, 50))
        links, shown, incidents = self.of(entity, (0, 0, 100, 50), (0, 0, 99, 50))
        assert links == [[False, True]]
        assert (shown, incidents) == (SHOWN, [])

    def test_a_box_that_no_candidate_matches_is_an_incident_and_not_none(self) -> None:
        links, shown, incidents = self.of(typed(ENGLISH, "Garfield", "animal", (0, 0, 10, 10)), (50, 50, 90, 90))
        assert links == [[False]]
        assert (shown, incidents) == (NOT_KNOWN, ["box without a candidate"])

    def test_without_a_box_and_without_candidates(self) -> None:
        assert self.of(typed(ENGLISH, "Garfield", "animal"), (0, 0, 9, 9)) == ([[False]], NAMED_ONLY, [])
        links, shown, incidents = self.of(typed(ENGLISH, "Garfield", "animal", (0, 0, 9, 9)))
        assert links == [[]]
        assert (shown, incidents) == (NOT_KNOWN, ["box without a candidate"])

    def test_without_entities(self) -> None:
        found = annotate(ENGLISH, [], [ObjectBox((0, 0, 9, 9))], (100, 100), LIMITS)
        assert found.links.shape == (0, 1)
