"""GMNER on the demo with few training scenes, from towers with random weights and from pretrained ones.

    python benchmarks/gmner.py DATA NAME=RUN ... --split val --seeds 1 --lr 5e-4 1e-3 2.5e-3     the grid
    python benchmarks/gmner.py DATA NAME=RUN ... --lr 2.5e-3 NAME=1e-3                           the table

DATA is a folder of `spanbox data demo`; each RUN is a pretrained run or checkpoint, and "random" stands beside them
with the towers of the recipe `demo`. All rows take the same CPU time of training. Rates are chosen on the validation
set; the test set is scored once, at the end.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from hardware import describe
from spanbox.wiring import GmnerStart, train_gmner

FIGURES = ("gmner.f1", "mner.f1", "eeg.f1")
AT_THE_END = 10**9  # steps


def measure(
    start: GmnerStart, run: Path, scenes: int, seed: int, rate: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """Steps and figures of one run."""
    overrides = {
        "data.train": f"{arguments.data}/train.jsonl",
        "data.val": f"{arguments.data}/{arguments.split}.jsonl",
        "data.subset": scenes,
        "run.dir": run,
        "run.overwrite": "true",
        "seed": seed,
        "train.minutes": arguments.minutes,
        "train.clock": "processor",
        "train.optimiser.lr": rate,
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
    parser.add_argument("--lr", nargs="+", default=["2.5e-3"], metavar="RATE|NAME=RATE", help="of all rows, or of one")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="scenes that are scored")
    parser.add_argument("--out", type=Path, default=Path("runs/gmner-table"))
    arguments = parser.parse_args()
    starts = {"random": GmnerStart(recipe="demo")}
    for given in arguments.starts:
        name, _, run = given.partition("=")
        starts[name] = GmnerStart(Path(run))
    print(describe())
    print(f"{arguments.split}.jsonl\n")
    print("| towers | scenes | rate | seeds | steps | GMNER F1 | MNER F1 | EEG F1 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for scenes in arguments.scenes:
        for name, start in starts.items():
            for rate in rates_of(name, arguments.lr):
                folders = [arguments.out / f"{name}-{scenes}-{rate}-{seed}" for seed in range(arguments.seeds)]
                runs = [measure(start, run, scenes, seed, rate, arguments) for seed, run in enumerate(folders)]
                figures = " | ".join(show([run[figure] for run in runs]) for figure in FIGURES)
                steps = f"{mean(run['steps'] for run in runs):.0f}"
                print(f"| {name} | {scenes} | {rate} | {len(runs)} | {steps} | {figures} |", flush=True)


def rates_of(name: str, given: list[str]) -> list[str]:
    """The rates of a row: those with its name, else those without a name."""
    named = [rate.removeprefix(f"{name}=") for rate in given if rate.startswith(f"{name}=")]
    return named or [rate for rate in given if "=" not in rate]


if __name__ == "__main__":
    main()
