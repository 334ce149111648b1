"""A manifest of a million records: time and memory of opening, audit without decoding, sampling and splitting.

    python benchmarks/many_records.py --records 1000000

Each step runs in a process of its own, whose CPU time and largest resident memory are printed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from spanbox.data.manifest import Entity, Manifest, ObjectBox, Record, write_manifest

IMAGES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.records)
        size = (Path(folder) / "all.jsonl").stat().st_size / 2**20
        print(f"{arguments.records:,} records, {size:,.0f} MiB\n\n| step | CPU, s | resident, MiB |\n|---|---:|---:|")
        for step in ("first opening", "second opening", "check without decoding", "sample of 10,000", "split"):
            command = [sys.executable, __file__, "--step", step, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            print(f"| {step} | {done.stdout.strip()} |", flush=True)


def write(folder: Path, number: int) -> None:
    (folder / "images").mkdir()
    for place in range(IMAGES):
        Image.new("RGB", (64, 48), (place % 256, place // 256, 0)).save(folder / "images" / f"{place}.png")

    def records():  # type: ignore[no-untyped-def]
        for place in range(number):
            x = float(place % 30)
            entities = (Entity(2, 9, "animal", boxes=((x, 2.0, x + 20, 30.0),)), Entity(14, 20, "place"))
            objects = (ObjectBox((1.0, 1.0, 30.0, 40.0), 0.5, "cat"), ObjectBox((5.0, 5.0, 60.0, 40.0), 0.25, "bench"))
            text = f"a red cat in London, number {place}"
            image = place % IMAGES
            yield Record(str(place), f"images/{image}.png", text, f"g{image // 3}", "en", entities, objects)

    write_manifest(folder / "all.jsonl", records())


def run_step(step: str, folder: Path) -> None:
    """One step; prints its CPU time and the largest resident memory of this process."""
    from spanbox.data.audit import audit
    from spanbox.data.partition import sample, split

    path = folder / "all.jsonl"
    began = time.process_time()
    if step.endswith("opening"):
        Manifest(path)
    elif step.startswith("check"):
        audit([path], decode=False)
    elif step.startswith("sample"):
        sample(path, folder / "sample.jsonl", 10_000)
    else:
        split(path, folder / "splits", {"train": 0.8, "val": 0.1, "test": 0.1})
    spent = time.process_time() - began
    print(f"{spent:.1f} | {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f}")


if __name__ == "__main__":
    main()
