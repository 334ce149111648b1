"""Generator of the demo scenes: artwork on random backgrounds, with sentences about the objects and their positions.

A scene shows three or four objects. The sentence names them and their relative positions. Some sentences also name an
absent object (an entity without a box), some omit the fourth object (a distractor). Spans and boxes are exact. The
output is a normal manifest with image files.

A set of named objects belongs to one split only, so held-out scenes show combinations that are not in training.

Held-out scenes can have siblings: the same scene and sentence with one object exchanged, so that most objects of a
scene do not identify it. Relation scenes come in pairs in which two objects change places, in the image and in the
sentence ("the kite is left of the lamp", "the lamp is left of the kite"): only the relation distinguishes them.
"""

import itertools
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from spanbox.data.demo_artwork import Concept, all_concepts, artwork
from spanbox.data.demo_sentences import ABSENCES, FOURTHS, ONE_RELATION, RELATIONS, SENTENCES, Language
from spanbox.data.manifest import Box, Entity, ObjectBox, Record, write_manifest
from spanbox.data.neighbours import save_neighbours
from spanbox.errors import DataError, OutputError
from spanbox.processes import end_with_parent
from spanbox.structures import stable_id

Split = Literal["train", "val", "test"]
Relations = Literal["one", "several"]
"""How many relations a sentence of relation scenes states."""

HELD_OUT: dict[int, Split] = {0: "val", 1: "test"}  # by the hash of the named set modulo ten; the others are "train"
OBJECT_SIZE = (0.37, 0.48)  # longer side, as a share of the scene
FOUR_SHARE = 0.6  # share of scenes that show and name a fourth object
DISTRACTOR_SHARE = 0.07  # share of scenes that show a fourth object without naming it
ABSENT_SHARE = 0.3  # share of sentences that name an absent object

