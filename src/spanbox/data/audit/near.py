"""Near-duplicate images: resized, encoded again, cropped by a few per cent, mirrored.

A perceptual hash of 63 bits finds candidates; a thumbnail decides. The hash is the sign of the lowest frequencies of
the image against their median. It changes when the image is cropped, so the hashes of slightly cropped versions are
kept too. Hashes that differ in at most 7 of 64 bits agree in one of four bands of 16 bits but for one bit, so
candidates come from four sorted lists, and the time grows with the number of images, not with its square. If many
hashes share a band, as those of the frames of a film do, a query is compared with a fixed number of them.

Source of the hash: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1.

    n images    c crops
"""

import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spanbox.files import explained

SIDE = 32  # of a thumbnail, in pixels
WINDOW = 24  # side of the parts of a thumbnail that are compared
LOW = 8  # frequencies along each axis
CROP = 0.05  # of each side, by which the versions that are hashed are cropped
BANDS, BAND_BITS = 4, 16
RADIUS = 7  # bits by which two hashes may differ
NEAREST = 64  # candidates of an image that are compared
SAME = 0.9  # similarity of thumbnails from which two images are near-duplicates; measured, see docs/data.md
FLAT = 2.0  # standard deviation of grey values below which an image shows nothing to compare
MOST_OF_A_KEY = 512  # hashes with one value of a band that a query is compared with
QUERIES_AT_ONCE = 256
_OF_A_BAND = np.uint64((1 << BAND_BITS) - 1 << 64 - BAND_BITS)  # the bits of a band, see `_turned`

Relation = Callable[[int, NDArray[np.int64]], NDArray[Any]]
Hashes = NDArray[np.uint64]
Floats = NDArray[np.float32]


class Fingerprint(NamedTuple):
    """What is kept of an image."""

    hashes: Hashes  # (2 + crops,): of the image, of its mirror image, and of its crops
    thumbnail: NDArray[np.uint8]  # (SIDE, SIDE), grey
    colour: NDArray[np.uint8]  # (3,): mean


class Near(NamedTuple):
    """Two images that are nearly the same."""

    later: int
    earlier: int
    similarity: float
    mirrored: bool


_COSINES = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(LOW)[:, None] / SIDE)  # (LOW, SIDE), of a DCT
_WEIGHTS = np.uint64(1) << np.arange(LOW * LOW - 1, dtype=np.uint64)
_CROPS = tuple((x * CROP, y * CROP) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0))
_MIRROR = np.where(np.arange(LOW) % 2, -1.0, 1.0)  # signs of the frequencies of a mirrored image


def fingerprint(image: Image.Image) -> Fingerprint | None:
    """The fingerprint of an RGB image; None for one that is the same everywhere."""
    small = image.resize((4 * SIDE, 4 * SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    grey = small.convert("L")
    thumbnail = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    if thumbnail.std() < FLAT:
        return None
    side, kept = 4.0 * SIDE, 4.0 * SIDE * (1 - CROP)
    boxes = [(x * side, y * side, x * side + kept, y * side + kept) for x, y in _CROPS]
    crops = [np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)) for box in boxes]
    frequencies = _COSINES @ np.stack([thumbnail, *crops]).astype(np.float64) @ _COSINES.T
    frequencies = np.concatenate([frequencies[:1], frequencies[:1] * _MIRROR, frequencies[1:]])
    values = frequencies.reshape(len(frequencies), -1)[:, 1:]
    bits = values > np.median(values, axis=1, keepdims=True)
    hashes = (bits * _WEIGHTS).sum(axis=1, dtype=np.uint64)
    return Fingerprint(hashes, thumbnail, np.asarray(small).mean(axis=(0, 1)).astype(np.uint8))


class Fingerprints:
    """The fingerprints of many images, of which the thumbnails lie in a temporary file."""

    def __init__(self) -> None:
        self._hashes: list[Hashes] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, found: Fingerprint) -> None:
        """Raises OutputError when the temporary folder is full."""
        self._hashes.append(found.hashes)
        with explained(Path(tempfile.gettempdir())):
            self._file.write(found.thumbnail.tobytes() + found.colour.tobytes())

    def near_duplicates(self, relation: Relation = lambda image, others: np.zeros(len(others))) -> Iterator[Near]:
        """For each image the most similar earlier one that it nearly equals, if there is one.

        Args:
            relation: of an image to others, as numbers; the most similar one of each relation is given.
        """
        if len(self) < 2:
            return
        self._file.flush()
        stored = np.memmap(self._file, dtype=np.uint8, mode="r").reshape(len(self), -1)
        hashes = np.stack(self._hashes)
        found: dict[tuple[int, int], Near] = {}
        for mirrored in (False, True):
            for image, others in _candidates(hashes, mirrored=mirrored):
                similarity = _similarity(stored[image], stored[others], mirrored=mirrored)
                related = relation(image, others)
                for place in np.flatnonzero(similarity >= SAME).tolist():
                    earlier, later = sorted((image, int(others[place])))
                    key, value = (later, int(related[place])), float(similarity[place])
                    if key not in found or value > found[key].similarity:
                        found[key] = Near(later, earlier, value, mirrored)
        yield from (found[key] for key in sorted(found))


