"""A manifest with the verdicts of `spanbox data clean` applied, and the page to review them.

Verdicts are probabilities; this module only applies the policies to them. The original is not changed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from spanbox.data.images import image_size
from spanbox.data.manifest import Box, Entity, Manifest, Record
from spanbox.data.review_page import Card, Mark, Section, review_page
from spanbox.errors import DataError
from spanbox.settings import Settings

PairPolicy = Literal["keep", "drop", "weight"]
LinkPolicy = Literal["keep", "drop", "weight", "relink"]

FOLDS = 5  # unless another number is given
LIKELY = 0.5  # probability from which something counts as right
SAME_BOX = 0.01  # of the sides: how far a box may differ from its record's, since regions are float32
WORST = 40  # cases of each kind on the page


class Policies(Settings):
    """What is done with pairs and links that are probably wrong."""

    pairs: PairPolicy = "drop"
    links: LinkPolicy = "relink"


class JudgedPair(NamedTuple):
    """A pair and the probability that its text and image belong together."""

    place: int
    right: float

    @property
    def is_wrong(self) -> bool:
        return self.right < LIKELY


class JudgedLink(NamedTuple):
    """A box of an entity, or an entity without one, and the region of the image that fits it best beside it.

    Boxes are fractions of the sides.
    """

    place: int
    entity: int
    box: Box | None
    right: float  # probability that the box shows the entity; 0 without one
    proposed: Box | None
    proposed_right: float

    @property
    def is_wrong(self) -> bool:
        return self.box is not None and self.right < LIKELY

    @property
    def has_better(self) -> bool:
        return self.proposed is not None and self.proposed_right >= LIKELY

    @property
    def verdict(self) -> str:
        if self.box is None:
            return "box found" if self.has_better else "no box"
        if not self.is_wrong:
            return "right"
        return "another box" if self.has_better else "wrong box"


class Judged(NamedTuple):
    """All verdicts on a manifest, by the place of the pair."""

    pairs: dict[int, JudgedPair]
    links: dict[int, list[JudgedLink]]

    @classmethod
    def of(cls, pairs: Iterable[JudgedPair], links: Iterable[JudgedLink]) -> "Judged":
        by_place: dict[int, list[JudgedLink]] = defaultdict(list)
        for link in links:
            by_place[link.place].append(link)
        return cls({pair.place: pair for pair in pairs}, by_place)


def cleaned_records(manifest: Manifest, judged: Judged, policies: Policies, counts: Counter[str]) -> Iterator[Record]:
    """The records of a manifest with the policies applied; what was done is added to `counts`.

    - `drop`: wrong pairs are left out; wrong boxes are, and an entity that loses all of them becomes one of which the
      it is unknown whether the image shows it (`ambiguous`).
    - `weight`: the probability becomes the relevance.
    - `relink`: a wrong box is replaced by the region that fits, if one does, else dropped; an entity without a box gets
      the region that shows it.

    An `ambiguous` entity for which one box is left or found is so no longer.
    """
    for place in range(len(manifest)):
        record = manifest[place]
        pair = judged.pairs.get(place)
        if pair is None:
            counts["pairs not judged: kept"] += 1
            yield record
            continue
        if pair.is_wrong and policies.pairs == "drop":
            counts["pairs dropped"] += 1
            continue
        links = judged.links.get(place, [])
        if links and policies.links != "keep":
            record = _with_links(record, manifest, links, policies.links, counts)
        if policies.pairs == "weight":
            record = msgspec.structs.replace(record, relevance=round(record.relevance * pair.right, 4))
        yield record


def _with_links(
    record: Record, manifest: Manifest, links: Sequence[JudgedLink], policy: LinkPolicy, counts: Counter[str]
) -> Record:
    from spanbox.geometry import clip_box, in_fractions  # imports PyTorch

    width, height = image_size(manifest.image_path(record))
    of_entity: dict[int, list[JudgedLink]] = defaultdict(list)
    for link in links:
        of_entity[link.entity].append(link)
    known = [*(box for entity in record.entities for box in entity.boxes), *(o.box for o in record.objects)]

    def difference(box: Box, region: Box) -> float:
        """Largest difference of the edges of a box in pixels, clipped, and of a region, as a share of the side."""
        clipped = clip_box(in_fractions(box, width, height))
        return max(abs(edge - other) for edge, other in zip(clipped, region, strict=True))

    def in_pixels(region: Box) -> Box:
        """The box of the record that the region comes from, else the region in pixels."""
        nearest = min(known, key=lambda box: difference(box, region), default=None)
        if nearest is not None and difference(nearest, region) <= SAME_BOX:
            return nearest
        x0, y0, x1, y1 = region
        return round(x0 * width, 2), round(y0 * height, 2), round(x1 * width, 2), round(y1 * height, 2)

    def verdict_of(box: Box, links: Sequence[JudgedLink]) -> JudgedLink | None:
        """The verdict on a box: that of its region, which may be shared by boxes that are equal once clipped."""
        differences = {difference(box, link.box): link for link in links if link.box is not None}
        least = min(differences, default=math.inf)  # two annotations of an object may differ by a little
        return differences[least] if least <= SAME_BOX else None

    entities = []
    for index, entity in enumerate(record.entities):
        own = of_entity.get(index, [])
        judged = [verdict_of(box, own) for box in entity.boxes]
        bare = next((link for link in own if link.box is None), None)
        entities.append(_with_verdicts(entity, judged, bare, in_pixels, policy, counts))
    return msgspec.structs.replace(record, entities=tuple(entities))


def _with_verdicts(
    entity: Entity,
    judged: Sequence[JudgedLink | None],
    bare: JudgedLink | None,
    in_pixels: Callable[[Box], Box],
    policy: LinkPolicy,
    counts: Counter[str],
) -> Entity:
    """The entity with a policy applied.

    Args:
        judged: the link of each of its boxes, where that was judged.
        bare: the verdict on an entity without a box.
        in_pixels: from a region to the box that it was made of.
    """
    kept: dict[Box, float] = {}
    dropped = False
    for box, relevance, link in zip(entity.boxes, entity.box_relevance(), judged, strict=True):
        if link is not None and policy == "weight":
            kept[box] = round(relevance * link.right, 4)
            if link.verdict != "right":
                counts["wrong boxes weighted"] += 1
        elif link is None or link.verdict == "right":
            kept[box] = relevance
        elif policy == "relink" and link.proposed is not None and link.verdict == "another box":
            kept.setdefault(in_pixels(link.proposed), round(link.proposed_right, 4))
            counts["boxes replaced"] += 1
        else:
            dropped = True
            counts["boxes dropped"] += 1
    if policy == "relink" and bare is not None and bare.proposed is not None and bare.verdict == "box found":
        kept[in_pixels(bare.proposed)] = round(bare.proposed_right, 4)
        counts["boxes added"] += 1
    has_one_left = len(kept) == 1 and tuple(kept) != entity.boxes
    return msgspec.structs.replace(
        entity,
        boxes=tuple(kept),
        relevance=tuple(kept.values()) if any(value < 1 for value in kept.values()) else (),
        ambiguous=(entity.ambiguous and not has_one_left) or (dropped and not kept),
    )


def verdict_lines(manifest: Manifest, judged: Judged) -> Iterator[dict[str, object]]:
    """Every verdict, one object for each pair; boxes as fractions of the sides."""
    for place in sorted(judged.pairs):
        links = [
            {
                "entity": link.entity,
                "verdict": link.verdict,
                "box": link.box,
                "right": round(link.right, 6),
                "proposed": link.proposed,
                "proposed_right": round(link.proposed_right, 6),
            }
            for link in judged.links.get(place, [])
        ]
        pair = judged.pairs[place]
        verdict = "wrong" if pair.is_wrong else "right"
        yield {"id": manifest[place].id, "verdict": verdict, "right": round(pair.right, 6), "links": links}


def cleaning_page(manifest: Manifest, judged: Judged) -> str:
    """A page of the worst cases of each kind, the least probable first."""
    pairs = sorted((pair for pair in judged.pairs.values() if pair.is_wrong), key=lambda pair: pair.right)
    links = [link for links in judged.links.values() for link in links]
    sections = [
        _section("Text and image do not belong together", pairs, [_pair_card(manifest, p) for p in pairs[:WORST]])
    ]
    for verdict, heading in (
        ("another box", "Another box fits better"),
        ("wrong box", "The box does not show the entity, and no other does"),
        ("box found", "An entity without a box that a region shows"),
    ):
        chosen = [link for link in links if link.verdict == verdict]
        chosen.sort(key=lambda link: -link.proposed_right if link.box is None else link.right)
        sections.append(_section(heading, chosen, [_link_card(manifest, link) for link in chosen[:WORST]]))
    introduction = (
        f"{manifest.path}: the worst cases of each kind first, with their probabilities. Solid: the present box; "
        "dashed: the proposed one."
    )
    return review_page("Data cleaning", introduction, sections)


def _section(heading: str, all_cases: Sequence[object], cards: Sequence[Card]) -> Section:
    shown = f"{len(cards)} of {len(all_cases):,}" if len(cards) < len(all_cases) else f"{len(cards)}"
    return Section(f"{heading} ({shown})", "" if cards else "None.", cards)


def _pair_card(manifest: Manifest, pair: JudgedPair) -> Card:
    record = manifest[pair.place]
    return Card(
        record.id, [manifest.image_path(record)], record.text, details=[f"together with probability {pair.right:.3f}"]
    )


def _link_card(manifest: Manifest, link: JudgedLink) -> Card:
    record = manifest[link.place]
    path = manifest.image_path(record)
    entity = record.entities[link.entity]
    try:
        width, height = image_size(path)
    except DataError:
        width, height = 1, 1
    marks, details = [], []
    if link.box is not None:
        marks.append(Mark(_scaled(link.box, width, height), "present"))
        details.append(f"present box: right with probability {link.right:.3f}")
    if link.proposed is not None:
        marks.append(Mark(_scaled(link.proposed, width, height), "proposed"))
        details.append(f"proposed box: right with probability {link.proposed_right:.3f}")
    return Card(record.id, [path], record.text, (entity.start, entity.end), marks, details)


def _scaled(box: Box, width: int, height: int) -> Box:
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height
