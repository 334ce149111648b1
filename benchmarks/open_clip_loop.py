"""open_clip's own training loop on the demo's scenes, beside `plans/levels-demo.yaml`.

    pip install open_clip_torch
    spanbox data demo runs/demo-data --n 32000
    python benchmarks/open_clip_loop.py

open_clip trains (`train_one_epoch`, `ClipLoss`, its AdamW groups and schedule, its clamp of the temperature); the
towers, the initial weights, the batches and the evaluation are those of the recipe `demo`. The defaults are open_clip's
for a ViT, with two exceptions: float32, and warm-up for a twentieth of the run, since the default of 10,000 steps is
longer than the run. The first seed searches the grid of learning rates on the validation set; the default and the best
rate are then measured on the test set, with all seeds.
"""

import argparse
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardware import describe
from spanbox.config import RunConfig, load_config
from spanbox.data.dataset import PairDataset
from spanbox.data.loader import training_batches
from spanbox.data.sampler import StepSampler
from spanbox.evaluation.evaluate import evaluate
from spanbox.models.dual_encoder import DualEncoder
from spanbox.wiring.building import build_model, make_collator, make_tokenizer, open_manifest, sample_limits
from spanbox.wiring.embedding import embed, evaluation_dataset
from spanbox.wiring.inference import Inference

DEFAULT = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2, "logit_scale": 1 / 0.07}
WARMUP = 0.05  # of the steps
RATES = (5e-4, 1e-3, 2.5e-3, 5e-3)
Metrics = dict[str, float]
METRICS = ("retrieval.i2t.r1", "retrieval.t2i.r1")


@dataclass(frozen=True)
class OpenClip:
    """The parts of open_clip that train."""

    train_one_epoch: Any
    ClipLoss: Any
    cosine_lr: Any


def import_open_clip() -> OpenClip:
    stand_in_for_torchvision()
    try:
        from open_clip.loss import ClipLoss
        from open_clip_train.scheduler import cosine_lr
        from open_clip_train.train import train_one_epoch
    except ModuleNotFoundError as error:
        sys.exit(f"this benchmark needs open_clip ({error}); install it with `pip install open_clip_torch`")
    return OpenClip(train_one_epoch, ClipLoss, cosine_lr)


def stand_in_for_torchvision() -> None:
    """Let open_clip be imported where torchvision does not work with the installed PyTorch.

    open_clip imports it for image transforms, which this benchmark does not use: empty classes take their place.
    """
    try:
        import torchvision.ops.misc
        import torchvision.transforms  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
            module = _Placeholder(f"torchvision{name}")
            sys.modules[module.__name__] = module
            parent, _, child = module.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)


class _EmptyClass(type):
    """A class of which every attribute is the class itself."""

    def __getattr__(cls, name: str) -> Any:
        return cls


