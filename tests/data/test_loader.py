"""Loaders: the same batches whatever the number of workers, and every pair once in evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pairs import entity, save_manifest
from spanbox.data.augment import AugmentSettings
from spanbox.data.collate import Collated, Collator
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.loader import DataSettings, evaluation_batches, training_batches
from spanbox.data.manifest import Manifest, Record
from spanbox.data.sampler import StepSampler
from spanbox.data.tokenizer import train_tokenizer
from spanbox.structures import Batch, Incident, stable_id

NAMES = "abcdefghij"
BROKEN = "cfgh"
# Workers are asked for on a machine that may have one core only.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([text_of(name) for name in NAMES], 200)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Ten pairs, four of them with broken images, some with boxes and a box to clip."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in BROKEN:
        (folder / f"{name}.png").write_bytes(b"no image")
    records = [
        Record(
            id=name,
            image=f"{name}.png",
            text=text_of(name),
            entities=(entity(text_of(name), "dog", *[(0.0, 0.0, 10.0 + 5 * i, 9.0) for i in range(number)]),),
        )
        for number, name in enumerate(NAMES)
    ]
    return save_manifest(folder, records)


def text_of(name: str) -> str:
    return f"A dog called {name} " + "very " * (ord(name) % 5)


def collator(tokenizer: Any) -> Collator:
    return Collator(tokenizer, 16, own_spans=True)


def dataset(manifest: Manifest, *, training: bool) -> PairDataset:
    return PairDataset(manifest, SampleLimits(image_size=8, crop_size=4), seed=3, replace_broken=training)


def loaded(manifest: Manifest, tokenizer: Any, workers: int, start: int = 0, stop: int = 7) -> list[Collated]:
    sampler = StepSampler(len(manifest), 3, 3, start, stop)
    data = dataset(manifest, training=True)
    batches = list(training_batches(data, collator(tokenizer), sampler, workers, pin_memory=False))
    assert all(isinstance(batch, Collated) for batch in batches)
    return batches  # type: ignore[return-value]


def evaluated(
    manifest: Manifest, tokenizer: Any, *, workers: int = 0, batch_size: int = 4
) -> tuple[list[Batch], list[Incident]]:
    incidents: list[Incident] = []
    data = dataset(manifest, training=False)
    return list(evaluation_batches(data, collator(tokenizer), batch_size, workers, incidents)), incidents


def assert_same(first: Batch, second: Batch) -> None:
    tensors = dict(first.named_tensors())
    assert tensors.keys() == dict(second.named_tensors()).keys()
    for name, tensor in second.named_tensors():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(manifest: Manifest, tokenizer: Any, workers: int) -> None:
    """More than two epochs; broken images are replaced on the way."""
    alone, shared = loaded(manifest, tokenizer, 0), loaded(manifest, tokenizer, workers)
    assert any(incident.kind == "broken image" for batch in alone for incident in batch.incidents)
    assert len(alone) == len(shared) == 7
    for first, second in zip(alone, shared, strict=True):
        assert_same(first.batch, second.batch)
        assert (first.ids, first.incidents) == (second.ids, second.incidents)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_augmented_copies_are_the_same_from_any_step_and_with_any_workers(
    manifest: Manifest, tokenizer: Any, workers: int
) -> None:
    changes = {"copies": 2, "image": {"preset": "strong"}, "text": {"preset": "strong"}}
    limits = SampleLimits(image_size=8, augment=AugmentSettings.model_validate(changes))

    def loaded(workers: int, start: int) -> list[Batch]:
        data = PairDataset(manifest, limits, seed=3, replace_broken=True)
        sampler = StepSampler(len(manifest), 3, 3, start, 6, copies=2)
        return [one.batch for one in training_batches(data, collator(tokenizer), sampler, workers, pin_memory=False)]

    full = loaded(0, 0)
    assert [len(batch) for batch in full] == [6] * 6
    for batch in full:
        assert not (batch.group.unique(return_counts=True)[1] % 2).any(), (
            "a broken pair has one stand-in for all copies"
        )
        first, second = batch.pixels[batch.group == batch.group[0]][:2]
        assert not torch.equal(first, second)
    for start in (0, 2):
        for first, second in zip(full[start:], loaded(workers, start), strict=True):
            assert_same(first, second)


def test_a_resumed_loader_gives_the_tail_of_the_full_run(manifest: Manifest, tokenizer: Any) -> None:
    full = loaded(manifest, tokenizer, 0)
    for start in (1, 3, 5):
        for first, second in zip(loaded(manifest, tokenizer, 0, start=start), full[start:], strict=True):
            assert_same(first.batch, second.batch)


def test_batches_name_their_pairs(manifest: Manifest, tokenizer: Any) -> None:
    for batch in loaded(manifest, tokenizer, 0):
        assert len(batch.ids) == len(batch.batch) == 3
        assert not set(batch.ids) & set(BROKEN)
        assert batch.batch.sample.tolist() == [stable_id(name) for name in batch.ids]


def test_loading_draws_nothing_from_the_global_random_state(manifest: Manifest, tokenizer: Any) -> None:
    state = torch.random.get_rng_state()
    loaded(manifest, tokenizer, 0)
    evaluated(manifest, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_evaluation_visits_each_pair_once_in_order(manifest: Manifest, tokenizer: Any, workers: int) -> None:
    batches, incidents = evaluated(manifest, tokenizer, workers=workers)
    readable = [name for name in NAMES if name not in BROKEN]
    assert [name for batch in batches for name in batch.sample.tolist()] == [stable_id(name) for name in readable]
    broken = [incident.sample for incident in incidents if incident.kind == "broken image"]
    assert broken == list(BROKEN)
    alone, expected = evaluated(manifest, tokenizer)
    assert incidents == expected
    for first, second in zip(batches, alone, strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("batch_size", [1, 2, 9, 10, 64])
def test_evaluation_with_any_batch_size(manifest: Manifest, tokenizer: Any, batch_size: int) -> None:
    """With 1 and 2 some batches hold broken images only; the last batch may be smaller."""
    batches, incidents = evaluated(manifest, tokenizer, batch_size=batch_size)
    assert sum(map(len, batches)) == len(NAMES) - len(BROKEN)
    assert max(map(len, batches)) <= batch_size
    assert sum(incident.kind == "broken image" for incident in incidents) == len(BROKEN)


def test_evaluation_of_broken_images_only(tmp_path: Path, tokenizer: Any) -> None:
    manifest = save_manifest(tmp_path, [Record(id="a", image="a.png", text="a dog")], images=False)
    batches, incidents = evaluated(manifest, tokenizer)
    assert batches == []
    assert [(incident.kind, incident.sample) for incident in incidents] == [("broken image", "a")]


def test_evaluation_collects_what_samples_and_collator_tell(tmp_path: Path, tokenizer: Any) -> None:
    text = "dog " * 20
    record = Record(id="a", image="a.png", text=text, entities=(entity(text, "dog", (0, 0, 99, 9)),))
    manifest = save_manifest(tmp_path, [record])
    incidents: list[Incident] = []
    data = dataset(manifest, training=False)
    list(evaluation_batches(data, Collator(tokenizer, 2), 4, 0, incidents))
    assert [incident.kind for incident in incidents] == ["clipped box", "truncated span"]


def test_workers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert DataSettings(workers=3).worker_count(cpu) == 3
    for cores, expected in ((1, 0), (4, 3), (64, 8)):
        monkeypatch.setattr("spanbox.data.loader.available_cores", lambda cores=cores: cores)
        assert DataSettings().worker_count(card) == expected
        assert DataSettings().worker_count(cpu) == 0, "the towers need the cores"


def test_batches_with_many_regions_are_smaller(tmp_path: Path, tokenizer: Any) -> None:
    """Padded to its largest pair, a batch of 4 holds at most 64 regions; every pair comes once, in order."""
    counts = [1, 2, 40, 1, 1, 1, 70, 3, 16, 16, 16, 16]
    text = "A dog called a"
    records = [
        Record(
            id=str(number),
            image="same.png",
            text=text,
            entities=(entity(text, "dog", *[(0.0, 0.0, 1.0 + 0.5 * i, 9.0) for i in range(count)]),),
        )
        for number, count in enumerate(counts)
    ]
    batches, _ = evaluated(save_manifest(tmp_path, records), tokenizer)
    assert [batch.place.tolist() for batch in batches] == [[0, 1], [2], [3, 4, 5], [6], [7, 8, 9, 10], [11]]
    assert [batch.region_valid.sum(dim=1).tolist() for batch in batches][2:4] == [[1, 1, 1], [70]]
