"""Feeds damaged input to the commands and counts the results. `make fuzz` runs the long round.

    python tests/fuzz/fuzz_run.py --count 10000
    python tests/fuzz/fuzz_run.py --kind configs --only 17       one input again, with its output

Ctrl-C prints the results so far.

Every input is drawn from (seed, kind, number) alone. Exits with 1 when any input led to a traceback, a hang, more than
a GiB of memory, or a file written outside of the target.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

sys.path[:0] = [str(Path(__file__).parents[1])]

import matplotlib.pyplot  # noqa: E402  # imported once, before the forks
import torch  # noqa: E402
from fuzz_isolated import FAILURES, OUTCOMES, TIME_LIMIT, Case, Result, run_isolated  # noqa: E402
from fuzz_kinds import KINDS  # noqa: E402
from fuzz_samples import Samples, make_samples  # noqa: E402

KEPT = 5  # outputs of failures that are printed for each kind


def run_input(samples: Samples, kind: str, number: int, seed: int, work: Path, time_limit: float) -> Result:
    """Make and run one input, and remove its files."""

    def make(folder: Path) -> Case:
        return KINDS[kind](Random(f"{seed}/{kind}/{number}"), samples, folder)

    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        return run_isolated(make, folder, time_limit)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_input(samples: Samples, seed: int, work: Path, time_limit: float, chosen: tuple[str, int]) -> Result:
    return run_input(samples, *chosen, seed, work, time_limit)


def prepare(work: Path, folder: Path) -> Samples:
    """Make the valid samples, unless they are there, in a process of their own: threads do not survive a fork."""
    if (folder / "ablation" / "runs" / "table.csv").exists():  # made last
        return Samples(folder)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with (work / "samples.txt").open("w") as file:
                os.dup2(file.fileno(), 1)
                make_samples(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("fuzz: the valid samples cannot be made, see above")
    return Samples(folder)


def warm_up() -> None:
    """Load fonts and renderers once, so that the forks share them."""
    figure, axes = matplotlib.pyplot.subplots()
    axes.set_title("0.5")
    for form in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=form)
    matplotlib.pyplot.close(figure)


def _ignore_interrupt() -> None:
    """A Ctrl-C is for the main process, which prints the results so far."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def table(results: dict[str, list[Result]]) -> str:
    """Counts, the slowest input and the largest memory of each kind, as Markdown."""
    lines = [
        "| kind | inputs | " + " | ".join(OUTCOMES) + " | slowest | largest |",
        "|---|" + "---:|" * (len(OUTCOMES) + 3),
    ]
    every = [result for found in results.values() for result in found]
    for kind, found in [*((kind, found) for kind, found in results.items() if found), ("all", every)]:
        counts = Counter(result.outcome for result in found)
        slowest, largest = max((r.seconds for r in found), default=0), max((r.peak for r in found), default=0)
        cells = [kind, f"{len(found):,}", *(f"{counts[outcome]:,}" for outcome in OUTCOMES)]
        lines.append(f"| {' | '.join(cells)} | {slowest:.1f} s | {largest / 2**20:,.0f} MiB |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="inputs, over all kinds together")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--only", type=int, help="run this one number and print its output")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="inputs at the same time")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, help="seconds after which an input hangs")
    parser.add_argument("--samples", type=Path, help="folder of the valid samples, kept for the next time")
    parser.add_argument("--json", type=Path, help="file for all results")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="spanbox-fuzz-") as temporary:
        work = Path(temporary)
        os.environ["HOME"] = str(work)
        samples = prepare(work, arguments.samples or work / "samples")
        warm_up()
        numbers = range(arguments.start, arguments.start + arguments.count // len(kinds))
        if arguments.only is not None:
            numbers = range(arguments.only, arguments.only + 1)
        inputs = [(kind, number) for kind in kinds for number in numbers]
        run = partial(_run_input, samples, arguments.seed, work, arguments.time_limit)
        results: dict[str, list[Result]] = {kind: [] for kind in kinds}
        with (
            multiprocessing.get_context("fork").Pool(arguments.jobs, _ignore_interrupt) as pool,
            suppress(KeyboardInterrupt),
        ):
            for (kind, number), result in zip(inputs, pool.imap(run, inputs), strict=True):
                failed = sum(earlier.outcome in FAILURES for earlier in results[kind])
                results[kind].append(result)
                if arguments.only is not None or (result.outcome in FAILURES and failed < KEPT):
                    print(f"--- {kind} {number}: {result.outcome}\n{result.detail}", file=sys.stderr, flush=True)
                if len(results[kind]) == len(numbers):
                    print(f"{kind}: {len(numbers)} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if arguments.json:
            content = {kind: [asdict(result) for result in found] for kind, found in results.items()}
            arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
        print(table(results))
    return int(any(result.outcome in FAILURES for found in results.values() for result in found))


if __name__ == "__main__":
    sys.exit(main())
