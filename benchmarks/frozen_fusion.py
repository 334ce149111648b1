"""Does a fusion learn relations when the towers stand still?

    spanbox data demo runs/relations --relations one --n 6000 --held-out 500 --concepts 60
    spanbox demo                                                                             # a run with a fine level
    python benchmarks/frozen_fusion.py runs/demo runs/relations/train.jsonl [--kind gated]

The towers and projections of the run encode all scenes once. Then only the fusion learns. A sentence is contrasted with
its own scene and with the one in which two objects have changed places, a scene likewise. The first 400 scenes are held
out: a model that ignores relations gets half of their pairs right. One thread, CPU time.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spanbox
from hardware import describe
from spanbox.data.manifest import Manifest
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.fusion import PairFusion
from spanbox.models.fusion_settings import FusionSettings
from spanbox.wiring.encoding import sample_of

HELD_OUT = 400  # scenes


class Scenes(NamedTuple):
    """States and features of the tokens (n, T, ...) and of the patch grids (n, g, g, ...) of scenes in pairs."""

    mask: Tensor
    token_features: Tensor
    grid: Tensor
    grid_features: Tensor


def encode(run: Path, manifest: Path, most: int) -> tuple[DualEncoder, Scenes]:
    loaded = spanbox.load(run)
    model, opened = loaded.model.eval(), Manifest(manifest)
    records = [opened[number] for number in range(min(most, len(opened)) // 2 * 2)]
    encoded = loaded.tokenizer([record.text for record in records], padding=True, return_tensors="pt")
    mask, grids = encoded["attention_mask"].bool(), []
    with torch.no_grad():
        parts = zip(encoded["input_ids"].split(64), mask.split(64), strict=True)
        tokens = torch.cat([model.text(*part).tokens for part in parts])
        for record in records:
            pixels = sample_of(loaded, manifest.parent / record.image, []).pixels
            grids.append(model.vision(model.normalised(pixels[None]), None).grid)
        grid = torch.cat(grids)
        features = model.projection_of("spans")(tokens), model.projection_of("regions")(grid)
    return model, Scenes(mask, features[0], grid, features[1])


class Learner(nn.Module):
    """The fusion and its temperature."""

    def __init__(self, model: DualEncoder, settings: FusionSettings) -> None:
        super().__init__()
        vision = model.vision
        self.fusion = PairFusion(settings, vision.width, vision.stride, model.settings.dim)
        self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, scenes: Scenes, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (2n,) of each sentence with its scene and with the exchanged one, and of each scene with the sentence
        of the exchanged one. The pairs are `first` and the scenes after them."""
        rows = torch.cat([first, first + 1])
        mask = scenes.mask[rows]
        tokens = self.fusion.states_of_tokens(scenes.token_features[rows], mask)
        patches = self.fusion.states_of_patches(scenes.grid[rows], scenes.grid_features[rows])
        own = torch.arange(len(rows))
        exchanged = own.roll(len(first))
        sentences, images = torch.cat([own, own]), torch.cat([own, exchanged])
        whole = tokens.new_zeros(len(sentences), 1)  # the towers' own score would be nearly the same for both scenes
        scores = self.fusion.scores(whole, tokens[sentences], mask[sentences], whole, patches[images])
        right, wrong = scores.split(len(rows))
        return right, wrong, wrong[exchanged]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--kind", choices=("gated", "cross_attention"), default="gated")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--token-layers", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=500, help="of 32 pairs of scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=5e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, scenes = encode(arguments.run, arguments.manifest, arguments.scenes)
    torch.manual_seed(arguments.seed)
    form = {"kind": arguments.kind, "layers": arguments.layers, "token_layers": arguments.token_layers}
    learner = Learner(model, FusionSettings.model_validate(form))
    optimiser = torch.optim.AdamW(learner.parameters(), lr=arguments.lr, weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=100)
    began, losses, held_out = time.process_time(), [], torch.arange(0, HELD_OUT, 2)
    print(f"{describe()}\n\n| steps | loss | held-out pairs right | CPU time |\n|---:|---:|---:|---:|")
    for step in range(1, arguments.steps + 1):
        first = HELD_OUT + 2 * torch.randint((len(scenes.mask) - HELD_OUT) // 2, (32,))
        right, *wrong = learner(scenes, first)
        loss = torch.stack([F.softplus(learner.scale.exp() * (other - right)).mean() for other in wrong]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        warm_up.step()
        losses.append(loss.item())
        if step % 50 == 0:
            with torch.no_grad():
                right, wrong_scene, _ = learner(scenes, held_out)
            share = (right > wrong_scene).float().mean().item()
            mean, losses = sum(losses) / len(losses), []
            print(f"| {step} | {mean:.3f} | {share:.3f} | {time.process_time() - began:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
