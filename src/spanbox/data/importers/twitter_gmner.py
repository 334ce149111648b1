"""Twitter-GMNER (Twitter10000) and Twitter-FMNERG: tweets with entities and the boxes that show them.

A text file per split (see `twitter_gmner_text`), a Pascal VOC file of boxes and a VinVL file of proposals per image,
both named after the image: the `<filename>` inside the former is often that of another image. A box belongs to every
entity of the tweet whose text equals the name of the box. Most entities have no box, by design of the set.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from re import split as split_words

from spanbox.data.images import image_size
from spanbox.data.importers import (
    ImportSummary,
    SplitSummary,
    UniqueIds,
    annotation_counts,
    copy_file,
    is_file,
    relative_folder,
    with_progress,
)
from spanbox.data.importers.twitter_gmner_text import EntityTypes, Tweet, read_tweets
from spanbox.data.importers.vinvl import read_vinvl
from spanbox.data.importers.voc import read_voc
from spanbox.data.manifest import Box, Entity, ObjectBox, Record, write_manifest
from spanbox.errors import DataError
from spanbox.files import check_writable_file, check_writable_folder
from spanbox.progress import OnProgress

_SPLITS = {"train": "train", "dev": "val", "val": "val", "valid": "val", "test": "test"}
_TEXT_FOLDERS = ("", "txt", "txt_fine", "json")


@dataclass(frozen=True)
class Folders:
    """The folders of the files that belong to images."""

    boxes: Path
    images: Path  # may not exist: the images are published separately
    proposals: Path | None


def import_twitter_gmner(
    source: Path,
    out: Path,
    *,
    boxes: Path | None = None,
    images: Path | None = None,
    proposals: Path | None = None,
    entity_types: EntityTypes = "fine",
    copy_images: bool = False,
    on_progress: OnProgress | None = None,
) -> ImportSummary:
    """Write `out/{train,val,test}.jsonl` and `out/import.json`.

    Args:
        source: the folder of the set (`Twitter10000_v2.0`), or one file of texts.
        out: folder of the manifests.
        boxes: folder of `<id>.xml`; default for these three: looked for in the folder of the set and beside it.
        images: folder of `<id>.jpg`. Missing images are listed, their pairs kept.
        proposals: folder of `<id>.jpg.npz`.
        entity_types: which column of FMNERG becomes the type of an entity.
        copy_images: copy the images to `out/images`; otherwise the manifests point to where they lie.
        on_progress: called after every tweet.

    Raises:
        DataError: no texts, no folder of boxes, a wrong line, an id that cannot be a file name, or no right to read.
        OutputError: a file cannot be written.
    """
    try:
        return _import(source, out, boxes, images, proposals, entity_types, copy_images, on_progress)
    except OSError as error:  # a folder that cannot be read, a name that is too long
        raise DataError(f"{error.filename or source}: cannot be read ({error.strerror or error})") from None


def _import(
    source: Path,
    out: Path,
    boxes: Path | None,
    images: Path | None,
    proposals: Path | None,
    entity_types: EntityTypes,
    copy_images: bool,
    on_progress: OnProgress | None,
) -> ImportSummary:
    texts = find_texts(source)
    splits = {name: SplitSummary(str(path), f"{name}.jsonl") for name, path in texts.items()}
    tweets = {name: read_tweets(path, entity_types, splits[name]) for name, path in texts.items()}
    _note_shared_images(tweets, splits)
    image_ids = list({tweet.image_id: None for split in tweets.values() for tweet in split})
    folders = find_folders(source, image_ids, boxes=boxes, images=images, proposals=proposals)
    for file in (*(summary.manifest for summary in splits.values()), "import.json"):
        check_writable_file(out / file)
    if copy_images:
        check_writable_folder(out / "images")
    image_folder = "images" if copy_images else relative_folder(folders.images, out)
    done, total = 0, sum(map(len, tweets.values()))
    for name, summary in splits.items():
        records = _records(tweets[name], image_folder, folders, summary)
        done += write_manifest(out / summary.manifest, with_progress(records, on_progress, done, total))
    if copy_images:
        _copy_images(image_ids, folders.images, out / "images")
    found = {name: str(folder or "") for name, folder in asdict(folders).items()}
    result = ImportSummary("twitter-gmner", found, splits)
    result.write(out / "import.json")
    return result


def find_texts(source: Path) -> dict[str, Path]:
    """The file of texts of each split, by the name of the split in the manifest."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if source.is_file():
        split = _split_of(source)
        if split is None:
            raise DataError(f"{source}: its split is not known; expected train, dev or test in its name")
        return {split: source}
    for suffix in (".txt", ".json"):
        for folder in _TEXT_FOLDERS:
            texts = _texts_in(source / folder, suffix)
            if texts:
                return texts
    raise DataError(
        f"{source}: no texts; expected train.txt, dev.txt and test.txt, or .json files with the split in their names, "
        f"here or in one of {', '.join(filter(None, _TEXT_FOLDERS))}"
    )