class _Placeholder(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _EmptyClass(name, (), {})


class Clip(nn.Module):
    """The two towers of a dual encoder and a temperature, in the form that open_clip trains."""

    def __init__(self, encoder: DualEncoder, pad_id: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pad_id = pad_id
        self.logit_scale = nn.Parameter(torch.tensor(DEFAULT["logit_scale"]).log())

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        encoder = self.encoder
        image = encoder.image_projection(encoder.vision(encoder.normalised(images)).pooled)
        text = encoder.text_projection(encoder.text(texts, texts != self.pad_id).pooled)
        return {
            "image_features": F.normalize(image, dim=-1),
            "text_features": F.normalize(text, dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


class Batches:
    """A fixed number of batches, in the form that open_clip reads."""

    def __init__(self, batches: Iterable[Any], count: int, batch_size: int) -> None:
        self.batches = batches
        self.num_batches = count
        self.num_samples = count * batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for loaded in self.batches:
            yield loaded.batch.pixels, loaded.batch.token_ids

    @property
    def dataloader(self) -> "Batches":
        return self

    def set_epoch(self, epoch: int) -> None:
        """The order of the batches depends on the seed alone."""


def make_optimiser(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """As `open_clip_train.main` makes it, which has no function for it."""
    named = list(model.named_parameters())
    plain = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    kept = {id(parameter) for parameter in plain}
    rest = [parameter for _, parameter in named if id(parameter) not in kept]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": DEFAULT["weight_decay"]}]
    return torch.optim.AdamW(groups, lr=lr, betas=DEFAULT["betas"], eps=DEFAULT["eps"])


def train_and_evaluate(open_clip: OpenClip, config: RunConfig, lr: float, data: Path) -> dict[str, Metrics]:
    """The metrics of one run on the validation set and on the test set."""
    steps, size = config.train.steps, config.train.batch_size
    manifest = open_manifest(config, config.data.train, "data.train", subset=config.data.subset)
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer(config, manifest)
    encoder = build_model(config.model, tokenizer.pad_token_id)
    for unused in (encoder.span_projection, encoder.region_projection):
        unused.requires_grad_(False)
    model = Clip(encoder, tokenizer.pad_token_id)
    limits = sample_limits(config, encoder, training=True)
    cache = round(config.data.cache_gb * 2**30)
    dataset = PairDataset(manifest, limits, config.seed, replace_broken=True, cache_bytes=cache)
    sampler = StepSampler(len(dataset), size, config.seed, 0, steps)
    loader = training_batches(dataset, make_collator(config, tokenizer), sampler, 0, pin_memory=False)
    optimiser = make_optimiser(model, lr)
    schedule = open_clip.cosine_lr(optimiser, lr, round(WARMUP * steps), steps)
    arguments = Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        grad_clip_norm=None,
        horovod=False,
        rank=0,
        local_rank=0,
        world_size=1,
        batch_size=size,
        log_every_n_steps=100,
        wandb=False,
    )
    open_clip.train_one_epoch(
        model,
        {"train": Batches(loader, steps, size)},
        open_clip.ClipLoss(),
        0,
        optimiser,
        None,
        schedule,
        None,
        arguments,
    )
    encoder.eval()
    inference = Inference(encoder, tokenizer, config)
    found = {}
    for part in ("val", "test"):
        held_out = evaluation_dataset(inference, open_manifest(config, f"{data}/{part}.jsonl", part))
        bank, _ = embed(inference, held_out)
        found[part] = evaluate(bank, intervals=False).metrics
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data"))
    parser.add_argument("--subset", type=int, default=8000, help="training scenes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one searches")
    arguments = parser.parse_args()
    open_clip = import_open_clip()
    torch.set_num_threads(1)

    first, *others = arguments.seeds

    def run(lr: float, seed: int) -> dict[str, Metrics]:
        overrides = [
            f"data.train={arguments.data}/train.jsonl",
            f"data.subset={arguments.subset}",
            f"train.steps={arguments.steps}",
            f"seed={seed}",
        ]
        began = time.process_time()
        found = train_and_evaluate(open_clip, load_config("demo", overrides), lr, arguments.data)
        took = time.process_time() - began
        for part, metrics in found.items():
            shown = "  ".join(f"{name} {metrics[name]:.3f}" for name in METRICS)
            print(f"lr {lr:g}, seed {seed}, {took:.0f} s, {part}: {shown}", file=sys.stderr, flush=True)
        return found

    searched = {lr: run(lr, first) for lr in RATES}
    best = max(RATES, key=lambda lr: sum(searched[lr]["val"][name] for name in METRICS))
    rows = {lr: [searched[lr]["test"], *(run(lr, seed)["test"] for seed in others)] for lr in {DEFAULT["lr"], best}}
    version = metadata.version("open_clip_torch")
    print(f"{describe()}; open_clip_torch {version}; {arguments.steps} steps; best rate {best:g}\n")
    print(f"| open_clip's loop | {' | '.join(METRICS)} |\n|---|---:|---:|")
    for lr, found in rows.items():
        cells = [_mean([metrics[name] for metrics in found]) for name in METRICS]
        print(f"| learning rate {lr:g} | {' | '.join(cells)} |")


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
