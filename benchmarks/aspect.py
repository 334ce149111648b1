"""The cost of a training step with images squashed to a square, and with pictures of several shapes beside padding.

    python benchmarks/aspect.py                                            small towers, for a CPU
    python benchmarks/aspect.py --size base --pairs 8 --operations         BERT-base and ViT-B/16 at 224 px, counted
    python benchmarks/aspect.py --size base --pairs 64                     for a GPU

The steps run in turn on the same batch, as in `views.py`; `mixed` deals five shapes in turn, so images form groups.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from spanbox.data.augment_image import fitted
from spanbox.structures import Batch
from views import print_costs
from workload import SIZES, TOKENS, make_batch, make_model, make_trainer

SHAPES: dict[str, list[tuple[int, int]]] = {
    "1:1": [(1, 1)],
    "4:3": [(4, 3)],
    "16:9": [(16, 9)],
    "mixed": [(4, 3), (3, 4), (3, 2), (16, 9), (1, 1)],
}


def padded(batch: Batch, shapes: list[tuple[int, int]]) -> Batch:
    """The batch with pictures of these shapes in turn, whose regions lie in them."""
    side = batch.pixels.shape[-1]
    sizes = [fitted(*shapes[pair % len(shapes)], side) for pair in range(len(batch))]
    content = torch.tensor(sizes)
    return replace(batch, content=content, regions=batch.regions * content.repeat(1, 2)[:, None] / side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operations", action="store_true", help="count operations instead of seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    model = make_model(arguments.size)
    batch = make_batch(arguments.pairs, model.vision.image_size)
    settings = {"device": arguments.device, "batch_size": arguments.pairs, "chunk_size": arguments.pairs}
    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(model, Path(name), **settings)
        batches = {"squash": batch, **{f"pad, {shape}": padded(batch, sizes) for shape, sizes in SHAPES.items()}}
        steps = {name: lambda one=one: trainer.train_step(one, []) for name, one in batches.items()}
        print_costs(steps, arguments, TOKENS)


if __name__ == "__main__":
    main()
