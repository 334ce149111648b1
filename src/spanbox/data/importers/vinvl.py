"""Detector proposals of VinVL, one `.npz` file per image.

Only the boxes, scores, labels and the image size are read, never the features. The files come from strangers: nothing
is unpickled, and the sizes in the zip directory and in the header of each array are checked before anything is
allocated.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile
from zlib import error as ZlibError

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from spanbox.data.importers import read_file
from spanbox.data.manifest import ObjectBox, is_inverted
from spanbox.errors import DataError

MAX_BYTES = 16 * 1024 * 1024  # of the file
MAX_ARRAY_BYTES = 4 * 1024 * 1024  # of each array that is read
MAX_PROPOSALS = 10_000

# NumPy raises SystemError on text that is not Unicode.
_DAMAGED = (
    *(OSError, ValueError, TypeError, EOFError, MemoryError, OverflowError, RecursionError, SyntaxError),
    *(RuntimeError, NotImplementedError, SystemError, BadZipFile, ZlibError, TokenError),
)


@dataclass(frozen=True)
class VinvlFile:
    """The content of one proposal file."""

    size: tuple[int, int]  # width and height of the image that the detector saw
    proposals: tuple[ObjectBox, ...]  # boxes in pixels of that size
    unusable: list[str]  # proposals that were left out, in words


def read_vinvl(path: Path) -> VinvlFile:
    """Read a proposal file. A proposal without an area, or whose score is not finite, is left out and listed.

    Raises:
        DataError: the file is damaged or too large, lacks an array, or holds one of another type or shape.
    """
    content = read_file(path, MAX_BYTES)
    try:
        with ZipFile(BytesIO(content)) as archive:
            size = int(_read(archive, "image_w").item()), int(_read(archive, "image_h").item())
            boxes, scores, labels = (_read(archive, name) for name in ("bounding_boxes", "scores", "objects"))
            names = labels.tolist()
    except KeyError as error:
        raise DataError(f"{path}: lacks an array ({error}); expected the proposals of VinVL") from None
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    _check_shapes(path, boxes, scores, labels)
    proposals, unusable = [], []
    for (x0, y0, x1, y1), score, label in zip(_plain(boxes), _plain(scores), names, strict=True):
        if is_inverted((x0, y0, x1, y1)) or not np.isfinite(score):
            unusable.append(f"{label!r}: {[x0, y0, x1, y1]} of score {score} has no area or is not finite")
        else:
            proposals.append(ObjectBox((x0, y0, x1, y1), score, _printable(label)))
    return VinvlFile(size, tuple(proposals), unusable)


def _read(archive: ZipFile, name: str) -> NDArray[Any]:
    """One array of an `.npz` file, a view of its bytes."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # others may take any amount of memory
        raise ValueError(f"{name} is compressed in an unusual way")
    if info.file_size > MAX_ARRAY_BYTES:
        raise ValueError(f"{name} has {info.file_size} bytes; at most {MAX_ARRAY_BYTES >> 20} MiB are read")
    with archive.open(info) as member:
        content = member.read(MAX_ARRAY_BYTES)  # limited here, too: the directory may be wrong
    file = BytesIO(content)
    if npy.read_magic(file) != (1, 0):  # later ones are for headers that no array here needs
        raise ValueError(f"{name} is of an unusual version of the format")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError(f"{name} would have to be unpickled")
    rest = len(content) - file.tell()
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"{name} has {rest} bytes, not those of shape {shape} of {dtype}")
    flat = np.frombuffer(content, dtype=dtype, offset=file.tell()) if rest else np.zeros(0, dtype=dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _check_shapes(path: Path, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> None:
    count = len(boxes) if boxes.ndim else 0
    if count > MAX_PROPOSALS:
        raise DataError(f"{path}: has {count} proposals; at most {MAX_PROPOSALS} are read of an image")
    expected = {
        "bounding_boxes": (boxes, (count, 4), "f"),
        "scores": (scores, (count,), "f"),
        "objects": (labels, (count,), "U"),
    }
    for name, (array, shape, kind) in expected.items():
        if array.shape != shape or array.dtype.kind != kind:
            raise DataError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; expected {shape} of "
                f"{'text' if kind == 'U' else 'floats'}"
            )


def _plain(values: NDArray[Any]) -> Any:
    """Nested lists of floats with the fewest digits that identify a float32: 0.4166, not 0.41659999."""
    return values.astype(str).astype(np.float64).tolist()


def _printable(label: str) -> str:
    """The label without lone surrogates, which UTF-8 cannot hold."""
    return label.encode(errors="replace").decode()
