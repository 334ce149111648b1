"""Dual encoders with every source of spans and regions, and batches with and without equal texts."""

from dataclasses import replace

import pytest
import torch

from encoders import collate, make_model, make_sample
from spanbox.models.dual_encoder import DualEncoder, RegionSettings, SpanSettings
from spanbox.structures import Batch, Features, Sample

SPANS = {
    "sentence": SpanSettings(source="sentence"),
    "sentence-both": SpanSettings(source="sentence", pool="both"),
    "own": SpanSettings(source="own"),
    "own-max": SpanSettings(source="own", pool="max"),
}
REGIONS = {
    "roi_align": RegionSettings(source="roi_align"),
    "roi_align-both": RegionSettings(source="roi_align", pool="both", output_size=3),
    "crop": RegionSettings(source="crop"),
}
every_source = pytest.mark.parametrize(
    ("spans", "regions"),
    [("sentence", "roi_align"), ("sentence-both", "roi_align-both"), ("own", "crop"), ("own-max", "roi_align")],
)


def encoder(spans: str = "sentence", regions: str = "roi_align") -> DualEncoder:
    return make_model(spans=SPANS[spans], regions=REGIONS[regions]).eval()


@torch.no_grad()
def encode(model: DualEncoder, batch: Batch) -> Features:
    features: Features = model(batch)
    return features


def samples() -> list[Sample]:
    """Different numbers of spans and regions, none among them, and sentences of different lengths."""
    return [
        make_sample(0, 2, 3),
        make_sample(1, 0, 1),
        make_sample(2, 5, 5),
        make_sample(3, 1, 0),
        make_sample(4, 0, 0),
    ]


def repeats() -> Batch:
    """Sentences 0 and 2 are one text, and names of spans recur within a sentence and between sentences."""
    first, second, third = make_sample(0, 3, 2), make_sample(1, 4, 2), make_sample(2, 2, 2)
    again = replace(first, id="again", pixels=second.pixels, span_texts=(first.span_texts[0],) * 3)
    return collate(first, second, again, third)
