"""Texts of samples in training: paraphrases, changed texts, and what stays as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pairs import entity, save_manifest
from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_text import TextAugmentSettings
from spanbox.data.collate import Collator
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import ObjectBox, Record
from spanbox.data.masking import MaskSettings
from spanbox.data.paraphrases import Paraphrase, ParaphraseSpan
from spanbox.data.sample_text import TextAugmenter, training_texts
from spanbox.data.tokenizer import train_tokenizer
from spanbox.errors import DataError
from spanbox.structures import Sample, stable_id

TEXT = "A picture of the cat above the dog"
ZH = "图片中猫在狗的上方"
BOX = (0.0, 0.0, 8.0, 8.0)
OTHER = (8.0, 8.0, 16.0, 16.0)


def paraphrase(text: str, *names: str, lang: str = "") -> Paraphrase:
    """Names the entities of the pair in their order."""
    spans = [ParaphraseSpan(i, text.index(name), text.index(name) + len(name)) for i, name in enumerate(names)]
    return Paraphrase(text, tuple(spans), lang)


def record_of(*paraphrases: Paraphrase, id: str = "r") -> Record:
    entities = (entity(TEXT, "cat"), entity(TEXT, "dog", BOX, OTHER))
    return Record(id, f"{id}.png", TEXT, lang="en", entities=entities, paraphrases=paraphrases)


def dataset_of(folder: Path, *records: Record, seed: int = 0, cache: int = 0, **settings: Any) -> PairDataset:
    augment = AugmentSettings(text=TextAugmentSettings(**settings))
    limits = SampleLimits(16, augment=augment, crop_size=8)
    return PairDataset(save_manifest(folder, list(records)), limits, seed, replace_broken=True, cache_bytes=cache)


def drawn(dataset: PairDataset, count: int = 40) -> list[Sample]:
    samples = [dataset[step, 0] for step in range(count)]
    assert all(isinstance(sample, Sample) for sample in samples)
    return samples


def spelled(sample: Sample) -> tuple[str, ...]:
    return tuple(sample.text[start:end] for start, end in sample.spans)


def test_a_paraphrase_takes_the_place_of_the_text(tmp_path: Path) -> None:
    record = record_of(paraphrase("the hound under a kitty", "kitty", "hound"), paraphrase(ZH, "猫", "狗", lang="zh"))
    samples = drawn(dataset_of(tmp_path, record, paraphrases=0.5))
    found = {sample.text: sample for sample in samples}
    assert set(found) == {TEXT, "the hound under a kitty", ZH}
    assert 10 < sum(sample.text != TEXT for sample in samples) < 30
    assert spelled(found[TEXT]) == ("dog", "cat")  # with a box first
    assert spelled(found["the hound under a kitty"]) == ("hound", "kitty")
    assert spelled(found[ZH]) == ("狗", "猫")


def test_what_an_entity_is_stays(tmp_path: Path) -> None:
    record = record_of(paraphrase("the hound under a kitty", "kitty", "hound"))
    plain = drawn(dataset_of(tmp_path, record), 1)[0]
    for sample in drawn(dataset_of(tmp_path, record, paraphrases=1, synonyms=1, entities="replace"), 10):
        assert sample.identities == plain.identities == (stable_id("dog"), stable_id("cat"))
        assert sample.shown == plain.shown
        assert torch.equal(sample.regions, plain.regions)
        assert torch.equal(sample.links, plain.links)
        assert spelled(sample) == sample.span_texts


def test_a_paraphrase_without_entities_is_for_the_coarse_level_only(tmp_path: Path) -> None:
    sample = drawn(dataset_of(tmp_path, record_of(Paraphrase("two animals")), paraphrases=1), 1)[0]
    assert sample.text == "two animals"
    assert sample.spans == sample.identities == sample.entities == ()
    assert sample.regions.shape == (0, 4)
    assert sample.links.shape == (0, 0)
    assert sample.crops is not None
    assert len(sample.crops) == 0


def test_paraphrases_of_a_pair_without_entities(tmp_path: Path) -> None:
    record = Record("r", "r.png", "ein Bild", objects=(ObjectBox(BOX),), paraphrases=(Paraphrase("noch eins"),))
    sample = drawn(dataset_of(tmp_path, record, paraphrases=1), 1)[0]
    assert sample.text == "noch eins"


def test_coarse_only_pairs_are_collated_beside_others(tmp_path: Path) -> None:
    records = [record_of(Paraphrase("two animals"), id="a"), record_of(id="b")]
    dataset = dataset_of(tmp_path, *records, paraphrases=1)
    batch = Collator(train_tokenizer([TEXT, "two animals"], 100), 32)([dataset[0, 0], dataset[0, 1]]).batch
    assert batch.span_valid.tolist() == [[False, False], [True, True]]
    assert batch.region_valid.tolist() == [[False, False], [True, True]]


def test_crops_of_a_coarse_only_pair_with_padding(tmp_path: Path) -> None:
    augment = AugmentSettings(text=TextAugmentSettings(paraphrases=1))
    limits = SampleLimits(16, augment=augment, crop_size=8, aspect="pad")
    manifest = save_manifest(tmp_path, [record_of(Paraphrase("two animals"))])
    sample = PairDataset(manifest, limits, 0, replace_broken=True)[0, 0]
    assert isinstance(sample, Sample)
    batch = Collator(train_tokenizer([TEXT, "two animals"], 100), 32)([sample]).batch
    assert batch.crop_content is not None
    assert batch.crop_content.shape == (1, 0, 2)


def test_masked_views_of_a_coarse_only_pair(tmp_path: Path) -> None:
    augment = AugmentSettings(text=TextAugmentSettings(paraphrases=1))
    limits = SampleLimits(16, augment=augment, views=MaskSettings(count=2), view_grid=4)
    manifest = save_manifest(tmp_path, [record_of(Paraphrase("two animals"))])
    sample = PairDataset(manifest, limits, 0, replace_broken=True)[0, 0]
    assert isinstance(sample, Sample)
    assert sample.views is not None
    assert sample.views.spans.shape == (2, 0)


def test_pairs_of_one_text_stay_pairs_of_one_text(tmp_path: Path) -> None:
    """Or they would become each other's negatives."""
    records = [record_of(paraphrase("the hound under a kitty", "kitty", "hound"), id="a"), record_of(id="b")]
    dataset = dataset_of(tmp_path, *records, paraphrases=1, synonyms=0.5)
    samples = [dataset[3, 0], dataset[3, 1]]
    assert samples[0].text != samples[1].text
    batch = Collator(train_tokenizer([TEXT, "hound under kitty"], 100), 32)(samples).batch
    assert batch.wording[0] == batch.wording[1] == stable_id(TEXT.casefold())


