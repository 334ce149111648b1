"""A page of samples of a manifest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spanbox.config import load_config
from spanbox.data.augment import AugmentSettings
from spanbox.data.contact_sheet import contact_sheet
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest
from spanbox.data.masking import mask_grid
from spanbox.files import check_writable_file, write_text
from spanbox.structures import Sample

COPIES = 6  # augmented samples of each pair
PROPOSALS = 8  # shown besides the entities' boxes


def show_samples(
    manifest: Path,
    out: Path,
    *,
    n: int,
    with_views: bool,
    with_augmented: bool,
    size: int,
    patch: int,
    overrides: Sequence[str],
) -> int:
    """Write a page of `n` pairs, spread evenly over the manifest. Returns how many could be read.

    Raises:
        OutputError: `out` cannot be written; checked first.
    """
    check_writable_file(out, ".html")
    data = load_config("demo", overrides).data
    opened = Manifest(manifest, data.inverted_boxes)
    settings = data.views
    grid = mask_grid(settings, size, patch)
    limits = SampleLimits(size, data.aspect, proposals=PROPOSALS, views=settings, view_grid=grid)
    dataset = PairDataset(opened, limits, seed=0, replace_broken=False)
    n = min(n, len(opened))
    items = [dataset[0, index * len(opened) // n] for index in range(n)]
    samples = [item for item in items if isinstance(item, Sample)]
    augmented = _augmented(opened, samples, replace(limits, augment=_shown(data.augment))) if with_augmented else []
    page = contact_sheet(samples, manifest.name, settings if with_views else None, grid, augmented=augmented)
    write_text(out, page)
    return len(samples)


def _shown(settings: AugmentSettings) -> AugmentSettings:
    """The augmentation of the settings, or the standard presets if they have none."""
    if settings.image.active or settings.text.active:
        return settings
    return AugmentSettings.model_validate({"image": {"preset": "standard"}, "text": {"preset": "standard"}})


def _augmented(manifest: Manifest, samples: Sequence[Sample], limits: SampleLimits) -> list[list[Sample]]:
    dataset = PairDataset(manifest, limits, seed=0, replace_broken=False)
    drawn = ([dataset[step, sample.place] for step in range(COPIES)] for sample in samples)
    return [[copy for copy in copies if isinstance(copy, Sample)] for copies in drawn]