def _texts_in(folder: Path, suffix: str) -> dict[str, Path]:
    texts: dict[str, Path] = {}
    for path in sorted(path for path in folder.glob(f"*{suffix}") if is_file(path)):
        split = _split_of(path)
        if split in texts:
            raise DataError(f"{texts[split]} and {path} are both {split}; give the one to import instead of {folder}")
        if split is not None:
            texts[split] = path
    return {split: texts[split] for split in ("train", "val", "test") if split in texts}


def _split_of(path: Path) -> str | None:
    """The split that a file's name holds: `dev.txt` and `entity_text_dev.json` are both val."""
    words = split_words(r"[^a-z]+", path.stem.casefold())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def find_folders(
    source: Path, image_ids: list[str], *, boxes: Path | None, images: Path | None, proposals: Path | None
) -> Folders:
    """Find the folders that hold files of these images, in that of `source` or beside it; given ones are taken."""
    for option, folder in (("--boxes", boxes), ("--images", images), ("--proposals", proposals)):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{option} {folder}: no such folder")
    base = source.absolute() if source.is_dir() else source.absolute().parent
    base = base.parent if base.name in _TEXT_FOLDERS else base
    boxes = boxes or _find_folder(base, "xml", [f"{image_id}.xml" for image_id in image_ids]) or base / "xml"
    if not boxes.is_dir():
        raise DataError(f"{source}: no folder 'xml' with its boxes in it or beside it; name it with --boxes DIR")
    return Folders(
        boxes=boxes,
        images=images or _find_folder(base, "image", [f"{image_id}.jpg" for image_id in image_ids]) or base / "images",
        proposals=proposals or _find_folder(base, "vinvl", [f"{image_id}.jpg.npz" for image_id in image_ids]),
    )


def _find_folder(base: Path, name: str, files: list[str]) -> Path | None:
    """The nearest folder with `name` in its name and any of `files` in it.

    The folders of the set have several names in use. FMNERG and the JSON form come without boxes and use those of v2.0,
    which may be in a folder beside them, and beside v1.
    """
    for near in (base.glob("*"), base.parent.glob("*"), base.parent.glob("*/*")):
        for folder in sorted((path for path in near if name in path.name.casefold()), reverse=True):
            if folder.is_dir() and any(is_file(folder / file) for file in files):
                return folder
    return None


def _note_shared_images(tweets: dict[str, list[Tweet]], splits: dict[str, SplitSummary]) -> None:
    first: dict[str, str] = {}
    for name, summary in splits.items():
        for image_id in {tweet.image_id: None for tweet in tweets[name]}:
            if first.setdefault(image_id, name) != name:
                summary.add("image in two splits", image_id, f"also in {first[image_id]}")


