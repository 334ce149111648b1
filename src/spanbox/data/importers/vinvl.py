"""Detector proposals of VinVL, one `.npz` file an image.

Of its arrays only the boxes, scores and labels are read, never the features. Nothing is unpickled.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from spanbox.data.manifest import ObjectBox, is_inverted
from spanbox.errors import DataError


@dataclass(frozen=True)
class VinvlFile:
    """What one proposal file says."""

    size: tuple[int, int]  # width and height of the image that the detector saw
    proposals: tuple[ObjectBox, ...]  # boxes in pixels of that size
    unusable: list[str]  # proposals that were left out, in words


def read_vinvl(path: Path) -> VinvlFile:
    """Read a proposal file. A proposal without an area, or whose score is not finite, is left out and listed.

    Raises:
        DataError: the file is damaged, lacks an array, or holds one of another shape or one that must be unpickled.
    """
    try:
        # Opened here: of a damaged file np.load would leave its own handle open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            size = int(arrays["image_w"]), int(arrays["image_h"])
            boxes, scores, labels = arrays["bounding_boxes"], arrays["scores"], arrays["objects"]
    except KeyError as error:
        raise DataError(f"{path}: lacks an array ({error}); expected the proposals of VinVL") from None
    except (OSError, ValueError, TypeError, EOFError, MemoryError, BadZipFile, ZlibError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    _check_shapes(path, boxes, scores, labels)
    proposals, unusable = [], []
    for (x0, y0, x1, y1), score, label in zip(_plain(boxes), _plain(scores), labels.tolist(), strict=True):
        if is_inverted((x0, y0, x1, y1)) or not np.isfinite(score):
            unusable.append(f"{label!r}: {[x0, y0, x1, y1]} of score {score} has no area or is not finite")
        else:
            proposals.append(ObjectBox((x0, y0, x1, y1), score, label))
    return VinvlFile(size, tuple(proposals), unusable)


def _check_shapes(
    path: Path, boxes: NDArray[np.generic], scores: NDArray[np.generic], labels: NDArray[np.generic]
) -> None:
    count = len(boxes) if boxes.ndim else 0
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


def _plain(values: NDArray[np.generic]) -> Any:
    """Nested lists of floats, with the few digits that tell a float32 from its neighbours: 0.4166, not 0.41659999."""
    return values.astype(str).astype(np.float64).tolist()