def test_draws_depend_on_seed_step_and_index_alone(tmp_path: Path) -> None:
    records = [record_of(paraphrase("the hound under a kitty", "kitty", "hound"), id=name) for name in "abc"]
    options = {"paraphrases": 0.5, "synonyms": 0.5, "deletion": 0.2}
    dataset = dataset_of(tmp_path, *records, **options)
    keys = [(step, index) for step in range(8) for index in range(3)]
    forwards = {key: dataset[key].text for key in keys}
    backwards = {key: dataset[key].text for key in reversed(keys)}
    cached = dataset_of(tmp_path, *records, cache=10**6, **options)
    again = [{key: cached[key].text for key in keys} for _ in range(2)]
    assert forwards == backwards == again[0] == again[1]
    assert len(set(forwards.values())) > 5
    other = dataset_of(tmp_path, *records, seed=1, **options)
    assert {key: other[key].text for key in keys} != forwards


def test_evaluation_uses_the_text(tmp_path: Path) -> None:
    record = record_of(paraphrase("the hound under a kitty", "kitty", "hound"))
    dataset = dataset_of(tmp_path, record, paraphrases=1, synonyms=1).for_evaluation()
    assert {sample.text for sample in drawn(dataset, 5)} == {TEXT}


def test_missing_synonyms_are_an_error_before_the_first_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        dataset_of(tmp_path, record_of(), synonyms=0.5, sources=["/no/such/wordnet"])


def test_the_words_that_changed(tmp_path: Path) -> None:
    sample = drawn(dataset_of(tmp_path, record_of(), synonyms=1), 1)[0]
    assert [old for old, _ in sample.text_changes] == ["A picture of", "above"]
    assert all(new in sample.text for _, new in sample.text_changes)
    assert sample.original_text == TEXT


def test_sources_are_read_where_they_are_needed() -> None:
    TextAugmenter(TextAugmentSettings(paraphrases=0.5, swap=0.5, sources=("/no/such/wordnet",)))


def test_a_tokenizer_is_trained_on_what_can_be_drawn() -> None:
    records = [record_of(Paraphrase("two animals")), record_of()]
    assert list(training_texts(records, TextAugmentSettings())) == [TEXT, TEXT]
    texts = set(training_texts(records, TextAugmentSettings(paraphrases=0.1, synonyms=1)))
    assert {TEXT, "two animals"} < texts
    assert texts - {TEXT, "two animals"} <= {
        f"{picture} of the cat {above} the dog"
        for picture in ("An image", "A photo")
        for above in ("over", "higher than")
    }
