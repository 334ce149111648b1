"""The cost of a training step in the setting of the published method: its code, its paper, and the recipe `published`.

    python benchmarks/published.py                  small towers, for a CPU
    python benchmarks/published.py --size base      BERT-base and ViT-B/16 at 224 px, for a GPU
    python benchmarks/published.py --operations     counts operations, which does not depend on the machine

All four steps train the same towers on the same 16 pairs, read from JPEG files of 640x480 px with four entities each:

- published code: a sentence against its image, the other images of the batch, and one copy of each image with up to 15
  boxes painted black; the name of one entity a pair against the crop of its object and 15 crops of other objects.
- its paper: the same, but 15 copies of each image, with one box painted in each.
- recipe `published`: 15 masked views of an image, of which the tower encodes only the visible patches; all entities
  of a sentence, in its context, against 15 of the crops in the batch.
- recipe `published`, boxes cut from the patch grid (`model.regions.source=roi_align`) instead of encoded as crops.

The published code encodes the crops of the 15 negatives for each entity again; here all entities share the crops of the
batch. Its gradient checkpointing, mixed precision and loader workers are left out. On a CPU one thread runs, and its
CPU time is counted. The steps run in turn; the tables give the median.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from hardware import describe
from spanbox.config import load_config
from spanbox.data.collate import Collator
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest
from spanbox.data.tokenizer import train_tokenizer
from spanbox.structures import Batch
from views import operations_of, seconds_of
from workload import SIZES, make_model, make_trainer

NAMES = ("red kite", "old barn", "tall man", "grey dog")
NEGATIVES = 15


@dataclass(frozen=True)
class Setting:
    """How a step reads its pairs and trains on them, and the size of its contrasts."""

    read: Callable[[], Any]
    step: Callable[[Any], object]
    images: float  # whole images' worth of patches that are encoded
    spans: int  # that are contrasted with objects


def write_pairs(folder: Path, pairs: int) -> Manifest:
    """Pairs with four entities, a box each, and eleven proposals; and the crop of every entity as a file."""
    generator = np.random.default_rng(0)
    records = []
    text = "A {} above the {} , the {} with a {}".format(*NAMES)
    for pair in range(pairs):
        coarse = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        image = coarse.resize((640, 480), Image.Resampling.BICUBIC)
        image.save(folder / f"{pair}.jpg", quality=90)
        corners = generator.uniform((0, 0), (440, 280), (len(NAMES) + 11, 2)).round()
        boxes = np.concatenate([corners, corners + 200], axis=1).tolist()
        starts = [text.index(name) for name in NAMES]
        for number, box in enumerate(boxes[: len(NAMES)]):
            image.crop(tuple(map(int, box))).save(folder / f"{pair}-{number}.jpg", quality=90)
        entities = [
            {"start": start, "end": start + len(name), "identity": f"{name} {pair}", "boxes": [box]}
            for start, name, box in zip(starts, NAMES, boxes, strict=False)
        ]
        objects = [{"box": box, "score": 0.5} for box in boxes[len(NAMES) :]]
        records.append(
            {"id": str(pair), "image": f"{pair}.jpg", "text": text, "entities": entities, "objects": objects}
        )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return Manifest(folder / "pairs.jsonl")


class PublishedCode:
    """The step of the published code, with the towers of a dual encoder.

    Args:
        painted: painted copies of each image. 1: all boxes in one copy; 15: one box in each.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, manifest: Manifest, painted: int, device: str) -> None:
        self.model = model.to(device).train()
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.painted = painted
        self.device = device
        self.side = model.preprocessing.image_size
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def read(self) -> tuple[list[str], Tensor, list[str], Tensor]:
        """Sentences and their images, N originals before N x `painted` copies; names and their crops, N positives
        before N x 15 negatives."""
        folder, pairs = self.manifest.path.parent, len(self.manifest)
        originals, copies = [], []
        for record in self.manifest:
            image = Image.open(self.manifest.image_path(record)).convert("RGB")
            boxes = [box for entity in record.entities for box in entity.boxes] + [
                thing.box for thing in record.objects
            ]
            groups = [boxes] if self.painted == 1 else [[box] for box in boxes[: self.painted]]
            originals.append(self._resized(image))
            for group in groups:
                copy = image.copy()
                draw = ImageDraw.Draw(copy)
                for box in group:
                    draw.rectangle(tuple(box), fill=(0, 0, 0))
                copies.append(self._resized(copy))
        crops = [folder / f"{pair}-0.jpg" for pair in range(pairs)]
        for pair in range(pairs):
            others = [other for other in range(pairs) if other != pair]
            crops += [folder / f"{others[k % len(others)]}-{1 + k % 3}.jpg" for k in range(NEGATIVES)]
        pixels = torch.stack([self._resized(Image.open(path).convert("RGB")) for path in crops])
        return [record.text for record in self.manifest], torch.stack(originals + copies), [NAMES[0]] * pairs, pixels

    def step(self, data: tuple[list[str], Tensor, list[str], Tensor]) -> Tensor:
        texts, images, names, crops = data
        pairs = len(texts)
        self.optimiser.zero_grad()
        sentences, pictures = self._texts(texts), self._images(images)
        if self.painted == 1:
            coarse = sentences @ pictures.T
            coarse_loss = F.cross_entropy(coarse / 0.07, torch.arange(pairs, device=self.device))
        else:
            own = torch.cat([pictures[:pairs, None], pictures[pairs:].reshape(pairs, self.painted, -1)], dim=1)
            coarse_loss = self._own_candidates(sentences, own)
        entities, objects = self._texts(names), self._images(crops)
        own = torch.cat([objects[:pairs, None], objects[pairs:].reshape(pairs, NEGATIVES, -1)], dim=1)
        loss = coarse_loss + self._own_candidates(entities, own)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def _own_candidates(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """Each anchor against candidates (N, C, D) of its own, of which the first is right."""
        logits = torch.einsum("nd,ncd->nc", anchors, candidates) / 0.07
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=self.device))

    def _texts(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        states = self.model.text(encoded["input_ids"], encoded["attention_mask"].bool())
        return F.normalize(self.model.text_projection(states.pooled), dim=-1)

    def _images(self, pixels: Tensor) -> Tensor:
        states = self.model.vision(self.model.normalised(pixels.to(self.device)))
        return F.normalize(self.model.image_projection(states.pooled), dim=-1)

    def _resized(self, image: Image.Image) -> Tensor:
        small = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def recipe_setting(size: str, source: str, tokenizer: Any, manifest: Manifest, folder: Path, device: str) -> Setting:
    """The recipe `published` with other towers."""
    config = load_config("published", [f"data.train={manifest.path}"])
    model, pairs = make_model(size, source), len(manifest)
    side, grid = model.vision.image_size, model.vision.image_size // model.vision.stride
    limits = SampleLimits(
        image_size=side,
        max_spans=config.data.max_spans,
        max_regions=config.data.max_regions,
        crop_size=side if source == "crop" else None,
        crop_margin=config.model.regions.margin,
        views=config.data.views,
        view_grid=grid,
    )
    dataset = PairDataset(manifest, limits, 0, replace_broken=False)
    collate = Collator(tokenizer, config.data.max_tokens)
    loss = config.loss.model_dump()
    trainer = make_trainer(model, folder, loss, device=device, batch_size=pairs, chunk_size=pairs)
    trainer.task.objective.set_progress(0.5, 0)

    def read() -> Batch:
        return collate([dataset[0, index] for index in range(pairs)]).batch

    batch = read()
    assert batch.view_hidden is not None
    images = pairs + (~batch.view_hidden).sum().item() / grid**2
    images += batch.region_valid.sum().item() if source == "crop" else 0
    return Setting(read, lambda batch: trainer.train_step(batch, []), images, int(batch.span_valid.sum()))


def published_setting(size: str, tokenizer: Any, manifest: Manifest, painted: int, device: str) -> Setting:
    code = PublishedCode(make_model(size), tokenizer, manifest, painted, device)
    pairs = len(manifest)
    return Setting(code.read, code.step, pairs * (1 + painted + 1 + NEGATIVES), pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operations", action="store_true", help="count operations instead of seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_pairs(folder, arguments.pairs)
        tokenizer = train_tokenizer((record.text for record in manifest), 200)
        common = (arguments.size, tokenizer, manifest)
        settings = {
            "published code": published_setting(*common, 1, arguments.device),
            "its paper": published_setting(*common, 15, arguments.device),
            "recipe `published`": recipe_setting(arguments.size, "crop", *common[1:], folder, arguments.device),
            "recipe with `roi_align`": recipe_setting(
                arguments.size, "roi_align", *common[1:], folder, arguments.device
            ),
        }
        data = {name: setting.read() for name, setting in settings.items()}
        steps = {name: lambda name=name: settings[name].step(data[name]) for name in settings}
        if arguments.operations:
            rows = {"10^9 operations": operations_of(steps)}
        else:
            reads = {name: setting.read for name, setting in settings.items()}
            rows = {"reading, s": seconds_of(reads, arguments.rounds, on_cpu=on_cpu)}
            rows["training, s"] = seconds_of(steps, arguments.rounds, on_cpu=on_cpu)
    whole = {name: sum(row[name] for row in rows.values()) for name in settings}
    spans = {name: setting.spans for name, setting in settings.items()}
    how = "counted" if arguments.operations else f"median of {arguments.rounds} rounds"
    print(f"{describe()}; {arguments.size} towers, {arguments.pairs} pairs, {how}\n")
    print(f"| a step | {' | '.join(settings)} |\n|---|{'---:|' * len(settings)}")
    _print_row(
        "images encoded (views by their visible patches)",
        {name: setting.images for name, setting in settings.items()},
        "{:.0f}",
    )
    _print_row("sentences contrasted", dict.fromkeys(settings, arguments.pairs), "{:d}")
    _print_row("spans contrasted", spans, "{:d}")
    for label, row in rows.items():
        _print_row(label, row, "{:.2f}")
    base = whole["recipe `published`"]
    _print_row("cost of a step, against the recipe", {name: cost / base for name, cost in whole.items()}, "{:.2f}x")
    per_span = {name: cost / spans[name] for name, cost in whole.items()}
    base = per_span["recipe `published`"]
    _print_row(
        "cost per span contrasted, against the recipe",
        {name: cost / base for name, cost in per_span.items()},
        "{:.1f}x",
    )
    if not arguments.operations:
        _print_row("pairs per second", {name: arguments.pairs / cost for name, cost in whole.items()}, "{:.1f}")
        _print_row("spans per second", {name: spans[name] / cost for name, cost in whole.items()}, "{:.1f}")


def _print_row(label: str, values: dict[str, Any], form: str) -> None:
    print(f"| {label} | {' | '.join(form.format(value) for value in values.values())} |")


if __name__ == "__main__":
    main()
