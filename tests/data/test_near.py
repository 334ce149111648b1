"""Near-duplicate images: resized, encoded again, cropped or mirrored copies are found, other images are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from spanbox.data.audit import audit
from spanbox.data.audit import near as near_module
from spanbox.data.audit.near import BAND_BITS, BANDS, MOST_OF_A_KEY, RADIUS, Fingerprints, _BandIndex, fingerprint
from spanbox.data.manifest import Record, write_manifest


def picture(seed: int, side: int = 160) -> Image.Image:
    """A scene of shapes, unlike any other of another seed."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side * 3 // 4), tuple(generator.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for number in range(14):
        x, y = generator.uniform(-0.1, 0.9, 2) * image.size
        width, height = generator.uniform(0.08, 0.5, 2) * image.size
        colour = tuple(generator.integers(0, 256, 3).tolist())
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape((x, y, x + width, y + height), fill=colour)
    return image


def encoded_again(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((0, round(0.02 * image.height), round(0.95 * image.width), round(0.97 * image.height)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized": lambda image: image.resize((image.width // 2, image.height // 2)),
    "encoded again": encoded_again,
    "cropped": cropped,
    "mirrored": ImageOps.mirror,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_are_found_and_nothing_else(change: Callable[[Image.Image], Image.Image]) -> None:
    images = [picture(seed) for seed in range(60)]
    fingerprints = Fingerprints()
    for image in (*images, *map(change, images[:20])):
        found = fingerprint(image)
        assert found is not None
        fingerprints.add(found)
    near = list(fingerprints.near_duplicates())
    right = [duplicate for duplicate in near if duplicate.later == 60 + duplicate.earlier]
    assert len(right) >= 18
    assert len(near) == len(right)
    assert all(duplicate.mirrored == (change is ImageOps.mirror) for duplicate in right)


def test_the_index_finds_all_hashes_within_the_radius() -> None:
    """Against a comparison of every query with every hash."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**63, 300, dtype=np.uint64)
    queries = hashes[:100].copy()
    for row in range(100):
        for bit in generator.permutation(63)[: row % 12].tolist():
            queries[row] ^= np.uint64(1 << bit)
    query, place, distance = _BandIndex(hashes).within_radius(queries)
    expected = {
        (row, column): bits
        for row in range(100)
        for column in range(300)
        if (bits := int(queries[row] ^ hashes[column]).bit_count()) <= RADIUS
    }
    found = dict(zip(zip(query.tolist(), place.tolist(), strict=True), distance.tolist(), strict=True))
    assert found == expected
    assert len(expected) > 60


def test_of_many_hashes_that_share_a_band_a_query_meets_a_fixed_number() -> None:
    """As of the frames of a film: otherwise memory and time would grow with the square of their number."""
    hashes = np.full(8000, 0x1234_5678_9ABC_DEF0, dtype=np.uint64)
    hashes ^= np.uint64(1) << np.random.default_rng(0).integers(0, 63, len(hashes)).astype(np.uint64)
    query, place, distance = _BandIndex(hashes).within_radius(hashes[:20])
    assert np.bincount(query, minlength=20).max() <= BANDS * (BAND_BITS + 1) * MOST_OF_A_KEY < 20 * len(hashes)
    for row in range(20):  # the nearest ones are met
        assert distance[(query == row) & (place != row)].min() == 0


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (9, 9), "red"), Image.new("RGB", (1, 1)), Image.new("RGB", (1, 900))]
)
def test_an_image_without_content_has_no_fingerprint(image: Image.Image) -> None:
    assert fingerprint(image) is None


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_have_no_duplicates(count: int) -> None:
    fingerprints = Fingerprints()
    for seed in range(count):
        found = fingerprint(picture(seed))
        assert found is not None
        fingerprints.add(found)
    assert list(fingerprints.near_duplicates()) == []


@pytest.mark.slow
def test_many_copies_of_one_picture_stay_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is compared with the nearest ones alone."""
    compared: list[int] = []
    plain = near_module._similarity
    monkeypatch.setattr(
        near_module,
        "_similarity",
        lambda query, others, **kind: (compared.append(len(others)), plain(query, others, **kind))[1],
    )
    fingerprints = Fingerprints()
    found = fingerprint(picture(0))
    assert found is not None
    for _ in range(300):
        fingerprints.add(found)
    assert len(list(fingerprints.near_duplicates())) == 299
    assert sum(compared) <= 2 * 300 * near_module.NEAREST


def test_a_copy_in_its_own_manifest_hides_none_in_another(tmp_path: Path) -> None:
    """As of frames of a film that lie in two splits: the nearest one is mostly of the same split."""
    scene = picture(0)
    for number, side in enumerate((160, 100, 99, 98, 97)):
        scene.resize((side, side * 3 // 4)).save(tmp_path / f"{number}.png")
    train, *test = (Record(str(number), f"{number}.png", str(number)) for number in range(5))
    write_manifest(tmp_path / "train.jsonl", [train])
    write_manifest(tmp_path / "test.jsonl", test)
    report = audit([tmp_path / "train.jsonl", tmp_path / "test.jsonl"])
    assert report.findings["near-duplicate image in two manifests"].count == 4
    assert report.findings["near-duplicate images"].count == 3


def test_the_audit_names_them_across_and_within_manifests(tmp_path: Path) -> None:
    for seed in range(3):
        picture(seed).save(tmp_path / f"{seed}.png")
    encoded_again(picture(0)).save(tmp_path / "again.png")
    cropped(picture(1)).save(tmp_path / "cropped.png")
    ImageOps.mirror(picture(2)).save(tmp_path / "own.png")
    train = [Record(name, f"{name}.png", name) for name in ("0", "1", "2", "cropped")]
    train.append(Record("own", "own.png", "own", group="2.png"))  # declared as the same image
    write_manifest(tmp_path / "train.jsonl", train)
    write_manifest(tmp_path / "test.jsonl", [Record("again", "again.png", "again")])
    report = audit([tmp_path / "train.jsonl", tmp_path / "test.jsonl"])
    places = {kind: [(e.line, e.detail) for e in finding.examples] for kind, finding in report.findings.items()}
    ((line, detail),) = places["near-duplicate image in two manifests"]
    assert (line, detail.partition(",")[0]) == (1, f"as in {tmp_path / 'train.jsonl'}:1")
    ((line, detail),) = places["near-duplicate images"]
    assert (line, detail.partition(",")[0]) == (4, "as in line 2")
    assert list(audit([tmp_path / "train.jsonl"], decode=False).findings) == ["different images in one group"]
