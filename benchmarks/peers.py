"""Time and memory of a large-batch step beside the peers', all with the same two towers, pairs and loss.

    pip install --no-deps sentence-transformers          for its column
    python benchmarks/peers.py                           256 pairs in chunks of 32
    python benchmarks/peers.py --freeze image --chunk 16 --pairs 64
    python benchmarks/peers.py --size base               BERT-base and ViT-B/16 at 224 px, for a GPU (bfloat16)

Columns:

- bare loop: forward and backward pass of all pairs at once, the loss, AdamW.
- spanbox: `Trainer.train_step` of the package, coarse level only.
- GradCache: the algorithm of its paper (Gao et al., 2021, section 3). Each tower encodes its chunks without a graph,
  then come the loss and its gradient at the features, then each tower encodes its chunks again. Texts are padded as in
  the batch.
- cached loss: `CachedMultipleNegativesRankingLoss` of sentence-transformers, where the package is installed.
- open_clip: the accumulation of its `train_one_epoch`, the loss of the whole batch for each chunk. Restated here, since
  that function cannot be called without a data loader.

The loss is the symmetric cross-entropy of sentences and images (the cached loss: in one direction). Times are medians
of rounds in turn in one process. Memory is measured for each column in a process of its own: on a GPU what PyTorch
allocated, on a CPU the bytes of all live tensors, and the largest resident memory above that before the first step.
Weights, gradients and moments of AdamW are included and the same everywhere.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardware import describe
from spanbox.engine.large_batch import RandomState
from spanbox.engine.memory import PeakMemory
from spanbox.engine.optimiser import make_optimiser
from spanbox.engine.settings import TrainSettings
from spanbox.models.dual_encoder import DualEncoder
from spanbox.structures import Batch
from throughput import without_spans
from workload import frozen, make_batch, make_model, make_trainer

MIB = 2**20
LENGTHS = {"equal lengths": (32, 32), "lengths as in captions": (8, 32)}  # tokens
Step = Callable[[], object]


def pairs_of(count: int, image_size: int, lengths: str) -> Batch:
    """Pairs whose texts have so many tokens, most of them short, as captions are."""
    shortest, longest = LENGTHS[lengths]
    batch = without_spans(make_batch(count, image_size, tokens=longest))
    share = torch.rand(count, generator=torch.Generator().manual_seed(1)) ** 2
    length = shortest + ((longest - shortest) * share).round().long()
    mask = torch.arange(longest) < length[:, None]
    return replace(batch, token_mask=mask, token_ids=batch.token_ids * mask)


class Peer:
    """The two towers with projections, a temperature and an optimiser."""

    def __init__(self, batch: Batch, size: str, freeze: str | None, device: str) -> None:
        self.device = torch.device(device)
        self.model: DualEncoder = frozen(make_model(size), freeze).to(device).train()
        self.scale = nn.Parameter(torch.tensor(2.66, device=device))
        heads = [self.model.text_projection, self.model.image_projection]
        owner = nn.Module()
        owner.register_parameter("scale", self.scale)
        self.optimiser = make_optimiser([self.model.text, self.model.vision], heads, owner, TrainSettings().optimiser)
        self.pairs = self.batch = batch
        self.bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def text(self, rows: slice = slice(None)) -> Tensor:
        with self.autocast():
            states = self.model.text(self.batch.token_ids[rows], self.batch.token_mask[rows])
            projected = self.model.text_projection(states.pooled)
        return F.normalize(projected.float(), dim=-1)

    def image(self, rows: slice = slice(None)) -> Tensor:
        with self.autocast():
            states = self.model.vision(self.model.normalised(self.batch.pixels[rows]))
            projected = self.model.image_projection(states.pooled)
        return F.normalize(projected.float(), dim=-1)

    def loss(self, text: Tensor, image: Tensor) -> Tensor:
        logits = self.scale.exp() * text @ image.T
        targets = torch.arange(len(logits), device=self.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    def step(self, gradients: Callable[[], object]) -> Step:
        def run() -> None:
            self.batch = self.pairs.to(self.device)
            self.optimiser.zero_grad()
            gradients()
            nn.utils.clip_grad_norm_([p for group in self.optimiser.param_groups for p in group["params"]], 1.0)
            self.optimiser.step()

        return run


def bare_loop(peer: Peer, chunk: int) -> Step:
    return peer.step(lambda: peer.loss(peer.text(), peer.image()).backward())  # type: ignore[no-untyped-call]


def grad_cache(peer: Peer, chunk: int) -> Step:
    def gradients() -> None:
        chunks = [slice(start, start + chunk) for start in range(0, len(peer.batch), chunk)]
        states: list[list[RandomState]] = []
        with torch.no_grad():
            features = []
            for encode in (peer.text, peer.image):
                states.append([])
                parts = []
                for rows in chunks:
                    states[-1].append(RandomState.capture())
                    parts.append(encode(rows))
                features.append(torch.cat(parts).requires_grad_())
        peer.loss(*features).backward()  # type: ignore[no-untyped-call]
        for encode, feature, own in zip((peer.text, peer.image), features, states, strict=True):
            for rows, state in zip(chunks, own, strict=True):
                with state.replayed():
                    encoded = encode(rows)
                encoded.backward(feature.grad[rows])  # type: ignore[no-untyped-call, index]

    return peer.step(gradients)


def open_clip(peer: Peer, chunk: int) -> Step:
    def gradients() -> None:
        chunks = [slice(start, start + chunk) for start in range(0, len(peer.batch), chunk)]
        with torch.no_grad():
            cached = [(peer.text(rows), peer.image(rows)) for rows in chunks]
        for number, rows in enumerate(chunks):
            parts = [*cached[:number], (peer.text(rows), peer.image(rows)), *cached[number + 1 :]]
            text, image = (torch.cat(side) for side in zip(*parts, strict=True))
            peer.loss(text, image).backward()  # type: ignore[no-untyped-call]

    return peer.step(gradients)


def cached_loss(peer: Peer, chunk: int) -> Step:
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    class Encoder(nn.Module):
        """Both towers under the interface that the loss calls: features in, `sentence_embedding` out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = peer.model

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            rows = features["rows"]
            encode = peer.text if features["is_text"][0] else peer.image
            return {"sentence_embedding": encode(slice(int(rows[0]), int(rows[-1]) + 1))}

        def __getitem__(self, index: int) -> nn.Module:
            return self

    loss = CachedMultipleNegativesRankingLoss(Encoder(), scale=1 / 0.07, mini_batch_size=chunk)
    rows = torch.arange(len(peer.batch))
    sides = [{"rows": rows, "is_text": torch.full((len(rows),), text)} for text in (True, False)]
    return peer.step(lambda: loss(sides, torch.empty(0)).backward())


