"""Features of a source in a file."""

from pathlib import Path

from spanbox.api import Model
from spanbox.engine.distributed import Ranks
from spanbox.search.embedding import Embedded, embed_source
from spanbox.search.sources import Kind, open_source


def write(model: Model, source: Path, out: Path, kind: Kind, column: str | None = None) -> Embedded:
    done = embed_source(model, open_source(source, kind, column), out, batch_size=2, ranks=Ranks())
    assert done is not None
    return done
