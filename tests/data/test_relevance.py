"""The relevance of pairs and boxes, from the manifest to the losses: read, checked, carried, and exact in chunks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders import accumulate, in_one_graph, make_model, make_sample
from encoders import collate as batch_of
from pairs import entity, save_manifest
from spanbox.data.collate import Collator
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest, Record, encode_record
from spanbox.data.tokenizer import train_tokenizer
from spanbox.errors import DataError
from spanbox.losses.objective import LossSettings, Objective
from spanbox.structures import Batch, Sample

TEXT = "a red cat and 一只狗"
CAT, DOG = (2.0, 2.0, 10.0, 10.0), (20.0, 2.0, 38.0, 18.0)


def batch_from(folder: Path, *records: Record, **limits: Any) -> Batch:
    dataset = PairDataset(save_manifest(folder, records), SampleLimits(8, **limits), seed=0, replace_broken=False)
    samples = [item for item in (dataset[0, index] for index in range(len(records))) if isinstance(item, Sample)]
    return Collator(train_tokenizer([TEXT] * 3, 100), 32)(samples).batch


def with_boxes(name: str, *boxes: tuple[float, float, float, float], relevance: tuple[float, ...] = ()) -> Any:
    found = entity(TEXT, name, *boxes)
    return type(found)(found.start, found.end, boxes=boxes, relevance=relevance)


def test_relevance_source_and_meta_travel(tmp_path: Path) -> None:
    entities = (with_boxes("red cat", CAT, DOG, relevance=(1.0, 0.25)),)
    meta = {"url": "https://example.org/1", "numbers": [1, 2.5, None], "猫": {"deep": True}}
    record = Record("a", "a.png", TEXT, entities=entities, relevance=0.5, source="coco", meta=meta)
    assert save_manifest(tmp_path, [record])[0] == record
    assert json.loads(encode_record(record))["meta"] == meta


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relevance": 1.5}, "relevance: 1.5 is not within 0 and 1"),
        ({"relevance": -0.1}, "relevance: -0.1 is not within 0 and 1"),
        ({"relevance": "1"}, "Expected `float`, got `str`"),
        ({"meta": [1]}, "Expected `object`, got `array`"),
        (
            {"entities": [{"start": 0, "end": 5, "boxes": [[0, 0, 1, 1]], "relevance": [0.1, 0.2]}]},
            r"entities\[0\].relevance: 2 numbers for 1 boxes; give one per box, or none",
        ),
        (
            {"entities": [{"start": 0, "end": 5, "boxes": [[0, 0, 1, 1]], "relevance": [2]}]},
            r"entities\[0\].relevance: \[2.0\] are not within 0 and 1",
        ),
    ],
)
def test_a_wrong_relevance_is_an_error_with_its_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "a", "image": "a.png", "text": "a red cat"} | fields))
    with pytest.raises(DataError, match=f"m.jsonl, line 1: .*{message}"):
        Manifest(path)


@pytest.mark.parametrize("relevance", [1.0, 0.5])
def test_a_manifest_knows_whether_it_has_relevance_also_from_its_index(tmp_path: Path, relevance: float) -> None:
    record = Record("a", "a.png", TEXT, entities=(with_boxes("red cat", CAT, relevance=(relevance,)),))
    assert save_manifest(tmp_path, [record, record]).has_relevance == (relevance < 1)
    assert Manifest(tmp_path / "pairs.jsonl").has_relevance == (relevance < 1)


def test_a_dropped_box_takes_its_relevance_along(tmp_path: Path) -> None:
    entities = (with_boxes("red cat", CAT, (5.0, 5.0, 5.0, 9.0), DOG, relevance=(0.1, 0.2, 0.3)),)
    (tmp_path / "m.jsonl").write_bytes(encode_record(Record("a", "a.png", TEXT, entities=entities)))
    (found,) = Manifest(tmp_path / "m.jsonl", "drop")[0].entities
    assert (found.boxes, found.relevance) == ((CAT, DOG), (0.1, 0.3))


def test_it_reaches_the_batch(tmp_path: Path) -> None:
    """The weaker of two spans of one box does not weaken the other; of equal boxes of a span the strongest counts."""
    batch = batch_from(
        tmp_path,
        Record(
            "a",
            "a.png",
            TEXT,
            entities=(with_boxes("red cat", CAT, DOG, CAT, relevance=(0.25, 0.5, 0.75)), with_boxes("狗", DOG)),
            relevance=0.5,
        ),
        Record("b", "b.png", TEXT, entities=(with_boxes("狗"),)),
    )
    assert batch.relevance is not None
    assert batch.link_relevance is not None
    assert batch.relevance.tolist() == [0.5, 1.0]
    assert batch.link_relevance.tolist() == [[[0.75, 0.5], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert torch.equal(batch.links, batch.link_relevance > 0)


def test_boxes_over_the_limit_take_their_relevance_along(tmp_path: Path) -> None:
    entities = (with_boxes("red cat", CAT, DOG, relevance=(0.25, 0.5)), with_boxes("狗", DOG, relevance=(0.75,)))
    batch = batch_from(tmp_path, Record("a", "a.png", TEXT, entities=entities), max_regions=1, max_spans=1)
    assert batch.link_relevance is not None
    assert batch.link_relevance.tolist() == [[[0.25]]]


@pytest.mark.parametrize("given", [(), (1.0,)])
def test_without_any_below_1_the_batch_is_as_before(tmp_path: Path, given: tuple[float, ...]) -> None:
    batch = batch_from(tmp_path, Record("a", "a.png", TEXT, entities=(with_boxes("red cat", CAT, relevance=given),)))
    assert batch.relevance is None
    assert batch.link_relevance is None


def weighted(number: int) -> Sample:
    """A sample whose links have different relevance, some of them 0."""
    sample = make_sample(number, spans=number % 4, regions=(number + 1) % 4)
    strength = torch.rand(sample.links.shape, generator=torch.Generator().manual_seed(number)).round(decimals=1)
    return replace(sample, relevance=(number % 5) / 4, link_relevance=strength * sample.links)


def gradients(batch: Batch, step: Any, **sizes: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model, objective = make_model().double(), Objective(LossSettings()).double()
    losses = step(model, objective, batch, **sizes)
    return [losses.total.detach(), *(p.grad for p in (*model.parameters(), *objective.parameters()) if p.requires_grad)]


@pytest.mark.slow
def test_in_chunks_it_is_exact() -> None:
    batch = batch_of(*map(weighted, range(13)))
    expected = gradients(batch, in_one_graph, text=13, image=13)
    found = gradients(batch, accumulate, text=3, image=4)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12 * (1 + float(theirs.abs().max())))
    plain = replace(batch, relevance=None, link_relevance=None)
    assert not torch.equal(found[0], gradients(plain, accumulate)[0])  # it does have an effect


def test_1_everywhere_is_bit_for_bit_training_without_it() -> None:
    plain = batch_of(*(make_sample(number, spans=number % 4, regions=(number + 1) % 4) for number in range(13)))
    ones = replace(plain, relevance=torch.ones(13), link_relevance=plain.links.float())
    for ours, theirs in zip(gradients(ones, accumulate), gradients(plain, accumulate), strict=True):
        assert torch.equal(ours, theirs)
