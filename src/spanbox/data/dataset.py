"""The pairs of a manifest as samples, by step and index; a pair with a broken image is replaced."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace

from msgspec.structs import replace as replace_fields
from torch.utils.data import Dataset

from spanbox.data.augment_image import has_direction
from spanbox.data.draws import Draws, Stream
from spanbox.data.images import Pixels, open_picture
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Entity, Manifest, Record
from spanbox.data.mask_effects import fill_pixels, view_meaning
from spanbox.data.masking import Proposals, draw_views
from spanbox.data.prepare import least_reduction, prepare
from spanbox.data.sample_text import TextAugmenter
from spanbox.data.sampler import Key
from spanbox.data.words import is_english_or_chinese
from spanbox.errors import DataError
from spanbox.structures import Incident, Sample, SampleViews

REPLACEMENT_TRIES = 20


class PairDataset(Dataset[Sample | Incident]):
    """Samples by (step, index), and copy if there are several. Every random draw depends on these and the seed alone.

    In training a pair with a broken image is replaced by another pair of the manifest, and the sample carries the
    incident; in evaluation (`replace_broken=False`) the item is the incident.
    """

    def __init__(
        self,
        manifest: Manifest,
        limits: SampleLimits,
        seed: int,
        *,
        replace_broken: bool,
        cache_bytes: int = 0,
        entities: Sequence[tuple[Entity, ...]] | None = None,
    ) -> None:
        """
        Args:
            cache_bytes: memory for decoded images, before any augmentation, in each process that loads.
            entities: of each pair, in place of those of the manifest.
        """
        self.manifest = manifest
        self._entities = entities
        self.limits = limits
        self.seed = seed
        self.replace_broken = replace_broken
        self._augments_image = limits.augment is not None and limits.augment.image.active
        flips = limits.augment is not None and limits.augment.image.flip > 0
        self._directed = _directed_groups(manifest) if flips else frozenset[str]()
        self._samples: dict[int, Sample] = {}  # where nothing is augmented: images as they are used
        self._images: dict[int, Pixels] = {}
        self._caches = cache_bytes > 0
        self._cache_left = cache_bytes
        text = limits.augment.text if limits.augment else None
        # Candidates that are linked to entities are those of a tagger.
        self._augment_text = TextAugmenter(text, coarse=limits.link_iou is None) if text and text.active else None

    def for_evaluation(self) -> "PairDataset":
        """The pairs as they are, without views and augmentation; broken images are incidents.

        Shares the cached samples, but not the cached images: these are decoded larger, for crops, and would give other
        pixels in the process that has them.
        """
        other = copy(self)
        other._images = {}
        other._caches = False
        other.replace_broken = False
        other.limits = replace(self.limits, views=None, augment=None)
        other._augments_image = False
        other._cache_left = 0
        other._augment_text = None
        return other

    def __len__(self) -> int:
        return len(self.manifest)

    def most_parts(self, index: int) -> int:
        """Upper bound of the spans, and of the regions, of a pair's sample; the image is not read."""
        record, limits = self._record(index), self.limits
        proposals = len(record.objects) if limits.objects_only else min(limits.proposals, len(record.objects))
        boxes = 0 if limits.objects_only else sum(len(entity.boxes) for entity in record.entities)
        return max(_at_most(len(record.entities), limits.max_spans), _at_most(boxes + proposals, limits.max_regions))

    def __getitem__(self, key: Key) -> Sample | Incident:
        draws = Draws(self.seed, *key)
        broken: list[Incident] = []
        for stand_in in self._places_to_try(draws):
            try:
                sample = self._with_text(self._prepared(stand_in, draws), draws)
                if broken:
                    sample = replace(sample, incidents=(*broken, *sample.incidents))
                return self._with_views(sample, draws)
            except DataError as error:
                broken.append(Incident("broken image", self.manifest[stand_in].id, str(error)))
            if not self.replace_broken:
                return broken[0]
        raise DataError(
            f"{self.manifest.path}: {REPLACEMENT_TRIES} images in a row cannot be read; the last: {broken[-1].detail}"
        )

    def _places_to_try(self, draws: Draws) -> Iterator[int]:
        """The pair itself, then its replacements."""
        yield draws.index
        generator = draws.replacements()
        for _ in range(REPLACEMENT_TRIES - 1):
            yield int(generator.integers(len(self.manifest)))

    def _with_text(self, sample: Sample, draws: Draws) -> Sample:
        """The sample with a newly drawn text; unchanged when none is drawn."""
        if self._augment_text is None:
            return sample
        return self._augment_text(sample, self.manifest[sample.place], draws.stream(Stream.TEXT))

    def _with_views(self, sample: Sample, draws: Draws) -> Sample:
        """The sample with newly drawn masked views; unchanged when none are drawn."""
        settings = self.limits.views
        if settings is None:
            return sample
        generator = draws.stream(Stream.VIEWS)
        proposals = Proposals(*sample.proposals) if sample.proposals else Proposals.none()
        grid = self.limits.view_grid
        plan = draw_views(
            settings, grid, sample.regions, sample.links, proposals, generator, picture=sample.picture_cells(grid)
        )
        meaning = view_meaning(plan.coverage, sample.regions, sample.links, settings)
        fill = settings.fill
        pixels = None if fill == "drop" else fill_pixels(sample.pixels, plan.hidden, fill, generator, sample.content)
        return replace(sample, views=SampleViews(plan.hidden, meaning.sentence, meaning.spans, pixels))

    def _prepared(self, place: int, draws: Draws) -> Sample:
        if self._augments_image:
            return self._prepare(self._decoded(place), place, draws)
        if place in self._samples:
            return self._samples[place]
        sample = self._prepare(self._images.get(place), place, draws)
        if self._fits_cache(sample.pixels.nbytes + (0 if sample.crops is None else sample.crops.nbytes)):
            self._samples[place] = sample
        return sample

    def _prepare(self, image: Pixels | None, place: int, draws: Draws) -> Sample:
        record = self._record(place)
        return prepare(
            image or self.manifest.image_path(record),
            record.text,
            record.entities,
            record.objects,
            self.limits,
            id=record.id,
            group=record.group_key,
            place=place,
            relevance=record.relevance if self.manifest.has_relevance else None,
            draws=draws,
            may_flip=record.group_key not in self._directed,
        )

    def _record(self, place: int) -> Record:
        record = self.manifest[place]
        return record if self._entities is None else replace_fields(record, entities=self._entities[place])

    def _decoded(self, place: int) -> Pixels | None:
        """The pixels of a pair's image from the cache, or as large as for it if it is full; None without a cache."""
        if place in self._images or not self._caches:
            return self._images.get(place)
        with open_picture(self.manifest.image_path(self.manifest[place])) as picture:
            pixels = picture.decode(least_reduction(picture.size, self.limits))
        if self._fits_cache(pixels.values.nbytes):
            self._images[place] = pixels
        return pixels

    def _fits_cache(self, size: int) -> bool:
        """Whether there was room, which is taken then."""
        fits = size <= self._cache_left
        self._cache_left -= size if fits else 0
        return fits


def _directed_groups(manifest: Manifest) -> frozenset[str]:
    """Groups with a text that a mirror image may contradict: each text of an image is a positive of it.

    Of other languages than English and Chinese the words of direction are not known.
    """

    def may_be_directed(record: Record) -> bool:
        further = ((other.text, other.lang or record.lang) for other in record.paraphrases)
        texts = ((record.text, record.lang), *further)
        return any(has_direction(text) or not is_english_or_chinese(lang) for text, lang in texts)

    return frozenset(record.group_key for record in manifest if may_be_directed(record))


def _at_most(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)
