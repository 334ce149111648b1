"""The page of samples: everything is on it, text is escaped, and it needs nothing else."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import miniature
from encoders import make_sample
from spanbox.data.contact_sheet import contact_sheet
from spanbox.data.manifest import Entity, Record, write_manifest
from spanbox.data.masking import STRATEGIES, MaskSettings
from spanbox.errors import DataError
from spanbox.structures import Sample
from spanbox.wiring.showing import COPIES, show_samples

GRID = 4


def named(text: str, *names: str) -> Sample:
    """A sample whose text has these spans, the first one shown by a box."""
    spans = tuple((text.index(name), text.index(name) + len(name)) for name in names)
    sample = make_sample(0, spans=1, regions=1)
    shown = torch.zeros(len(names), 1, dtype=torch.bool)
    shown[:1] = True
    ids = tuple(range(len(names)))
    return replace(sample, id=text, text=text, spans=spans, span_texts=names, identities=ids, links=shown)


def test_every_kind_of_view_is_there() -> None:
    page = contact_sheet([make_sample(0), make_sample(1)], "pairs", MaskSettings(), GRID)
    for strategy in STRATEGIES:
        assert page.count(f"<b>{strategy}") == 2
    assert page.count("<img") == 2 * (1 + len(STRATEGIES))


def test_without_views_there_are_images_alone() -> None:
    assert contact_sheet([make_sample(0)], "pairs", None, GRID).count("<img") == 1


def test_spans_are_marked_in_english_and_chinese() -> None:
    page = contact_sheet(
        [named("a red kite and an otter", "red kite", "otter"), named("红色的风筝", "风筝")], "", None, GRID
    )
    marks = re.findall(r"<mark( class=\"absent\")?[^>]*>([^<]*)</mark>", page)
    assert marks == [("", "red kite"), (' class="absent"', "otter"), ("", "风筝")]


def test_text_is_escaped() -> None:
    attack = "<script>alert(1)</script>"
    page = contact_sheet([named(f'see {attack} "x"', attack)], attack, MaskSettings(), GRID)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_overlapping_spans_are_marked_once() -> None:
    page = contact_sheet([named("the red kite", "red kite", "kite")], "", None, GRID)
    assert re.findall(r"<mark[^>]*>([^<]*)</mark>", page) == ["red kite"]


def test_nothing_is_fetched() -> None:
    page = contact_sheet([make_sample(0)], "pairs", MaskSettings(fill="mean"), GRID)
    assert set(re.findall(r'src="([a-z]+:)', page)) == {"data:"}
    assert "http" not in page
    assert "<link" not in page


@pytest.mark.parametrize(("spans", "regions"), [(0, 0), (1, 0), (0, 2)])
def test_samples_without_spans_or_boxes(spans: int, regions: int) -> None:
    assert "<article>" in contact_sheet([make_sample(0, spans, regions)], "", MaskSettings(), GRID)


def test_no_sample() -> None:
    assert "<article>" not in contact_sheet([], "", None, GRID)


@pytest.mark.slow
def test_of_a_manifest(tmp_path: Path) -> None:
    data = miniature.write_scenes(tmp_path / "scenes", languages=("en", "zh"))
    out = tmp_path / "pages" / "views.html"
    shown = show_samples(
        data / "train.jsonl",
        out,
        n=100,
        with_views=True,
        with_augmented=False,
        size=48,
        patch=16,
        overrides=["data.views.ratio=0.75"],
    )
    assert shown == 32
    assert out.read_text(encoding="utf-8").count("<article>") == 32


@pytest.mark.slow
def test_augmented_samples_stand_beside_their_original(tmp_path: Path) -> None:
    """With their moved boxes, and the words that were changed."""
    data = miniature.write_scenes(tmp_path / "scenes", languages=("en", "zh"))
    out = tmp_path / "augmented.html"
    settings = ["data.augment.image.preset=strong", "data.augment.text.synonyms=1.0"]
    show_samples(
        data / "train.jsonl", out, n=3, with_views=False, with_augmented=True, size=48, patch=16, overrides=settings
    )
    page = out.read_text(encoding="utf-8")
    assert page.count("<article>") == 3
    assert page.count('alt="augmented image of') == 3 * COPIES
    assert len(set(re.findall(r'src="(data:[^"]+)"', page))) > 2 * COPIES
    assert "<del>" in page


@pytest.mark.slow
def test_the_standard_changes_are_shown_if_none_are_set(tmp_path: Path) -> None:
    data = miniature.write_scenes(tmp_path / "scenes")
    out = tmp_path / "augmented.html"
    show_samples(data / "train.jsonl", out, n=1, with_views=False, with_augmented=True, size=48, patch=16, overrides=[])
    assert len(set(re.findall(r'src="(data:[^"]+)"', out.read_text(encoding="utf-8")))) >= COPIES


def test_padded_images_are_shown_as_the_model_gets_them(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 40), "red")
    image.save(tmp_path / "x.png")
    write_manifest(tmp_path / "pairs.jsonl", [Record(id="x", image="x.png", text="a red field")])
    out = tmp_path / "page.html"
    show_samples(
        *(tmp_path / "pairs.jsonl", out),
        n=1,
        with_views=True,
        with_augmented=True,
        size=64,
        patch=16,
        overrides=["data.aspect=pad", "data.augment.image.flip=1.0", "data.views.ratio=0.5"],
    )
    page = out.read_text(encoding="utf-8")
    assert "50% hidden" in page  # of the picture, which is half of the square
    first = Image.open(io.BytesIO(base64.b64decode(re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)[0])))
    assert first.getpixel((32, 10))[0] > 240
    assert first.getpixel((32, 50)) == (128, 128, 128)


def test_changed_words_are_escaped() -> None:
    sample = replace(make_sample(0), text_changes=(("<b>", "&"),))
    page = contact_sheet([make_sample(0)], "", None, GRID, augmented=[[sample]])
    assert "<del>&lt;b&gt;</del> <ins>&amp;</ins>" in page


def test_a_page_of_data_with_boxes_without_an_area_can_be_made(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40), "red").save(tmp_path / "x.png")
    flat = Entity(0, 1, boxes=((5.0, 5.0, 5.0, 9.0),))
    write_manifest(tmp_path / "flat.jsonl", [Record(id="x", image="x.png", text="一 field", entities=(flat,))])

    def show(*overrides: str) -> int:
        return show_samples(
            *(tmp_path / "flat.jsonl", tmp_path / "x.html"),
            n=1,
            with_views=True,
            with_augmented=True,
            size=48,
            patch=16,
            overrides=overrides,
        )

    with pytest.raises(DataError, match=r"set data\.inverted_boxes=drop"):
        show()
    assert show("data.inverted_boxes=drop") == 1
