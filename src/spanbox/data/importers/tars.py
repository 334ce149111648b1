"""WebDataset tars: samples of members with one stem, such as `000017.jpg` with `000017.json` or `000017.txt`.

Images stay in their tars: the manifest names them as `shards/0001.tar/000017.jpg`, see `data/source.py`. Texts are read
one at a time, so that tars larger than the memory can be imported.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from spanbox.data.importers import is_file, relative_folder
from spanbox.data.importers.driver import Pairs, Source
from spanbox.data.importers.fields import known_split
from spanbox.data.line_index import OpenFile
from spanbox.data.manifest import MAX_LINE_BYTES, Record
from spanbox.data.tar_index import REASONS, Member, TarIndex, members
from spanbox.errors import DataError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXTS = ("txt", "caption", "text")
_SAFE = re.compile(r"[^\w.-]+")

Sample = dict[str, Member]  # by ending


def webdataset(source: Source) -> Pairs:
    """One `.tar` or a folder of them: `.jpg` (or another image) beside `.json` (a record, or a caption) or `.txt`.

    Tars such as `train-0001.tar` are of the split that they name.
    """
    paths = [source.root] if source.root.is_file() else sorted(source.root.glob("*.tar"))
    if not paths:
        raise DataError(f"{source.root}: no .tar files")
    for path in paths:
        if not is_file(path):
            raise DataError(f"{path}: is not a file that can be read")
        index = TarIndex(path)  # refuses a tar that was cut off, before anything is made of it
        file = OpenFile(path)
        folder = f"{relative_folder(path.parent, source.out)}/{path.name}"
        split = known_split(path.stem) or "all"
        for stem, sample in _samples(source, split, path, index):
            found = _record(source, split, f"{path.name}:{stem[:200]}", file, folder, stem, sample)
            if found is not None:
                yield split, found


def _samples(source: Source, split: str, path: Path, index: TarIndex) -> Iterator[tuple[str, Sample]]:
    """The samples of a tar, in its order; members that are not read are left out."""
    stem, sample = "", Sample()
    for member in members(path):
        offset, _ = index.find(member.name) or (member.offset, 0)
        if offset in REASONS:
            source.note(split, "member that is not read", f"{path.name}:{member.name[:200]}", REASONS[offset])
        folder, _, name = member.name.rpartition("/")
        own_stem, _, ending = name.partition(".")
        key = f"{folder}/{own_stem}"
        if key != stem and sample:
            yield stem, sample
            sample = {}
        stem = key
        if offset not in REASONS:
            sample[ending.casefold()] = member
    if sample:
        yield stem, sample


class _Unusable(ValueError):
    pass


def _record(
    source: Source, split: str, where: str, file: OpenFile, folder: str, stem: str, sample: Sample
) -> Record | None:
    ending = next((ending for ending in IMAGES if ending in sample), None)
    if ending is None:
        source.note(split, "sample without an image", where, f"it has {', '.join(sample)[:200]}")
        return None
    record_id = _SAFE.sub("-", stem.strip("/")) or "sample"
    try:
        image = f"{folder}/{sample[ending].name}"
        image.encode()
        return _described(file, sample, record_id, image)
    except (msgspec.MsgspecError, UnicodeError, _Unusable, RecursionError) as error:
        source.note(split, "unusable record", where, str(error))
        return None


def _described(file: OpenFile, sample: Sample, record_id: str, image: str) -> Record:
    ending = next((ending for ending in TEXTS if ending in sample), None)
    text = _content(file, sample[ending]).decode("utf-8-sig").strip() if ending else None
    if "json" not in sample:
        if text is None:
            raise _Unusable("has neither .json nor .txt")
        return Record(record_id, image, text)
    content = msgspec.json.decode(_content(file, sample["json"]).removeprefix(codecs.BOM_UTF8))
    if not isinstance(content, dict):
        raise _Unusable("its .json is not an object")
    further = {name: value for name, value in content.items() if name not in Record.__struct_fields__}
    if "text" in content and (not further or "entities" in content or "objects" in content):
        given: dict[str, object] = {"id": record_id, **content, "image": image}
        if further:
            given = {name: value for name, value in given.items() if name not in further}
            given["meta"] = further | (content["meta"] if isinstance(content.get("meta"), dict) else {})
        return msgspec.convert(given, Record)
    text = text if text is not None else content.get("caption", content.get("text"))
    if not isinstance(text, str):
        raise _Unusable("its .json has no caption")
    named = {name: content[name] for name in ("group", "lang") if isinstance(content.get(name), str)}
    meta = {key: value for key, value in content.items() if key not in ("caption", *named)}
    return Record(record_id, image, text.strip(), **named, meta=meta)


def _content(file: OpenFile, member: Member) -> bytes:
    if member.size > MAX_LINE_BYTES:
        raise _Unusable(f"{member.name[:200]} is longer than {MAX_LINE_BYTES >> 20} MiB")
    return file.read(member.offset, member.size)
