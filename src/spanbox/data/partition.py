"""Parts of manifests: splits without a group on both sides, samples, and several manifests as one.

A group is never divided, and a split keeps groups that share an image file together, so that no image is in two
splits. Groups are drawn by a hash of their name and the seed: the same group goes to the same place however the
manifest is ordered, and a second call gives the same files.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from spanbox.data.importers import UniqueIds
from spanbox.data.joined_groups import JoinedGroups
from spanbox.data.manifest import Manifest, Record, image_file, relocated, write_manifest
from spanbox.errors import DataError
from spanbox.files import check_no_input
from spanbox.structures import stable_id


def split(path: Path, out: Path, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, int]:
    """Write `out/NAME.jsonl` for each share, with about that share of the pairs of each stratum. Returns their numbers.

    Groups that share an image file stay together. They are stratified by the language and the set of types of their
    entities.

    Args:
        shares: of each split; they are divided by their sum.

    Raises:
        DataError: the manifest is wrong, or has too few groups.
        OutputError: a file cannot be written, or is the manifest itself.
    """
    for name in shares:  # before any is written
        check_no_input(out / f"{name}.jsonl", [path])
    manifest = Manifest(path, "keep")
    groups, strata = _groups_and_strata(manifest, seed)
    if len(groups) < len(shares):
        raise DataError(f"{path}: has {len(groups)} groups, too few for {len(shares)} splits")
    chosen = _stratified(groups, strata, shares)
    empty = [name for name, places in chosen.items() if not places]
    if empty:
        raise DataError(f"{path}: has {len(groups)} groups, none of them for {empty[0]}; give it a larger share")
    return {name: _write(manifest, sorted(places), out / f"{name}.jsonl") for name, places in chosen.items()}


def _groups_and_strata(manifest: Manifest, seed: int) -> tuple[dict[int, list[int]], dict[int, frozenset[str]]]:
    """The places of each group, and its languages and types, by a random number of the group."""
    folder = manifest.path.parent.resolve()
    groups: dict[int, list[int]] = defaultdict(list)
    strata: dict[int, frozenset[str]] = defaultdict(frozenset)
    shared: dict[frozenset[str], frozenset[str]] = {}  # a million groups have few different strata
    joined, of_image = JoinedGroups[int](), dict[int, int]()
    for place in range(len(manifest)):
        record = manifest[place]
        key = stable_id(f"split {seed} {record.group_key}")
        groups[key].append(place)
        stratum = strata[key] | {f"lang {record.lang}", *(f"type {entity.type}" for entity in record.entities)}
        strata[key] = shared.setdefault(stratum, stratum)
        same_image = of_image.setdefault(stable_id(image_file(record, folder)), key)
        joined.join(*sorted((joined.first(same_image), joined.first(key))))  # the least, in whatever order they come
    for key in joined.others():
        groups[joined.first(key)] += groups.pop(key)
        strata[joined.first(key)] |= strata.pop(key)
    return groups, strata


def _stratified(
    groups: Mapping[int, list[int]], strata: Mapping[int, frozenset[str]], shares: Mapping[str, float]
) -> dict[str, list[int]]:
    """The places of the pairs of each split."""
    total = sum(shares.values())
    wanted = {name: share / total for name, share in shares.items()}
    by_stratum: dict[frozenset[str], list[int]] = defaultdict(list)
    for key in groups:
        by_stratum[strata[key]].append(key)
    chosen: dict[str, list[int]] = {name: [] for name in shares}
    done = 0
    for stratum in sorted(by_stratum, key=lambda stratum: (-len(by_stratum[stratum]), sorted(stratum))):
        for key in sorted(by_stratum[stratum]):
            done += len(groups[key])
            # The split that is furthest behind its share of all pairs so far: each stratum goes around all splits.
            name = max(wanted, key=lambda name: wanted[name] * done - len(chosen[name]))
            chosen[name] += groups[key]
    return chosen


def sample(path: Path, out: Path, count: int, *, seed: int = 0) -> int:
    """Write whole groups drawn at random, with at least `count` pairs if there are so many. Returns their number.

    Memory does not grow with the manifest but with the sample.

    Raises: as `split`.
    """
    check_no_input(out, [path])
    manifest = Manifest(path, "keep")
    members: dict[int, list[int]] = {}  # places of the groups of the smallest keys
    largest: list[int] = []  # a heap of their keys, negative
    drawn = 0
    for place in range(len(manifest)):
        key = stable_id(f"sample {seed} {manifest[place].group_key}")
        if key not in members:
            if drawn >= count and key > -largest[0]:
                continue
            members[key] = []
            heapq.heappush(largest, -key)
        members[key].append(place)
        drawn += 1
        while drawn - len(members[-largest[0]]) >= count:
            drawn -= len(members.pop(-heapq.heappop(largest)))
    return _write(manifest, sorted(place for places in members.values() for place in places), out)


def merge(paths: Sequence[Path], out: Path) -> int:
    """Write the pairs of several manifests as one; ids are made unique, and `source` names the file where it is empty.

    Of files of one name, such as `coco/train.jsonl` and `flickr/train.jsonl`, the name is `coco/train`. Groups of
    different manifests stay apart, unless they share an image file: then they are one group.

    Raises: as `split`.
    """
    check_no_input(out, paths)
    folder, names = out.parent.resolve(), _names(paths)

    def moved_records() -> Iterator[_Moved]:
        for number, path in enumerate(paths):
            old, name = path.parent.resolve(), names[path.resolve()]
            for record in Manifest(path, "keep"):
                moved = relocated(record, old, folder)
                group = f"{name}/{record.group}" if record.group and len(paths) > 1 else record.group
                new = msgspec.structs.replace(moved, group=group, source=record.source or name)
                yield _Moved(number, record.group_key, new)

    first_of = _groups_that_are_one(moved_records(), folder)

    def records() -> Iterator[Record]:
        ids = UniqueIds()
        for _, _, record in moved_records():
            group = first_of.get(record.group_key)
            yield msgspec.structs.replace(record, id=ids.add(record.id), group=group or record.group)

    return write_manifest(out, records())


class _Moved(NamedTuple):
    """A record of one of several manifests."""

    manifest: int
    group: str  # in its manifest
    record: Record  # as it is in the new manifest, but for its id


def _groups_that_are_one(moved: Iterator[_Moved], folder: Path) -> dict[str, str]:
    """For the groups that are one with an earlier group of the new manifest, the first group that they are joined to.

    Groups are one where they were one before, which may be named by the path of one of its images and so be the default
    of that, and where they share an image file with a group of an earlier manifest.

    Args:
        folder: of the new manifest, resolved.
    """
    joined = JoinedGroups[str]()
    shown: dict[str, tuple[int, str]] = {}  # by image: where it is first, and in which group
    names: dict[tuple[int, str], str] = {}  # of each group of each manifest: its first name in the new one
    for manifest, group, record in moved:
        joined.join(names.setdefault((manifest, group), record.group_key), record.group_key)
        earlier, other = shown.setdefault(image_file(record, folder), (manifest, record.group_key))
        if earlier != manifest:
            joined.join(other, record.group_key)
    return {group: joined.first(group) for group in joined.others()}


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each manifest: that of its file, with its folder where several files have it."""
    resolved = list(dict.fromkeys(path.resolve() for path in paths))
    uses, names = Counter(path.stem for path in resolved), UniqueIds()
    return {
        path: names.add(path.stem if uses[path.stem] == 1 else f"{path.parent.name}/{path.stem}") for path in resolved
    }


def _write(manifest: Manifest, places: Sequence[int], out: Path) -> int:
    old, new = manifest.path.parent.resolve(), out.parent.resolve()
    return write_manifest(out, (relocated(manifest[place], old, new) for place in places))
