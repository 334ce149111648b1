"""Small valid inputs of every kind, made once; the fuzzer damages copies of them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import fuzz_mutate
import numpy as np
from PIL import Image

import miniature
from spanbox.config import load_config
from spanbox.data.importers.twitter_gmner import import_twitter_gmner
from spanbox.data.manifest import Manifest
from spanbox.data.neighbours import MiningSettings

SET_BY_PLAN = ("run.dir=", "train.steps=")
PLAN = """recipe: demo
overrides: [{overrides}]
variants:
  base: []
  cold: [loss.coarse.temperature=0.02]
seeds: [0, 1]
steps: 2
test: {test}
metrics: [retrieval.i2t.r1, matching.within_image]
"""


@dataclass(frozen=True)
class Samples:
    """Paths of the valid inputs. Nothing in them may be changed."""

    folder: Path

    @property
    def scenes(self) -> Path:
        """train.jsonl, val.jsonl, test.jsonl with their indices, and images/."""
        return self.folder / "scenes"

    @property
    def run(self) -> Path:
        """A run with checkpoints, an evaluation and the features of test.jsonl."""
        return self.folder / "run"

    @property
    def neighbours(self) -> Path:
        return self.folder / "neighbours.npy"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions.jsonl"

    @property
    def towers(self) -> Path:
        """bert/ with a tokenizer, and vit/."""
        return self.folder / "towers"

    @property
    def tweets(self) -> Path:
        return self.folder / "Twitter10000_v2.0"

    @property
    def ablation(self) -> Path:
        """A plan, and the folder of its finished runs."""
        return self.folder / "ablation"

    @property
    def bombs(self) -> Path:
        return self.folder / "bombs"

    def overrides(self, run: str = "new") -> list[str]:
        """Overrides that make the demo recipe small, training on the scenes."""
        return miniature.demo_overrides(self.scenes, Path(run), "train.validate_every=100", "train.save_every=100")


def make_samples(folder: Path) -> None:
    """Make all of them. Uses threads of tokenizers, so it runs in a process of its own."""
    from spanbox.wiring import EvaluationOptions, evaluate_to_folder, train
    from spanbox.wiring.mining import mine_checkpoint

    folder.mkdir(parents=True)
    samples = Samples(folder)
    fuzz_mutate.make_bombs(samples.bombs)
    miniature.write_scenes(samples.scenes)
    for part in ("train", "val", "test"):
        Manifest(samples.scenes / f"{part}.jsonl")  # writes the index
    train(load_config("demo", miniature.demo_overrides(samples.scenes, samples.run)))
    options = EvaluationOptions(examples=1, predictions=samples.predictions)
    evaluate_to_folder(samples.run, samples.scenes / "test.jsonl", None, options, "cpu")
    mine_checkpoint(samples.run, samples.scenes / "train.jsonl", samples.neighbours, MiningSettings(count=3), "cpu")
    miniature.save_pretrained_towers(samples.towers, samples.scenes / "train.jsonl")
    _write_tweets(samples.tweets)
    import_twitter_gmner(samples.tweets, folder / "imported")
    _write_ablation(samples)


def _write_tweets(folder: Path) -> None:
    for name in ("txt", "json", "xml", "images", "vinvl"):
        (folder / name).mkdir(parents=True)
    for split, ids in {"train": ("71044", "16_05_01_6"), "test": ("9",)}.items():
        lines = [f"IMGID:{id}\nTom\tB-PER\n&amp\tO\n;\tO\nNew\tB-LOC\nYork\tI-LOC\n\n" for id in ids]
        (folder / "txt" / f"{split}.txt").write_text("".join(lines))
        tweets = [f'{{"content": "Tom in York", "img_id": "{id}", "ans": [{{"ent": "Tom"}}]}}' for id in ids]
        (folder / "json" / f"{split}.json").write_text(f"[{', '.join(tweets)}]")
        for id in ids:
            Image.new("RGB", (40, 30)).save(folder / "images" / f"{id}.jpg")
            box = "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>28</ymax>"
            (folder / "xml" / f"{id}.xml").write_text(
                "<annotation><size><width>40</width><height>30</height></size>"
                f"<object><name>Tom</name><bndbox>{box}</bndbox></object></annotation>"
            )
            np.savez(
                folder / "vinvl" / f"{id}.jpg.npz",
                num_boxes=2,
                image_w=40,
                image_h=30,
                bounding_boxes=np.array([[1.5, 2.25, 10.1, 20.2], [0, 0, 5, 5]], dtype=np.float32),
                scores=np.array([0.9, 0.1], dtype=np.float32),
                objects=np.array(["cat", "dog"]),
            )


def _write_ablation(samples: Samples) -> None:
    from spanbox.ablation import _commands, _commands_file, _metrics_file, collect, load_plan, write_csv

    samples.ablation.mkdir()
    plan_path = samples.ablation / "plan.yaml"
    overrides = [override for override in samples.overrides() if not override.startswith(SET_BY_PLAN)]
    text = PLAN.format(overrides=", ".join(overrides), test=samples.scenes / "test.jsonl")
    plan_path.write_text(text, encoding="utf-8")
    plan, out = load_plan(plan_path), samples.ablation / "runs"
    import json

    for variant in plan.variants:
        for seed in plan.seeds:
            _metrics_file(out, variant, seed).parent.mkdir(parents=True)
            shutil.copyfile(samples.run / "metrics.json", _metrics_file(out, variant, seed))
            commands = _commands(plan, Path("runs"), variant, seed)
            _commands_file(out, variant, seed).write_text(json.dumps(commands), encoding="utf-8")
    write_csv(collect(plan, out), plan, out / "table.csv")