PARTNERS = "train.partners.npy"


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the scenes; equal settings give equal files."""

    concepts: int = 120
    languages: tuple[Language, ...] = ("en",)
    size: int = 192  # pixels, both sides
    seed: int = 0
    siblings: int = 0  # per held-out scene: further scenes that differ in one object
    relations: Relations | None = None  # scenes of all splits in pairs that differ only in the places of two objects
    art: str | None = None  # font with colour emoji, in the place of the artwork: the same objects in another style


@dataclass(frozen=True)
class _Scene:
    """The random choices of a scene."""

    named: tuple[Concept, ...]
    distractors: tuple[Concept, ...]  # shown, not named
    absent: Concept | None  # named, not shown
    boxes: tuple[Box, ...]  # in pixels, of the named and the distractors
    background: Image.Image
    language: Language
    template: str


def write_demo(
    out: Path,
    counts: dict[Split, int],
    settings: DemoSettings,
    workers: int = 1,
    on_drawn: Callable[[int], None] = lambda drawn: None,
) -> dict[Split, Path]:
    """Draw scenes into `out`: `train.jsonl`, `val.jsonl`, `test.jsonl` and `images/`. Returns the manifests by split.

    Relation scenes also give `train.partners.npy`, the neighbours for `data.neighbours`.

    `on_drawn` is called with the number of scenes drawn so far.

    Raises:
        DataError: too many or too few concepts, or relation scenes with siblings.
        OutputError: a manifest in `out` is not of a demo.
    """
    for split in counts:
        _refuse_other_data(out / f"{split}.jsonl", split)
    if settings.relations and settings.siblings:
        raise DataError("relation scenes have no siblings: leave one of the two options out")
    concepts = choose_concepts(settings)
    for concept in concepts if settings.art else ():  # a font may lack some: before anything is written
        artwork(concept)
    manifests = {}
    drawn = itertools.count(1)

    def counted(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            yield record
            on_drawn(next(drawn))

    with ProcessPoolExecutor(workers, initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        for split, count in counts.items():
            (out / "images" / split).mkdir(parents=True, exist_ok=True)
            draw = partial(_draw_to_disk, out, split, settings)
            manifests[split] = out / f"{split}.jsonl"
            write_manifest(manifests[split], counted(pool.map(draw, range(count), chunksize=64)))
    if settings.relations and "train" in manifests:
        _write_partners(out / PARTNERS, manifests["train"], counts["train"])
    return manifests


def _refuse_other_data(manifest: Path, split: Split) -> None:
    """Raises OutputError if a manifest is there that does not begin with the first scene of a demo."""
    if not manifest.is_file():
        return
    with manifest.open("rb") as stream:
        first = stream.read(200)
    if first and not first.startswith(f'{{"id":"{split}-000000","image":"images/{split}/'.encode()):
        raise OutputError(f"{manifest}: is not of a demo, so it is not replaced; name another folder")


def _write_partners(path: Path, manifest: Path, count: int) -> None:
    """The other scene of each pair as its hard neighbour (`data.neighbours`), so that a batch holds both."""
    partner = np.arange(count, dtype=np.int32) ^ 1
    partner[partner >= count] = -1
    save_neighbours(path, partner[:, None], manifest, {"by": "relations"})


@cache
def choose_concepts(settings: DemoSettings) -> tuple[Concept, ...]:
    """The concepts of a demo, drawn alternately from all subgroups, so that few of them look alike."""
    everything = all_concepts()
    if not 10 <= settings.concepts <= len(everything):
        raise DataError(f"the demo needs 10 to {len(everything)} concepts, not {settings.concepts}")
    shuffled = random.Random(settings.seed).sample(everything, len(everything))
    drawn_of_kind: Counter[str] = Counter()
    turns = []
    for concept in shuffled:
        turns.append((drawn_of_kind[concept.subgroup], concept))
        drawn_of_kind[concept.subgroup] += 1
    turns.sort(key=lambda turn: turn[0])
    return tuple(replace(concept, font=settings.art) for _, concept in turns[: settings.concepts])


def draw_scene(split: Split, index: int, settings: DemoSettings) -> tuple[Image.Image, Record]:
    """Image and record of scene `index` of a split; the same on every call."""
    family_size = 2 if settings.relations else 1 if split == "train" else settings.siblings + 1
    first = index - index % family_size
    rng = random.Random(f"{settings.seed} {split} {first}")
    scene = _draw_scene(rng, split, settings)
    if settings.relations:
        scene = _of_relation_pair(rng, scene, split, settings, exchanged=index != first)
    elif index != first:
        scene = _sibling(rng, scene, index - first, split, settings)
    text, entities = _describe(scene)
    scene_id = f"{split}-{index:06d}"
    record = Record(
        id=scene_id,
        image=f"images/{split}/{scene_id}.jpg",
        text=text,
        lang=scene.language,
        entities=tuple(entities),
        objects=tuple(ObjectBox(box=box) for box in scene.boxes),
    )
    return _paint(scene), record


def _draw_scene(rng: random.Random, split: Split, settings: DemoSettings) -> _Scene:
    if settings.relations == "one":
        return _draw_three(rng, split, settings)
    kind = rng.random()
    named, others = _draw_concepts(rng, split, choose_concepts(settings), 4 if kind < FOUR_SHARE else 3)
    distractors = others[1:] if FOUR_SHARE <= kind < FOUR_SHARE + DISTRACTOR_SHARE else []
    absent = others[0] if rng.random() < ABSENT_SHARE else None
    boxes = _place(rng, [*named, *distractors], settings.size)
    background = _background(rng, settings.size)
    language = rng.choice(settings.languages)
    template = _template(rng, language, four=len(named) == 4, absent=absent is not None)
    return _Scene(tuple(named), tuple(distractors), absent, tuple(boxes), background, language, template)


def _draw_three(rng: random.Random, split: Split, settings: DemoSettings) -> _Scene:
    """A scene of three objects; the first two are in one row or one column, which their relation names."""
    named, _ = _draw_concepts(rng, split, choose_concepts(settings), 3)
    boxes, half = _place(rng, named, settings.size), settings.size / 2
    while all((boxes[0][axis] < half) != (boxes[1][axis] < half) for axis in (0, 1)):
        boxes = _place(rng, named, settings.size)
    background, language = _background(rng, settings.size), rng.choice(settings.languages)
    return _Scene(tuple(named), (), None, tuple(boxes), background, language, rng.choice(ONE_RELATION[language]))


def _sibling(rng: random.Random, scene: _Scene, number: int, split: Split, settings: DemoSettings) -> _Scene:
    """The scene with one named object exchanged; siblings with different numbers differ from each other."""
    taken = {concept.id for concept in (*scene.named, *scene.distractors, scene.absent) if concept}
    exchanges = [
        (place, concept, named)
        for concept in choose_concepts(settings)
        if concept.id not in taken
        for place in range(len(scene.named))
        if _split_of(named := (*scene.named[:place], concept, *scene.named[place + 1 :])) == split
    ]
    if number > len(exchanges):
        raise DataError(
            f"a scene has only {len(exchanges)} siblings, not {number}: use fewer siblings, or more concepts than "
            f"{settings.concepts}"
        )
    place, concept, named = rng.sample(exchanges, number)[-1]
    boxes = list(scene.boxes)
    boxes[place] = _in_place_of(boxes[place], concept, settings.size)
    return replace(scene, named=named, boxes=tuple(boxes))


def _of_relation_pair(
    rng: random.Random, scene: _Scene, split: Split, settings: DemoSettings, *, exchanged: bool
) -> _Scene:
    """The scene, or the one in which its first two objects have exchanged places.

    Drawn again until nothing else in the sentence differs: objects of other proportions are a little off the centre of
    a place, which may change another relation.
    """
    while _words(other := _with_two_exchanged(scene, settings)) != _words(scene):
        scene = _draw_scene(rng, split, settings)
    return other if exchanged else scene


def _with_two_exchanged(scene: _Scene, settings: DemoSettings) -> _Scene:
    (first, second, *others), (box, other_box, *boxes) = scene.named, scene.boxes
    places = _in_place_of(box, second, settings.size), _in_place_of(other_box, first, settings.size)
    return replace(scene, named=(second, first, *others), boxes=(*places, *boxes))


def _in_place_of(box: Box, concept: Concept, size: int) -> Box:
    """A box for another concept in the same quarter, with the same longer side and nearly the same centre."""
    x0, y0, x1, y1 = box
    art, half = artwork(concept), size // 2
    scale = max(x1 - x0, y1 - y0) / max(art.size)
    corner = []
    for side, low, high in ((art.width, x0, x1), (art.height, y0, y1)):
        length, quarter = round(side * scale), half * int((low + high) / 2 >= half)
        start = min(max(round((low + high - length) / 2), quarter), quarter + half - length)
        corner.append((float(start), float(start + length)))
    (left, right), (top, bottom) = corner
    return left, top, right, bottom


def _draw_to_disk(out: Path, split: Split, settings: DemoSettings, index: int) -> Record:
    image, record = draw_scene(split, index, settings)
    image.save(out / record.image, quality=90)
    return record


def _draw_concepts(
    rng: random.Random, split: Split, concepts: tuple[Concept, ...], count: int
) -> tuple[list[Concept], list[Concept]]:
    """`count` concepts whose set belongs to `split`, and two more."""
    while True:
        drawn = rng.sample(concepts, count + 2)
        named, others = drawn[:count], drawn[count:]
        if _split_of(named) == split:
            return named, others


def _split_of(named: Iterable[Concept]) -> Split:
    key = " ".join(sorted(concept.id for concept in named))
    return HELD_OUT.get(stable_id(key) % 10, "train")


def _place(rng: random.Random, concepts: list[Concept], size: int) -> list[Box]:
    """A box in pixels for each concept, each in another quarter of the scene, so that none overlap."""
    half = size // 2
    corners = rng.sample([(0, 0), (half, 0), (0, half), (half, half)], len(concepts))
    boxes: list[Box] = []
    for concept, (left, top) in zip(concepts, corners, strict=True):
        art = artwork(concept)
        scale = rng.uniform(*OBJECT_SIZE) * size / max(art.size)
        width, height = round(art.width * scale), round(art.height * scale)
        x, y = left + rng.randint(0, half - width), top + rng.randint(0, half - height)
        boxes.append((float(x), float(y), float(x + width), float(y + height)))
    return boxes


def _paint(scene: _Scene) -> Image.Image:
    image = scene.background.copy()
    for concept, (x0, y0, x1, y1) in zip([*scene.named, *scene.distractors], scene.boxes, strict=True):
        art = artwork(concept).resize((int(x1 - x0), int(y1 - y0)), Image.Resampling.BILINEAR)
        image.paste(art, (int(x0), int(y0)), art)
    return image


def _background(rng: random.Random, size: int) -> Image.Image:
    """A plain colour, gradient, stripes or clouds, with two random colours."""
    first, second = (np.array([rng.randint(40, 255) for _ in range(3)], dtype=np.float32) for _ in range(2))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    across = x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)
    kind = rng.choice(("plain", "gradient", "stripes", "clouds"))
    if kind == "plain":
        blend = np.zeros_like(x)
    elif kind == "gradient":
        blend = np.clip(across + 0.5, 0, 1)
    elif kind == "stripes":
        blend = 0.5 + 0.5 * np.sin(across * rng.uniform(10, 60))
    else:
        coarse = np.random.default_rng(rng.getrandbits(32)).random((6, 6), dtype=np.float32)
        blend = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    colours = first + (second - first) * np.clip(blend, 0, 1)[..., None]
    return Image.fromarray(colours.astype(np.uint8))


def _relation(box: Box, other: Box) -> str:
    """Position of `box` relative to `other`, along the axis with the larger distance of the centres."""
    dx, dy = (box[i] + box[i + 2] - other[i] - other[i + 2] for i in (0, 1))
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _template(rng: random.Random, language: Language, *, four: bool, absent: bool) -> str:
    template = rng.choice(SENTENCES[language])
    template += rng.choice(FOURTHS[language]) if four else ""
    return template + (rng.choice(ABSENCES[language]) if absent else "")


def _words(scene: _Scene) -> dict[str, str]:
    """The word for the relation of each two slots that a sentence can relate."""
    boxes = dict(zip("abcd", scene.boxes, strict=False))
    named = "abcd"[: len(scene.named)]
    return {
        one + other: RELATIONS[scene.language][_relation(boxes[one], boxes[other])]
        for one, other in ("ab", "cb", "da")
        if one in named
    }


def _describe(scene: _Scene) -> tuple[str, list[Entity]]:
    """The sentence of a scene, and its entities with exact spans."""
    language = scene.language
    things: dict[str, tuple[Concept, tuple[Box, ...]]] = {
        slot: (concept, (box,)) for slot, concept, box in zip("abcd", scene.named, scene.boxes, strict=False)
    }
    words = _words(scene)
    if scene.absent:
        things["x"] = (scene.absent, ())
    text, entities = "", []
    for position, piece in enumerate(re.split(r"\{(\w+)\}", scene.template)):
        is_slot = position % 2 == 1
        if not is_slot:
            text += piece
        elif piece in words:
            text += words[piece]
        else:
            concept, shown = things[piece]
            name = concept.names[language]
            entities.append(
                Entity(
                    start=len(text), end=len(text) + len(name), type=concept.subgroup, identity=concept.id, boxes=shown
                )
            )
            text += name
    return text, entities
