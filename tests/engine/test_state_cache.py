"""States of a frozen tower come from disk as they were encoded; nothing is encoded twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders import collate, make_model, make_sample, with_views
from spanbox.engine.state_cache import StateCache
from spanbox.errors import DataError, OutputError
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.inputs import Images, Texts


class Counted:
    """Encodes rows and counts them."""

    def __init__(self, encode: Any) -> None:
        self.encode = encode
        self.rows = 0

    def __call__(self, rows: Any) -> Any:
        self.rows += len(rows)
        with torch.no_grad():
            return self.encode(rows)


@pytest.fixture
def model() -> DualEncoder:
    torch.manual_seed(0)
    return make_model().eval()


def texts_and_images(model: DualEncoder, *numbers: int, spans: int = 2) -> tuple[Texts, Images]:
    batch = collate(*(make_sample(number, spans=number % (spans + 1), regions=number % 3) for number in numbers))
    inputs = model.inputs(batch)
    return inputs.texts[0], inputs.images[0]  # type: ignore[return-value]


def assert_equal(found: Any, expected: Any, rows: Any) -> None:
    """To rounding, since the rows of a batch are encoded together; states of regions that are padding are undefined."""
    for (name, one), (_, other) in zip(found.named_tensors(), expected.named_tensors(), strict=True):
        assert one.shape == other.shape
        if name == "regions":
            used = (rows.regions != 0).any(dim=2)
            one, other = one[used], other[used]
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("part", [0, 1], ids=["text", "image"])
class TestRows:
    def counted(self, model: DualEncoder, part: int) -> Counted:
        return Counted((model.encode_text, model.encode_images)[part])

    def test_known_rows_are_read(self, part: int, model: DualEncoder, tmp_path: Path) -> None:
        rows, encode, cache = (
            texts_and_images(model, *range(6))[part],
            self.counted(model, part),
            StateCache(tmp_path, "x"),
        )
        first, second = (cache.encode(encode, rows) for _ in range(2))
        assert encode.rows == 6
        for one, other in zip(first.tensors(), second.tensors(), strict=True):
            assert torch.equal(one, other)

    def test_another_process_finds_them(self, part: int, model: DualEncoder, tmp_path: Path) -> None:
        rows, encode = texts_and_images(model, *range(6))[part], self.counted(model, part)
        first = StateCache(tmp_path, "x").encode(encode, rows)
        assert_equal(StateCache(tmp_path, "x").encode(encode, rows), first, rows)
        assert encode.rows == 7  # one for the shapes

    def test_other_weights_do_not(self, part: int, model: DualEncoder, tmp_path: Path) -> None:
        rows, encode = texts_and_images(model, *range(6))[part], self.counted(model, part)
        for fingerprint in ("x", "y"):
            StateCache(tmp_path, fingerprint).encode(encode, rows)
        assert encode.rows == 12

    def test_some_rows_are_known_in_another_order_and_padding(
        self, part: int, model: DualEncoder, tmp_path: Path
    ) -> None:
        encode, cache = self.counted(model, part), StateCache(tmp_path, "x")
        cache.encode(encode, texts_and_images(model, 3, 1)[part])
        for numbers, spans in [((1, 0, 3, 2), 5), ((0, 3), 2), ((4, 1), 1)]:
            rows = texts_and_images(model, *numbers, spans=spans)[part]
            assert_equal(cache.encode(encode, rows), self.counted(model, part)(rows), rows)

    def test_equal_rows(self, part: int, model: DualEncoder, tmp_path: Path) -> None:
        rows = texts_and_images(model, 1, 2)[part]
        twice = type(rows).cat([rows, rows])
        encode, cache = self.counted(model, part), StateCache(tmp_path, "x")
        for _ in range(2):
            assert_equal(cache.encode(encode, twice), self.counted(model, part)(twice), twice)
        assert encode.rows == 4

    def test_bfloat16(self, part: int, model: DualEncoder, tmp_path: Path) -> None:
        rows, encode, cache = texts_and_images(model, 1, 2)[part], self.counted(model, part), StateCache(tmp_path, "x")
        with torch.autocast("cpu", torch.bfloat16):
            first, second = (cache.encode(encode, rows) for _ in range(2))
        for one, other in zip(first.tensors(), second.tensors(), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)

    def test_no_row(self, part: int, model: DualEncoder, tmp_path: Path) -> None:
        rows = texts_and_images(model, 1)[part]
        assert len(StateCache(tmp_path, "x").encode(self.counted(model, part), rows[:0])) == 0


def test_keys_differ_where_a_row_does(model: DualEncoder) -> None:
    texts, images = texts_and_images(model, *range(8))
    keys = [*texts.keys(), *(images.keys() or [])]
    assert len(set(keys)) == 16
    other_spans = replace(texts, span_tokens=texts.span_tokens.roll(1, 2))
    changed = [a != b for a, b in zip(texts.keys(), other_spans.keys(), strict=True)]
    assert changed == texts.span_tokens.any(dim=(1, 2)).tolist()
    other_regions = replace(images, regions=images.regions + (images.regions != 0) * 0.01)  # type: ignore[operator]
    changed = [a != b for a, b in zip(images.keys() or [], other_regions.keys() or [], strict=True)]
    assert changed == (images.regions != 0).any(dim=(1, 2)).tolist()  # type: ignore[union-attr]


def test_masked_views_are_not_kept(model: DualEncoder, tmp_path: Path) -> None:
    views = model.inputs(with_views(collate(*map(make_sample, range(4))))).images[1][:]
    encode, cache = Counted(model.encode_images), StateCache(tmp_path, "x")
    for _ in range(2):
        cache.encode(encode, views)
    assert encode.rows == 2 * len(views)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file(content: bytes, model: DualEncoder, tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.sqlite: is damaged .*remove it"):
        StateCache(tmp_path, "x").encode(Counted(model.encode_text), texts_and_images(model, 1)[0])


def test_a_damaged_entry(model: DualEncoder, tmp_path: Path) -> None:
    rows, cache = texts_and_images(model, 1)[0], StateCache(tmp_path, "x")
    cache.encode(Counted(model.encode_text), rows)
    cache._file.execute("UPDATE states SET value = ?", (b"\x00" * 50,))
    with pytest.raises(DataError, match="is damaged"):
        cache.encode(Counted(model.encode_text), rows)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        StateCache(tmp_path / "file" / "cache", "x")