def _candidates(hashes: Hashes, *, mirrored: bool) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each image the others whose hash (or mirrored hash) is near its own or that of one of its crops."""
    indexed = np.delete(hashes, 1, axis=1)  # (n, 1 + c): without the mirror images
    index = _BandIndex(indexed.ravel())
    pairs = []
    for start in range(0, len(hashes), QUERIES_AT_ONCE):
        queries = hashes[start : start + QUERIES_AT_ONCE, int(mirrored)]
        query, place, distance = index.within_radius(queries)
        query, image = query + start, place // indexed.shape[1]
        order = np.lexsort((image, distance, query))
        order = order[query[order] != image[order]]
        numbered = query[order] * len(hashes) + image[order]  # a pair as one number
        _, once = np.unique(numbered, return_index=True)
        order = order[np.sort(once)]  # the nearest first, of these the earliest
        kept = np.column_stack([query[order], image[order]])
        first = np.searchsorted(kept[:, 0], kept[:, 0])
        pairs.append(kept[np.arange(len(kept)) - first < NEAREST])
    found = np.concatenate(pairs)
    found = found[np.argsort(found[:, 1], kind="stable")]
    starts = np.flatnonzero(np.r_[True, found[1:, 1] != found[:-1, 1]]) if len(found) else np.zeros(0, dtype=np.int64)
    for group in np.split(found, starts[1:]) if len(found) else ():
        yield int(group[0, 1]), group[:, 0]


class _BandIndex:
    """Hashes sorted by each of their bands, and by the bits that follow it."""

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = hashes
        turned = [_turned(hashes, band) for band in range(BANDS)]
        self._order = [np.argsort(values, kind="stable") for values in turned]
        self._sorted = [values[order] for values, order in zip(turned, self._order, strict=True)]

    def within_radius(self, queries: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """Query, place of the hash and number of different bits, of those that differ in at most RADIUS bits.

        Of more than `MOST_OF_A_KEY` hashes that share a band with the query, those that are sorted next to it.
        """
        parts = []
        for band in range(BANDS):
            own = _turned(queries, band)
            for probe in (0, *(1 << bit for bit in range(64 - BAND_BITS, 64))):
                wanted = own ^ np.uint64(probe)
                low, high = wanted & _OF_A_BAND, wanted | ~_OF_A_BAND
                first = np.searchsorted(self._sorted[band], low, side="left")
                end = np.searchsorted(self._sorted[band], high, side="right")
                count = np.minimum(end - first, MOST_OF_A_KEY)
                middle = np.searchsorted(self._sorted[band], wanted)
                first = np.clip(middle - MOST_OF_A_KEY // 2, first, end - count)
                query = np.repeat(np.arange(len(own)), count)
                offset = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
                place = self._order[band][first[query] + offset]
                distance = np.bitwise_count(queries[query] ^ self._hashes[place])
                near = distance <= RADIUS
                parts.append((query[near], place[near], distance[near]))
        query, place, distance = (np.concatenate(part) for part in zip(*parts, strict=True))
        return query, place, distance


def _turned(hashes: Hashes, band: int) -> Hashes:
    """The hashes with a band as their highest bits, and the others behind it."""
    above = 64 - BAND_BITS * (band + 1)  # bits
    return hashes << np.uint64(above) | hashes >> np.uint64(64 - above) if above else hashes


def _similarity(query: NDArray[np.uint8], others: NDArray[np.uint8], *, mirrored: bool) -> Floats:
    """Similarity (n,) of an image, cropped in several ways, to others as they are.

    The correlation of the gradients of the thumbnails, less the difference of the mean colours in units of 100.
    """
    grey = query[:-3].reshape(SIDE, SIDE).astype(np.float32)
    turned: Floats = grey[:, ::-1] if mirrored else grey
    windows: Floats = np.matmul(np.matmul(_WINDOWS_Y, turned), _WINDOWS_X.transpose(0, 2, 1), dtype=np.float32)
    cropped = _gradients(windows)
    thumbnails = others[:, :-3].reshape(-1, SIDE, SIDE).astype(np.float32)
    whole = _gradients(_WINDOWS_Y[0] @ thumbnails @ _WINDOWS_X[0].T)
    colour = np.abs(others[:, -3:].astype(np.float32) - query[-3:].astype(np.float32)).max(axis=1)
    best: Floats = (whole @ cropped.T).max(axis=1) - colour / 100
    return best


def _window(start: float, cropped: float) -> Floats:
    """Weights (WINDOW, SIDE) that take a part of the pixels along an axis: bilinear."""
    places = ((start + (np.arange(WINDOW) + 0.5) / WINDOW * (1 - cropped)) * SIDE - 0.5).clip(0, SIDE - 1)
    left = np.minimum(places.astype(int), SIDE - 2)
    weights = np.zeros((WINDOW, SIDE), dtype=np.float32)
    weights[np.arange(WINDOW), left] = 1 - (places - left)
    weights[np.arange(WINDOW), left + 1] = places - left
    return weights


_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_WINDOWS = [(0.0, 0.0, 0.0)] + [(x * c, y * c, c) for c in (0.025, 0.05, 0.075) for x in _STEPS for y in _STEPS]
_WINDOWS_X = np.stack([_window(x, c) for x, _, c in _WINDOWS])
_WINDOWS_Y = np.stack([_window(y, c) for _, y, c in _WINDOWS])


def _gradients(images: Floats) -> Floats:
    """Differences of neighbouring pixels of images (n, h, w) as unit vectors (n, d)."""
    across = np.diff(images, axis=2)[:, :-1].reshape(len(images), -1)
    down = np.diff(images, axis=1)[:, :, :-1].reshape(len(images), -1)
    both = np.concatenate([across, down], axis=1)
    unit: Floats = both / np.sqrt((both * both).sum(axis=1, keepdims=True) + 1e-6)
    return unit
