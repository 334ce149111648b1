"""WebDataset tars: samples of members with one stem, such as `000017.jpg` with `000017.json` or `000017.txt`.

Tars are read as streams, so that one larger than the memory can be imported. Images are written to `OUT/images` under
names made of the tar and the stem; no name of a member decides where a file is written.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from spanbox.data.importers.driver import Pairs, Source
from spanbox.data.manifest import MAX_LINE_BYTES, Record
from spanbox.errors import DataError
from spanbox.files import replacing

MAX_IMAGE_BYTES = 256 * 1024 * 1024
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXTS = ("txt", "caption", "text")
_SAFE = re.compile(r"[^\w.-]+")

Sample = dict[str, bytes]


def webdataset(source: Source) -> Pairs:
    """One `.tar` or a folder of them: `.jpg` (or another image) beside `.json` (a record, or a caption) or `.txt`."""
    paths = [source.root] if source.root.is_file() else sorted(source.root.glob("*.tar"))
    if not paths:
        raise DataError(f"{source.root}: no .tar files")
    for path in paths:
        for stem, sample in _samples(source, path):
            found = _record(source, path, stem, sample)
            if found is not None:
                yield "all", found


def _samples(source: Source, path: Path) -> Iterator[tuple[str, Sample]]:
    """The samples of a tar, in its order. Links and special files are left out."""
    stem, sample = "", Sample()
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                own_stem, _, ending = name.partition(".")
                if not member.isfile():
                    if not member.isdir():
                        source.note("all", "member that is no file", f"{path.name}:{member.name[:200]}", "left out")
                    continue
                key = f"{folder}/{own_stem}"
                if key != stem and sample:
                    yield stem, sample
                    sample = {}
                stem = key
                if member.size > MAX_IMAGE_BYTES:
                    source.note("all", "member too large", f"{path.name}:{member.name[:200]}", f"{member.size} bytes")
                    continue
                file = archive.extractfile(member)
                if file is not None:
                    sample[ending.casefold()] = file.read()
            if sample:
                yield stem, sample
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: is not a whole tar ({error})") from None


def _record(source: Source, path: Path, stem: str, sample: Sample) -> Record | None:
    where = f"{path.name}:{stem[:200]}"
    ending = next((ending for ending in IMAGES if ending in sample), None)
    if ending is None:
        source.note("all", "sample without an image", where, f"it has {', '.join(sample)[:200] or 'nothing'}")
        return None
    record_id = _SAFE.sub("-", stem.strip("/")) or "sample"
    name = f"images/{_SAFE.sub('-', path.stem)}-{record_id[-150:].lstrip('.')}.{ending}"
    try:
        record = _described(sample, record_id, name)
    except (msgspec.MsgspecError, UnicodeDecodeError, _WithoutText) as error:
        source.note("all", "unusable record", where, str(error))
        return None
    with replacing(source.out / name) as file:
        file.write(sample[ending])
    return record


class _WithoutText(ValueError):
    pass


def _described(sample: Sample, record_id: str, image: str) -> Record:
    text = next((sample[ending].decode().strip() for ending in TEXTS if ending in sample), None)
    if "json" not in sample:
        if text is None:
            raise _WithoutText("has neither .json nor .txt")
        return Record(record_id, image, text)
    if len(sample["json"]) > MAX_LINE_BYTES:
        raise _WithoutText(f"its .json is longer than {MAX_LINE_BYTES >> 20} MiB")
    content = msgspec.json.decode(sample["json"])
    if not isinstance(content, dict):
        raise _WithoutText("its .json is no object")
    if "text" in content and not content.keys() - set(Record.__struct_fields__):
        given = {"id": record_id} | content | {"image": image}
        return msgspec.convert(given, Record)
    text = text if text is not None else content.get("caption", content.get("text"))
    if not isinstance(text, str):
        raise _WithoutText("its .json has no caption")
    return Record(
        record_id, image, text.strip(), meta={str(key): value for key, value in content.items() if key != "caption"}
    )
