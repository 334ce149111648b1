"""The pairs of a manifest as samples, by step and index; a pair with a broken image is replaced."""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace

from torch.utils.data import Dataset

from spanbox.data.draws import Draws, Stream
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest, Record
from spanbox.data.mask_effects import fill_pixels, view_meaning
from spanbox.data.masking import Proposals, draw_views
from spanbox.data.prepare import prepare
from spanbox.data.sample_text import TextAugmenter
from spanbox.errors import DataError
from spanbox.structures import Incident, Sample, SampleViews

REPLACEMENT_TRIES = 20


class PairDataset(Dataset[Sample | Incident]):
    """Samples by (step, index). Every random draw of a sample depends on (seed, step, index) alone.

    In training a pair with a broken image is replaced by another pair of the manifest, and the sample carries the
    incident; in evaluation (`replace_broken=False`) the item is the incident.
    """

    def __init__(
        self, manifest: Manifest, limits: SampleLimits, seed: int, *, replace_broken: bool, cache_bytes: int = 0
    ) -> None:
        """`cache_bytes`: memory for decoded samples, in each process that loads."""
        self.manifest = manifest
        self.limits = limits
        self.seed = seed
        self.replace_broken = replace_broken
        self._cache: dict[int, Sample] = {}
        self._cache_left = cache_bytes
        text = limits.augment.text if limits.augment else None
        self._augment_text = TextAugmenter(text) if text and text.active else None

    def for_evaluation(self) -> "PairDataset":
        """The pairs as they are, without views and augmentation; broken images are incidents. Shares the cache."""
        other = copy(self)
        other.replace_broken = False
        other.limits = replace(self.limits, views=None, augment=None)
        other._cache_left = 0
        other._augment_text = None
        return other

    def __len__(self) -> int:
        return len(self.manifest)

    def most_parts(self, index: int) -> int:
        """Upper bound of the spans, and of the regions, of a pair's sample; the image is not read."""
        record, limits = self.manifest[index], self.limits
        proposals = len(record.objects) if limits.objects_only else min(limits.proposals, len(record.objects))
        boxes = 0 if limits.objects_only else sum(len(entity.boxes) for entity in record.entities)
        return max(_at_most(len(record.entities), limits.max_spans), _at_most(boxes + proposals, limits.max_regions))

    def __getitem__(self, key: tuple[int, int]) -> Sample | Incident:
        step, index = key
        broken: list[Incident] = []
        for stand_in in self._indices_to_try(step, index):
            try:
                sample = self._with_text(self._cached(stand_in), step, index)
                if broken:
                    sample = replace(sample, incidents=(*broken, *sample.incidents))
                return self._with_views(sample, step, index)
            except DataError as error:
                broken.append(Incident("broken image", self.manifest[stand_in].id, str(error)))
            if not self.replace_broken:
                return broken[0]
        raise DataError(
            f"{self.manifest.path}: {REPLACEMENT_TRIES} images in a row cannot be read; the last: {broken[-1].detail}"
        )

    def _indices_to_try(self, step: int, index: int) -> Iterator[int]:
        """The pair itself, then its replacements."""
        yield index
        generator = Draws(self.seed, step, index).replacements()
        for _ in range(REPLACEMENT_TRIES - 1):
            yield int(generator.integers(len(self.manifest)))

    def _with_text(self, sample: Sample, step: int, index: int) -> Sample:
        """The sample with a newly drawn text; unchanged when none is drawn."""
        if self._augment_text is None:
            return sample
        generator = Draws(self.seed, step, index).stream(Stream.TEXT)
        return self._augment_text(sample, self.manifest[sample.place], generator)[0]

    def _with_views(self, sample: Sample, step: int, index: int) -> Sample:
        """The sample with newly drawn masked views; unchanged when none are drawn."""
        settings = self.limits.views
        if settings is None:
            return sample
        generator = Draws(self.seed, step, index).stream(Stream.VIEWS)
        proposals = Proposals(*sample.proposals) if sample.proposals else Proposals.none()
        plan = draw_views(settings, self.limits.view_grid, sample.regions, sample.links, proposals, generator)
        meaning = view_meaning(plan.coverage, sample.regions, sample.links, settings)
        fill = settings.fill
        pixels = None if fill == "drop" else fill_pixels(sample.pixels, plan.hidden, fill, generator)
        return replace(sample, views=SampleViews(plan.hidden, meaning.sentence, meaning.spans, pixels))

    def _cached(self, index: int) -> Sample:
        if index in self._cache:
            return self._cache[index]
        sample = self._read(self.manifest[index], index)
        size = sample.pixels.nbytes + (0 if sample.crops is None else sample.crops.nbytes)
        if size <= self._cache_left:
            self._cache_left -= size
            self._cache[index] = sample
        return sample

    def _read(self, record: Record, place: int) -> Sample:
        return prepare(
            self.manifest.image_path(record),
            record.text,
            record.entities,
            record.objects,
            self.limits,
            id=record.id,
            group=record.group_key,
            place=place,
            relevance=record.relevance if self.manifest.has_relevance else None,
        )


def _at_most(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)
