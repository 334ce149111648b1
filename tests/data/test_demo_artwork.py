"""The objects of the demo scenes, and the fonts that may draw them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from spanbox.data import demo_artwork
from spanbox.data.demo import DemoSettings, choose_concepts, draw_scene, write_demo
from spanbox.data.demo_sentences import Language
from spanbox.errors import DataError

BOTH: tuple[Language, ...] = ("en", "zh")


def test_concepts_are_different_and_of_many_kinds() -> None:
    concepts = choose_concepts(DemoSettings(concepts=60))
    assert len(concepts) == 60
    for language in BOTH:
        assert len({concept.names[language] for concept in concepts}) == 60
    kinds = Counter(concept.subgroup for concept in concepts)
    assert set(kinds) == {concept.subgroup for concept in demo_artwork.all_concepts()}
    assert max(kinds.values()) == 2, "one of each kind before a second of any, two before a third"
    assert choose_concepts(DemoSettings(concepts=60, seed=1)) != concepts


@pytest.mark.parametrize("count", [0, 9, 10_000])
def test_a_number_of_concepts_that_cannot_be_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match=rf"the demo needs 10 to \d+ concepts, not {count}"):
        write_demo(tmp_path / "out", {"train": 1}, DemoSettings(concepts=count))
    assert not (tmp_path / "out").exists()


def test_limits_of_the_number_of_concepts_are_accepted() -> None:
    most = len(demo_artwork.all_concepts())
    assert len(choose_concepts(DemoSettings(concepts=10))) == 10
    assert len(choose_concepts(DemoSettings(concepts=most))) == most


def test_a_font_draws_the_same_objects_in_another_style(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the font: each emoji is a disc of its own colour."""

    def disc(text: str, font: str) -> Image.Image:
        canvas = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        colour = (0, 0, 0, 255) if text == demo_artwork.NO_CHARACTER else (ord(text[0]) % 200 + 50, 0, 255, 255)
        ImageDraw.Draw(canvas).ellipse((5, 9, 25, 29), fill=colour)
        return canvas

    monkeypatch.setattr(demo_artwork, "_written", disc)
    plain, other = (draw_scene("test", 3, DemoSettings(art=art)) for art in (None, "some.ttf"))
    assert [entity.identity for entity in plain[1].entities] == [entity.identity for entity in other[1].entities]
    assert not np.array_equal(np.asarray(plain[0]), np.asarray(other[0]))
    for entity in other[1].entities:
        for x0, y0, x1, y1 in entity.boxes:
            centre = other[0].getpixel((int((x0 + x1) / 2), int((y0 + y1) / 2)))
            assert centre[1:] == (0, 255)


def test_what_is_no_font_of_emoji_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match=r"a\.ttf: is not a font with emoji of 109 pixels"):
        draw_scene("test", 0, DemoSettings(art=str(tmp_path / "a.ttf")))
    os.mkfifo(tmp_path / "pipe.ttf")  # whose reader would wait for ever
    with pytest.raises(DataError, match=r"pipe\.ttf: is not a font"):
        demo_artwork._written("🐈", str(tmp_path / "pipe.ttf"))
    with pytest.raises(DataError, match="is not a font"):
        write_demo(tmp_path / "out", {"train": 1}, DemoSettings(art=str(tmp_path / "a.ttf")))
    assert not (tmp_path / "out").exists()


def test_a_font_without_an_emoji_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Image.new("RGBA", (9, 9), (0, 0, 0, 255))
    monkeypatch.setattr(demo_artwork, "_written", lambda text, font: box)
    with pytest.raises(DataError, match="has no picture of"):
        draw_scene("test", 0, DemoSettings(art="other.ttf"))
