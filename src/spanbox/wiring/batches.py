"""The batches of a run, in the order of its sampler.

If hard neighbours are mined during the run, the order changes with each mining. The mined neighbours are kept in the
run folder, so that a resumed run draws the same batches.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from spanbox.config import RunConfig
from spanbox.data.dataset import PairDataset
from spanbox.data.loader import training_batches
from spanbox.data.manifest import Manifest
from spanbox.data.neighbours import Neighbours, load_neighbours, remove_neighbours, save_neighbours
from spanbox.data.sampler import StepSampler
from spanbox.engine.checkpoint import step_folders
from spanbox.engine.trainer import Trainer
from spanbox.errors import DataError
from spanbox.progress import Progress
from spanbox.wiring.building import make_collator, sample_limits
from spanbox.wiring.inference import Inference
from spanbox.wiring.mining import check_search, mine

MINED = "neighbours"  # folder of a run
_MINED_FILE = re.compile(r"step-([0-9]{6,})\.npy")


class TrainingBatches:
    """This rank's share of the batches of the steps that are left, for one pass.

    Mining is shown as a part of `progress`.

    Raises:
        ConfigError: a package that mining needs is not installed.
        DataError: the neighbours that `config` names are missing, damaged, or another manifest's; while iterating,
            those that a resumed run goes on with.
    """

    def __init__(
        self, config: RunConfig, manifest: Manifest, tokenizer: Any, trainer: Trainer, progress: Progress
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.trainer = trainer
        self.progress = progress
        self.pairs = config.train.batch_size // config.data.augment.copies  # distinct ones of a batch
        self.dataset = PairDataset(
            manifest,
            sample_limits(config, trainer.model, training=True),
            config.seed,
            replace_broken=True,
            cache_bytes=round(config.data.cache_gb * 2**30),
        )
        if config.data.mining.every:
            check_search(config.data.mining.search)
        given = config.data.neighbours
        self.given = load_neighbours(Path(given), manifest.path, len(manifest)) if given else None

    def __iter__(self) -> Iterator[Any]:
        train, step = self.config.train, self.trainer.step
        end = None if train.minutes else train.steps
        mined_every = self.config.data.mining.steps(len(self.dataset) // self.pairs)
        if mined_every is None:
            yield from self._of_steps(step, end, self.given)
            return
        while end is None or step < end:
            mined_at = step - step % mined_every
            neighbours = self._mined(mined_at) if mined_at else self.given
            stop = mined_at + mined_every if end is None else min(mined_at + mined_every, end)
            yield from self._of_steps(step, stop, neighbours)
            step = stop

    def _of_steps(self, start: int, stop: int | None, neighbours: Neighbours | None) -> Iterable[Any]:
        config, ranks = self.config, self.trainer.ranks
        sampler = StepSampler(
            len(self.dataset),
            self.pairs,
            config.seed,
            start,
            stop,
            rank=ranks.rank,
            world_size=ranks.world_size,
            neighbours=neighbours,
            hard_share=config.data.hard_share,
            copies=config.data.augment.copies,
        )
        # Chunks of similar length carry less padding. Where a chunk is contrasted with itself alone they stay mixed.
        collator = make_collator(config, self.tokenizer, sort_by_length=config.train.accumulation == "exact")
        device = self.trainer.device
        workers = config.data.worker_count(device)
        return training_batches(self.dataset, collator, sampler, workers, pin_memory=device.type == "cuda")

    def _mined(self, mined_at: int) -> Neighbours:
        """The neighbours mined at a step; they are mined now if the run is at that step."""
        manifest, ranks = self.dataset.manifest.path, self.trainer.ranks
        path = self.trainer.run_dir / MINED / f"step-{mined_at:06d}.npy"
        if self.trainer.step == mined_at:
            if ranks.is_main or ranks.is_sharded:
                neighbours = self._mine()
            if ranks.is_main:
                _remove_unneeded(path.parent, step_folders(self.trainer.run_dir / "checkpoints"))
                origin = {"step": mined_at, **self.config.data.mining.model_dump()}
                save_neighbours(path, neighbours, manifest, origin)
            ranks.wait_for_all()
        elif not path.is_file():
            raise DataError(
                f"{path}: no such file of neighbours, which the run needs to continue from step {self.trainer.step}. "
                "If data.mining.every, train.batch_size or data.subset is another than before, set it back; else copy "
                "the run again, or start a new one"
            )
        return load_neighbours(path, manifest, len(self.dataset))

    def _mine(self) -> Neighbours:
        model = self.trainer.model
        model.eval()
        dataset = self.dataset.for_evaluation()
        inference = Inference(model, self.tokenizer, self.config)
        mined = mine(inference, dataset, self.config.data.mining, self.progress.part)
        model.train()
        return mined.neighbours


def _remove_unneeded(folder: Path, saved: Collection[int]) -> None:
    """Remove the files of neighbours that a run resumed from a checkpoint of these steps would not use."""
    names = ((_MINED_FILE.fullmatch(path.name), path) for path in folder.glob("step-*.npy"))
    mined = sorted((int(found[1]), path) for found, path in names if found)
    for (step, path), (following, _) in pairwise(mined):
        if not any(step < one < following for one in saved):  # a run that stands at `step` itself mines again
            remove_neighbours(path)
