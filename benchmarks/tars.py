"""Images in a tar against images in a folder: making the index, opening it, and reading at random.

    python benchmarks/tars.py FOLDER --members 100000

Writes the tar, and as many files, into FOLDER, which is made and may be removed afterwards.
"""

import argparse
import io
import random
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from spanbox.data.source import stored
from spanbox.data.tar_index import TarIndex, index_path

SIZE = 3000  # bytes of a member
READS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--members", type=int, default=100_000)
    arguments = parser.parse_args()
    names = [f"{number // 1000:05d}/{number:08d}.jpg" for number in range(arguments.members)]
    tar, folder = arguments.folder / "images.tar", arguments.folder / "images"
    write(tar, folder, names)
    index_path(tar).unlink(missing_ok=True)
    chosen = random.Random(0).choices(names, k=READS)
    rows = [
        ("make the index", cpu(lambda: TarIndex(tar)), "s"),
        ("open the index", cpu(lambda: TarIndex(tar)) * 1e3, "ms"),
        ("read an image of the tar", cpu(lambda: [stored(tar / name).read() for name in chosen]) / READS * 1e6, "us"),
        ("read a file", cpu(lambda: [stored(folder / name).read() for name in chosen]) / READS * 1e6, "us"),
        ("peak of the memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"),
    ]
    print(f"| {arguments.members:,} images of {SIZE:,} bytes | |\n|---|---:|")
    for name, value, unit in rows:
        print(f"| {name} | {value:.1f} {unit} |")


def cpu(call: Callable[[], object]) -> float:
    """Seconds of CPU time of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def write(tar: Path, folder: Path, names: list[str]) -> None:
    content = bytes(SIZE)
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            member = tarfile.TarInfo(name)
            member.size = SIZE
            archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
