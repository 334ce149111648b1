"""How many rows of each tower are encoded at a time: given, measured, or found out when memory ran out."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from spanbox.engine.distributed import Ranks
from spanbox.engine.large_batch import even_chunk
from spanbox.engine.memory import ADVICE, GIB, choose_chunk_sizes, measure_step, memory_budget
from spanbox.engine.settings import TrainSettings
from spanbox.engine.task import Forward
from spanbox.errors import ConfigError, TrainingError


class ChunkSizes(dict[str, int]):
    """Rows per chunk by the name of the tower."""

    @classmethod
    def of(
        cls,
        settings: TrainSettings,
        forward: Forward,
        example: Callable[[int], Any],
        ranks: Ranks,
    ) -> "ChunkSizes":
        """Those of the settings, or the largest that fit into memory on every rank.

        Args:
            forward: of the task, as in training.
            example: a batch of that many pairs, as large as pairs get.
        """
        if isinstance(settings.chunk_size, int):
            return cls(dict.fromkeys(forward.task.towers, settings.chunk_size))
        if isinstance(settings.chunk_size, dict):
            return cls(settings.chunk_size)
        if ranks.world_size > 1 and settings.parallel == "fsdp":
            raise ConfigError("train.chunk_size: auto cannot measure a model that is cut up (fsdp); give a number")
        memory = measure_step(forward, example)
        own_pairs = settings.batch_size // ranks.world_size
        budget = memory_budget(settings.memory_gb, forward.device, memory.weights)
        own = choose_chunk_sizes(memory, own_pairs, budget)
        sizes = cls({name: round(-ranks.largest(-size)[0]) for name, size in own.items()})
        rows = {name: round(tower.rows * own_pairs) for name, tower in memory.towers.items()}
        if ranks.is_main and any(sizes[name] < rows[name] for name in rows):
            shown = ", ".join(f"{sizes[name]} of {rows[name]} rows of the {name} tower" for name in rows)
            peak = f"{memory.peak(own_pairs, sizes) / GIB:.1f} of {budget / GIB:.1f} GB"
            print(f"train.chunk_size=auto: {shown} at a time ({peak})", file=sys.stderr)
        return sizes

    def halve(self, rows: dict[str, int], rank: int, world_size: int, error: torch.OutOfMemoryError) -> None:
        """Half of the chunks of a step with so many rows, which did not fit.

        Raises:
            TrainingError: nothing is left to halve, or other ranks have begun to wait for this one.
        """
        used = {name: even_chunk(count, self[name]) for name, count in rows.items()}
        smaller = {name: max(1, size // 2) for name, size in used.items()}
        if world_size > 1:
            advised = ", ".join(f"{name}: {size}" for name, size in smaller.items())
            raise TrainingError(
                f"out of memory on rank {rank} with chunks of {_shown(used)}: set train.chunk_size to "
                f"{{{advised}}}. {ADVICE}"
            ) from error
        if smaller == used:
            raise TrainingError(f"out of memory with a single row in a chunk ({error}). {ADVICE}") from error
        self.update(smaller)
        print(f"out of memory with chunks of {_shown(used)}: going on with {_shown(smaller)}", file=sys.stderr)


def _shown(sizes: dict[str, int]) -> str:
    return " and ".join(f"{size} rows ({name})" for name, size in sizes.items())