PEERS = {"bare loop": bare_loop, "GradCache": grad_cache, "cached loss": cached_loss, "open_clip": open_clip}


def make_step(name: str, arguments: argparse.Namespace, lengths: str, folder: Path) -> Step:
    image_size = make_model(arguments.size).vision.image_size
    batch = pairs_of(arguments.pairs, image_size, lengths)
    if arguments.device == "cuda":
        batch = batch.pin_memory()  # as from the loader
    if name != "spanbox":
        return PEERS[name](Peer(batch, arguments.size, arguments.freeze, arguments.device), arguments.chunk)
    trainer = make_trainer(
        frozen(make_model(arguments.size), arguments.freeze),
        folder,
        {"fine": {"weight": 0.0}},
        device=arguments.device,
        batch_size=arguments.pairs,
        chunk_size=arguments.chunk,
    )
    order = batch.token_mask.sum(dim=1).argsort()  # as the collator sorts them
    ordered = batch.map(lambda tensor: tensor[order])
    return lambda: trainer.train_step(ordered, [])


def measure_memory(name: str, arguments: argparse.Namespace, lengths: str) -> dict[str, float]:
    """MiB at the peak of two steps: allocated on a GPU, else of live tensors or resident above the start."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.device == "cuda":
            step = make_step(name, arguments, lengths, Path(folder))
            for _ in range(2):
                step()
            return {"allocated": torch.cuda.max_memory_allocated() / MIB}
        if arguments.tensors:
            with PeakMemory() as counted:
                step = make_step(name, arguments, lengths, Path(folder))
                for _ in range(2):
                    step()
            return {"live tensors": counted.peak / MIB}
        step = make_step(name, arguments, lengths, Path(folder))
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, not with the parent's
        for _ in range(3):
            step()
    return {"resident": resident("VmHWM") - before}


def resident(entry: str) -> float:
    """MiB of an entry of /proc/self/status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 1024


def measure_seconds(names: list[str], arguments: argparse.Namespace, lengths: str) -> dict[str, list[float]]:
    """Seconds of each round, the columns in turn, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: make_step(name, arguments, lengths, Path(folder)) for name in names}
        for number in range(arguments.rounds + 1):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if arguments.device == "cuda":
                    torch.cuda.synchronize()
                if number:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def in_own_process(name: str, lengths: str, *more: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--column", name, lengths, *more],
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def installed(name: str) -> bool:
    if name != "cached loss":
        return True
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        print("sentence-transformers is not installed: no column of its cached loss", file=sys.stderr)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=["small", "base"])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--freeze", choices=["text", "image"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--column", nargs=2, metavar=("NAME", "LENGTHS"), help="measure the memory of one column")
    parser.add_argument("--tensors", action="store_true", help="with --column: of live tensors, not resident memory")
    arguments = parser.parse_args()
    if arguments.column:
        print(json.dumps(measure_memory(arguments.column[0], arguments, arguments.column[1])))
        return
    names = [name for name in ("spanbox", *PEERS) if installed(name)]
    print(f"{describe()}; {arguments.size} towers, {arguments.pairs} pairs in chunks of {arguments.chunk}")
    for lengths in LENGTHS:
        seconds = measure_seconds(names, arguments, lengths)
        own = seconds["spanbox"]
        print(f"\n{lengths}; median of {arguments.rounds} rounds in turn\n")
        kinds = ["allocated"] if arguments.device == "cuda" else ["live tensors", "resident"]
        print(f"| step | seconds | against spanbox | {' | '.join(kinds)} |\n|---|" + "---:|" * (2 + len(kinds)))
        for name in names:
            ratio = statistics.median(other / ours for other, ours in zip(seconds[name], own, strict=True))
            memory = in_own_process(name, lengths)
            if arguments.device == "cpu":
                memory |= in_own_process(name, lengths, "--tensors")
            shown = " | ".join(f"{memory[kind]:,.0f} MiB" for kind in kinds)
            print(f"| {name} | {statistics.median(seconds[name]):.3f} | {ratio:.2f}x | {shown} |", flush=True)


if __name__ == "__main__":
    main()