def _records(tweets: list[Tweet], image_folder: str, folders: Folders, summary: SplitSummary) -> Iterator[Record]:
    ids = UniqueIds()
    for tweet in tweets:
        summary.counts["pairs"] += 1
        record_id = ids.add(tweet.image_id)
        if record_id != tweet.image_id:
            summary.add("image used again", tweet.image_id, f"this pair is {record_id}, of the same group")
        shown = _image_size(tweet, folders, summary)
        boxes, unclear = _boxes_by_name(tweet, folders, shown, summary)
        names = [tweet.text[start:end] for start, end, _ in tweet.mentions]
        record = Record(
            id=record_id,
            image=f"{image_folder}/{tweet.image_id}.jpg",
            text=tweet.text,
            group=tweet.image_id,
            lang="en",
            entities=tuple(
                Entity(start, end, kind, boxes=tuple(boxes.get(name, ())), ambiguous=name in unclear - boxes.keys())
                for (start, end, kind), name in zip(tweet.mentions, names, strict=True)
            ),
            objects=_proposals(tweet, folders, shown, summary),
        )
        summary.counts.update(annotation_counts(record))
        yield record


def _image_size(tweet: Tweet, folders: Folders, summary: SplitSummary) -> tuple[int, int] | None:
    path = folders.images / f"{tweet.image_id}.jpg"
    if not is_file(path):
        summary.add("missing image", tweet.image_id, str(path))
        return None
    try:
        return image_size(path)
    except DataError as error:
        summary.add("broken image", tweet.image_id, str(error))
        return None


def _boxes_by_name(
    tweet: Tweet, folders: Folders, shown: tuple[int, int] | None, summary: SplitSummary
) -> tuple[dict[str, list[Box]], set[str]]:
    """The boxes of each name, and the names with boxes that cannot be used."""
    names = {tweet.text[start:end] for start, end, _ in tweet.mentions}
    path = folders.boxes / f"{tweet.image_id}.xml"
    if not is_file(path):
        summary.counts["pairs without a file of boxes"] += 1
        return {}, set()
    try:
        annotation = read_voc(path)
    except DataError as error:
        summary.add("unreadable file of boxes", tweet.image_id, str(error))
        return {}, names
    for fault in annotation.unusable:
        summary.add("unusable box", tweet.image_id, fault)
    for name in sorted(annotation.boxes.keys() - names):
        count = len(annotation.boxes[name])
        summary.add(
            "name that matches no entity", tweet.image_id, f"{name!r}, {count} box{'es' * (count > 1)} left out"
        )
    _compare_sizes("boxes", annotation.size, shown, tweet, summary)
    return annotation.boxes, annotation.names_of_unusable


def _proposals(
    tweet: Tweet, folders: Folders, shown: tuple[int, int] | None, summary: SplitSummary
) -> tuple[ObjectBox, ...]:
    path = folders.proposals / f"{tweet.image_id}.jpg.npz" if folders.proposals else None
    if path is None or not is_file(path):
        summary.counts["pairs without a file of proposals"] += 1
        return ()
    try:
        found = read_vinvl(path)
    except DataError as error:
        summary.add("unreadable file of proposals", tweet.image_id, str(error))
        return ()
    for fault in found.unusable:
        summary.add("unusable proposal", tweet.image_id, fault)
    _compare_sizes("proposals", found.size, shown, tweet, summary)
    return found.proposals


def _compare_sizes(
    what: str, made_for: tuple[int, int] | None, shown: tuple[int, int] | None, tweet: Tweet, summary: SplitSummary
) -> None:
    """Boxes are in pixels: made for another size of the image, they are wrong."""
    if made_for and shown and made_for != shown:
        detail = f"made for {made_for[0]} x {made_for[1]}, the image is {shown[0]} x {shown[1]}; used without changes"
        summary.add(f"{what} for another image size", tweet.image_id, detail)


def _copy_images(image_ids: list[str], source: Path, target: Path) -> None:
    for image_id in image_ids:
        path = source / f"{image_id}.jpg"
        if is_file(path):
            copy_file(path, target / path.name)
