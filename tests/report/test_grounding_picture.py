"""The picture of a grounding: boxes and spans in the same colours, in any script and size."""

import pytest
from PIL import Image

from spanbox.report import grounding_picture as module
from spanbox.report.grounding_picture import (
    COLOURS,
    LINE,
    MARGIN,
    NOT_SHOWN,
    Marked,
    _colours,
    _lines,
    grounding_picture,
    undrawn_characters,
)


def colours(picture: Image.Image) -> set[str]:
    counts = picture.getcolors(maxcolors=10**7)
    assert counts is not None
    return {f"#{red:02x}{green:02x}{blue:02x}" for count, (red, green, blue) in counts if count > 20}


def test_a_span_and_its_box_have_one_colour() -> None:
    text = "a red kite，还有蝴蝶 and nothing"
    spans = [Marked(2, 10, (10, 10, 60, 60), 0.9), Marked(13, 15, (70, 20, 120, 90), 0.5), Marked(20, 27, None, 0.1)]
    picture = grounding_picture(Image.new("RGB", (600, 300), "white"), text, spans)
    assert {COLOURS[0], COLOURS[1], NOT_SHOWN} <= colours(picture)
    assert COLOURS[2] not in colours(picture)  # of the span without a box
    image, words = picture.crop((0, 0, 600, 300)), picture.crop((0, 300, 600, picture.height))
    assert NOT_SHOWN not in colours(image)
    assert {COLOURS[0], COLOURS[1], NOT_SHOWN} <= colours(words)


def test_spans_with_the_same_box_have_one_colour() -> None:
    spans = [
        Marked(0, 6, (10, 10, 60, 60), 0.9),
        Marked(11, 17, (70, 20, 120, 90), 0.5),
        Marked(22, 28, (10, 10, 60, 60), 0.8),
    ]
    picture = grounding_picture(Image.new("RGB", (600, 300), "white"), "a kite and a boat, the kite", spans)
    for part in (picture.crop((0, 0, 600, 300)), picture.crop((0, 300, 600, picture.height))):
        assert colours(part) & set(COLOURS) == {COLOURS[0], COLOURS[1]}


def test_each_of_many_boxes_has_a_colour_of_its_own() -> None:
    spans = [Marked(place, place + 1, (place, 0, place + 1, 9), None) for place in range(100)]
    found = _colours(spans)
    assert found[: len(COLOURS)] == list(COLOURS)
    assert len({*found, NOT_SHOWN}) == 101


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (4000, 30), (480, 480)])
@pytest.mark.parametrize("text", ["", "a", "word " * 80, "字" * 300, "x" * 500, "emoji 🦋 and \x00"])
def test_any_size_and_text(size: tuple[int, int], text: str) -> None:
    spans = [Marked(0, len(text), (0, 0, *size), 0.5)] if text else []
    picture = grounding_picture(Image.new("RGB", size), text, spans)
    assert 480 <= picture.width <= 1000
    assert (picture.height - 2 * MARGIN) % LINE >= 0


@pytest.mark.parametrize("box", [(10, 10, 11, 11), (10, 10, 300, 10.5), (3999, 2999, 4000, 3000)])
def test_a_box_of_a_few_pixels_of_a_large_image_has_a_frame(box: tuple[float, float, float, float]) -> None:
    picture = grounding_picture(Image.new("RGB", (4000, 3000)), "a dog", [Marked(0, 5, box, None)])
    blue = tuple(bytes.fromhex(COLOURS[0][1:]))
    assert blue in {pixel for _, pixel in picture.crop((0, 0, 1000, 750)).getcolors() or ()}


def test_the_score_of_a_box_at_the_right_edge_is_whole() -> None:
    def area_of_label(x: int) -> int:
        picture = grounding_picture(Image.new("RGB", (600, 300)), "", [Marked(0, 0, (x, 200, x + 10, 290), 0.83)])
        above = picture.crop((0, 160, 600, 198))
        return sum(count for count, pixel in above.getcolors() or () if pixel != (0, 0, 0))

    assert area_of_label(590) == area_of_label(300)


def test_a_tall_narrow_image_is_not_enlarged_beyond_measure() -> None:
    picture = grounding_picture(Image.new("RGB", (20, 6000)), "a dog", [Marked(0, 5, (0, 0, 20, 20), 0.5)])
    assert picture.size == (480, 6000 + LINE + 2 * MARGIN)
    taller = grounding_picture(Image.new("RGB", (100, 500)), "a dog", [])
    assert taller.size == (480, 2000 + LINE + 2 * MARGIN)
    assert grounding_picture(Image.new("RGB", (48, 100)), "a dog", []).size == (480, 1000 + LINE + 2 * MARGIN)


def test_a_box_in_a_strip_has_a_frame() -> None:
    grounding_picture(Image.new("RGB", (20_000, 20)), "a dog", [Marked(0, 5, (0, 0, 20_000, 20), 0.5)])


def test_a_box_larger_than_the_image_ends_with_the_image() -> None:
    image = Image.new("RGB", (600, 300), "white")
    of_image, larger = (
        grounding_picture(image, "a dog", [Marked(0, 5, box, 0.5)]) for box in ((0, 0, 600, 300), (-50, -9, 900, 900))
    )
    assert of_image.tobytes() == larger.tobytes()


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\x1c", "\x85", "\u2028", "\u2029"])
def test_line_ends_and_control_characters_are_drawn_as_spaces(character: str) -> None:
    image, spans = Image.new("RGB", (600, 300)), [Marked(4, 8, (0, 0, 9, 9), 0.5)]
    drawn, with_a_space = (grounding_picture(image, f"a{each}红色kite", spans) for each in (character, " "))
    assert drawn.tobytes() == with_a_space.tobytes()


@pytest.mark.parametrize("text", ["", "a b c", "word " * 40, "字" * 100, "x" * 300])
def test_lines_hold_the_whole_text(text: str) -> None:
    assert "".join(text[start:end] for start, end in _lines(text, 200)) == text
    assert all(end > start for start, end in _lines(text, 200)) or not text


def test_characters_that_no_font_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_draw", str.isascii)
    assert undrawn_characters("a kite 风筝风 👩\u200d👧\ufe0f") == ["风", "筝", "👩", "👧"]
    assert undrawn_characters("") == []
