"""GMNER on the demo with few training scenes, from towers with random weights and from pretrained ones.

    python benchmarks/gmner.py DATA NAME=RUN ... [--scenes 200 1000] [--seeds 3] [--minutes 0.4] [--lr 2.5e-3]

DATA is a folder of `spanbox data demo`; each RUN is a pretrained run or checkpoint, and "random" stands beside them
with the towers of the recipe `demo`. All rows take the same CPU time of training and the same rate. The test set is
scored once, at the end; nothing is chosen by it.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from hardware import describe
from spanbox.wiring import GmnerStart, train_gmner

FIGURES = ("gmner.f1", "mner.f1", "eeg.f1")
AT_THE_END = 10**9  # steps


def measure(
    start: GmnerStart, data: Path, run: Path, scenes: int, seed: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """Steps and figures of one run."""
    overrides = {
        "data.train": f"{data}/train.jsonl",
        "data.val": f"{data}/test.jsonl",
        "data.subset": scenes,
        "run.dir": run,
        "run.overwrite": "true",
        "seed": seed,
        "train.minutes": arguments.minutes,
        "train.clock": "processor",
        "train.optimiser.lr": arguments.lr,
        "train.optimiser.tower_lr": "null",
        "train.validate_every": AT_THE_END,
        "train.save_every": AT_THE_END,
        "train.device": "cpu",
        "data.workers": 0,
    }
    trained = train_gmner(start.config([f"{key}={value}" for key, value in overrides.items()]), start.run)
    return {"steps": trained.step, **{name: 100 * trained.best[name] for name in FIGURES}}


def show(values: list[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("starts", nargs="*", metavar="NAME=RUN")
    parser.add_argument("--scenes", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.4)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/gmner-table"))
    arguments = parser.parse_args()
    starts = {"random": GmnerStart(recipe="demo")}
    for given in arguments.starts:
        name, _, run = given.partition("=")
        starts[name] = GmnerStart(Path(run))
    print(describe())
    print("| towers | scenes | seeds | steps | GMNER F1 | MNER F1 | EEG F1 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for scenes in arguments.scenes:
        for name, start in starts.items():
            runs = [
                measure(start, arguments.data, arguments.out / f"{name}-{scenes}-{seed}", scenes, seed, arguments)
                for seed in range(arguments.seeds)
            ]
            figures = " | ".join(show([run[figure] for run in runs]) for figure in FIGURES)
            print(
                f"| {name} | {scenes} | {len(runs)} | {mean(run['steps'] for run in runs):.0f} | {figures} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
