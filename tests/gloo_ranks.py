"""What each process of the tests of several ranks does: gradients of its share of a batch, saved by the main one."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from encoders import collate, fused, make_model, make_sample, padded, with_views
from spanbox.engine.distributed import Parallel, Ranks, whole
from spanbox.engine.large_batch import States, TowerStep, accumulate_gradients
from spanbox.engine.task import parameters
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import RegionSettings, SpanSettings
from spanbox.structures import Batch, Losses, Sample
from spanbox.tasks.pretraining import Pretraining

PAIRS = 12  # shared evenly by two and by three ranks


CROPS = {"spans": SpanSettings(source="own"), "regions": RegionSettings(source="crop")}


@dataclass(frozen=True)
class Scenario:
    """One way to take the gradient of the same batch."""

    parallel: Parallel
    text: int = 100  # rows of a chunk
    image: int = 100
    dropout: float = 0.0
    views: bool = False
    relevance: bool = False
    copies: bool = False
    padding: bool = False
    frozen: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64
    loss: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def chunk_sizes(self) -> dict[str, int]:
        return {"text": self.text, "image": self.image}


LEARNED = {"weight_schedule": "uncertainty", "negatives": {"per_anchor": 3}}
SCENARIOS = {
    "ddp whole": Scenario("ddp"),
    "ddp in chunks": Scenario("ddp", text=2, image=3),
    "ddp one by one": Scenario("ddp", text=1, image=1),
    "ddp with a frozen tower": Scenario("ddp", text=2, image=2, frozen=("text",)),
    "ddp with views": Scenario("ddp", text=2, image=5, views=True),
    "ddp with ranked views and a gate": Scenario("ddp", views=True, loss={"views": {"form": "margin", "gate": True}}),
    "ddp with learned weights and random negatives": Scenario("ddp", loss={"coarse": LEARNED, "fine": LEARNED}),
    "ddp in chunks with relevance": Scenario("ddp", text=2, image=3, relevance=True),
    "ddp in chunks with copies": Scenario(
        "ddp", text=2, image=3, copies=True, loss={"copies": {"weight": 0.5, **LEARNED}}
    ),
    "ddp with gates": Scenario("ddp", text=2, image=3, model={"fusion": fused("gated")}),
    "ddp with cross-attention": Scenario("ddp", model={"fusion": fused("cross_attention")}),
    "ddp with conditioned pooling": Scenario("ddp", text=2, image=3, model={"fusion": fused("conditioned_pooling")}),
    "ddp with fusion over frozen towers": Scenario(
        "ddp", text=2, image=2, frozen=("text", "vision"), model={"fusion": fused("cross_attention")}
    ),
    "ddp with small losses": Scenario("ddp", text=2, loss={"noise": {"kind": "small_loss", "warm_up": 0.0}}),
    "ddp with padded images": Scenario("ddp", text=2, image=3, padding=True),
    "ddp with padded images and fusion": Scenario(
        "ddp", text=2, image=2, padding=True, model={"fusion": fused("cross_attention")}
    ),
    "ddp with padded crops": Scenario("ddp", image=4, padding=True, model=CROPS),
    "fsdp with padded images": Scenario("fsdp", text=2, image=3, padding=True),
    "fsdp whole": Scenario("fsdp"),
    "fsdp in chunks": Scenario("fsdp", text=2, image=3),
    "fsdp in float32": Scenario("fsdp", text=2, image=3, dtype=torch.float32),
    "fsdp with crops": Scenario("fsdp", text=3, image=3, model=CROPS),
    "fsdp with views": Scenario("fsdp", text=2, image=3, views=True),
    "fsdp with cross-attention": Scenario("fsdp", text=2, image=3, model={"fusion": fused("cross_attention")}),
    "fsdp with conditioned pooling": Scenario("fsdp", model={"fusion": fused("conditioned_pooling")}),
    "fsdp with a frozen tower": Scenario("fsdp", text=2, image=2, frozen=("vision",)),
}


def samples(*, relevance: bool = False, copies: bool = False, padding: bool = False) -> list[Sample]:
    """The later the pair, the more spans and regions: ranks differ in their number and in their padding. Of `copies`
    three are of one group, which ranks do not share evenly. With `padding` the first pictures are of one shape, the
    later ones of four: ranks differ in their groups of images."""
    made = [make_sample(number, spans=number // 3, regions=number // 2) for number in range(PAIRS)]
    if copies:
        made = [replace(sample, group=number // 3) for number, sample in enumerate(made)]
    if padding:
        heights = [*[8] * 6, *[5, 13, 20, 32] * 2]
        made = [padded(one, (32, height)) for one, height in zip(made, heights, strict=False)]
    return [_with_relevance(sample) for sample in made] if relevance else made


def _with_relevance(sample: Sample) -> Sample:
    """The sample with a relevance of its own, and links of another."""
    strength = (sample.place % 4) / 3
    return replace(sample, relevance=strength, link_relevance=sample.links * (1 - strength))


def own_batch(ranks: Ranks, *, views: bool = False, **kind: bool) -> Batch:
    """The pairs of this rank, of the kind that `samples` makes."""
    share = PAIRS // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    own_samples = samples(**kind)[own]
    return with_views(collate(*samples()))[own] if views else collate(*own_samples)


def gradients(scenario: Scenario, ranks: Ranks) -> dict[str, Tensor]:
    """Gradient of every parameter, and the losses, of the whole batch."""
    torch.manual_seed(0)
    model = make_model(dropout=scenario.dropout, **scenario.model).to(scenario.dtype)
    settings = LossSettings.model_validate(scenario.loss)
    objective = Objective(settings, dim=8, fusion=model.settings.fusion.kind).to(scenario.dtype)
    for name in scenario.frozen:
        model.get_submodule(name).requires_grad_(False)
    task = Pretraining(model, objective)
    ranks.share_weights(model, task.towers.values(), scenario.parallel)
    kind = {"relevance": scenario.relevance, "copies": scenario.copies, "padding": scenario.padding}
    inputs = task.inputs(own_batch(ranks, views=scenario.views, **kind))

    def score(text: States, image: States) -> Losses:
        features = task.features({"text": text, "image": image}, inputs.rest)
        gathered = ranks.gather_features(features), ranks.gather(inputs.targets)
        return task.losses(*gathered, ranks.share(len(features)))

    steps = [
        TowerStep(
            partial(task.encode, name),
            rows,
            scenario.chunk_sizes[name],
            task.trains(name),
            before_backward=partial(ranks.before_backward, task.towers[name]),
            largest=ranks.largest,
        )
        for name, rows in inputs.rows.items()
    ]
    losses = ranks.total_losses(accumulate_gradients(steps, score))
    ranks.add_up_gradients(parameters(task))
    ranks.is_sharded = False  # the next scenario begins anew
    named = [*model.named_parameters(), *objective.named_parameters(prefix="objective")]
    found = {name: whole(parameter.grad) for name, parameter in named if parameter.grad is not None}
    return {**found, "loss": losses.total, **{f"loss of {name}": term for name, term in losses.terms.items()}}


def run_scenarios(ranks: Ranks, out: Path) -> None:
    for name, scenario in SCENARIOS.items():
        torch.save(gradients(scenario, ranks), out / f"{name} {ranks.rank}.pt")
    exchanged = {
        "targets": dict(ranks.gather(own_batch(ranks).targets).named_tensors()),
        "largest": ranks.largest(float(ranks.rank), -1.0),
        "everyones": ranks.everyones(["rank", ranks.rank] if ranks.rank else []),
    }
    torch.save(exchanged, out / f"exchanged {ranks.rank}.pt")


def start(world_size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(ranks, *arguments)` in so many processes, and wait for them.

    They are forks of a server that imports the libraries once.
    """
    set_forkserver_preload(["spanbox.losses.objective", "spanbox.engine.large_batch", "spanbox.engine.distributed"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_process, (world_size, port, work, arguments), nprocs=world_size, start_method="forkserver")


def _process(rank: int, world_size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in variables.items()}
    ranks = Ranks()
    work(ranks, *arguments)
    ranks.close()
    os._exit(0)  # all is saved; PyTorch's own threads, torn down with the interpreter, abort now and then
