"""A query as a feature that is comparable with those of an index."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spanbox.api import Model
from spanbox.data.images import image_size
from spanbox.data.source import exists
from spanbox.errors import DataError
from spanbox.search.embedding import weights_digest
from spanbox.search.index import Index
from spanbox.search.sources import IMAGE_SUFFIXES, LEVELS

LONGEST_PATH = 4096


def encode_query(model: Model, index: Index, query: str) -> NDArray[np.float32]:
    """The feature (D,) of a text, or of an image where the query is the path of a file.

    The query is encoded as the counterpart of the index: for regions a text is a span, for spans an image is a region.

    Raises:
        DataError: the query is empty, its image cannot be read, there is no such image, or the index belongs to another
            model.
    """
    if index.features.shape[1] != model.dim:
        raise DataError(
            f"{index.path}: features of {index.features.shape[1]} dimensions, but {model.checkpoint} has {model.dim}; "
            "search with the model that made the index"
        )
    if index.weights != weights_digest(model):
        raise DataError(
            f"{index.path}: {model.checkpoint} has other weights than the model that made it; search with that one, or "
            "embed again"
        )
    if not query.strip():
        raise DataError("the query is empty; give a text or the path of an image")
    image = query_image(query)
    if image is None and Path(query).suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{query}: no such image; give the path of an image, or a text")
    fine = LEVELS[index.kind] == "fine"
    if image is not None:
        if not fine:
            return np.asarray(model.encode_images(image))
        width, height = image_size(image)
        return np.asarray(model.encode_regions(image, [(0, 0, width, height)])[0])
    if not fine:
        return np.asarray(model.encode_texts(query))
    return np.asarray(model.encode_spans(query, [(0, len(query))])[0])


def query_image(query: str) -> Path | None:
    """The image, a file or a member of a tar, that a query names; None for a text."""
    path = Path(query)
    try:
        return path if len(query) < LONGEST_PATH and exists(path) and not path.is_dir() else None
    except (OSError, ValueError):  # no path that the system accepts
        return None
