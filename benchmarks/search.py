"""Latency of `spanbox search` under load: concurrent queries against an index in memory, exact and with faiss.

    python benchmarks/search.py                      # 100,000 items exact, 1,000,000 with faiss
    python benchmarks/search.py --items 100000 --queries 200 --concurrent 50

Features are drawn around random centres, the structure that an inverted file needs; a query is an item with noise.
Latency counts the wait for other queries, since all start at once.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware import describe
from spanbox.search.index import Index

DIM = 256
CENTRES = 2_000
NEAREST = 10


class Numbered(Sequence[dict[str, Any]]):
    """Columns of items that have nothing but a number."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return {"id": str(index)}


def make_index(items: int, generator: np.random.Generator) -> Index:
    centres = generator.normal(size=(CENTRES, DIM)).astype(np.float32)
    features = np.empty((items, DIM), np.float32)
    for start in range(0, items, 100_000):
        block = features[start : start + 100_000]
        block[:] = centres[generator.integers(CENTRES, size=len(block))]
        block += 0.7 * generator.normal(size=block.shape).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Index(Path("index.npy"), "images", Path(), Path(), "", features, Numbered(items))


def measure(index: Index, queries: NDArray[np.float32], concurrent: int, *, approximate: bool) -> tuple[Any, ...]:
    """Seconds of the first query, p50 and p95 in ms, queries per second, recall of the exact nearest."""

    def search(query: NDArray[np.float32]) -> tuple[float, list[int]]:
        began = time.perf_counter()
        hits = index.nearest(query, NEAREST, approximate=approximate)
        return time.perf_counter() - began, [hit.row for hit in hits]

    first = search(queries[0])[0]
    began = time.perf_counter()
    with ThreadPoolExecutor(concurrent) as pool:
        results = list(pool.map(search, queries))
    rate = len(queries) / (time.perf_counter() - began)
    few = list(zip(queries[:20], results[:20], strict=True))
    found = [len({hit.row for hit in index.nearest(query, NEAREST)} & set(rows)) for query, (_, rows) in few]
    p50, p95 = 1000 * np.percentile([seconds for seconds, _ in results], [50, 95])
    return first, p50, p95, rate, sum(found) / len(found) / NEAREST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=50)
    parser.add_argument("--faiss", action="store_true")
    arguments = parser.parse_args()
    cases = [(arguments.items, arguments.faiss)] if arguments.items else [(100_000, False), (1_000_000, True)]
    print(describe())
    print("| items | search | at a time | first, s | p50, ms | p95, ms | queries/s | recall@10 |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for items, approximate in cases:
        generator = np.random.default_rng(0)
        index = make_index(items, generator)
        noise = 0.02 * generator.normal(size=(arguments.queries, DIM)).astype(np.float32)
        queries = index.features[generator.integers(items, size=arguments.queries)] + noise
        for concurrent in (1, arguments.concurrent):
            measured = measure(index, queries, concurrent, approximate=approximate)
            row = "{:.2f} | {:.0f} | {:.0f} | {:.0f} | {:.3f}".format(*measured)
            print(f"| {items:,} | {'faiss' if approximate else 'exact'} | {concurrent} | {row} |", flush=True)


if __name__ == "__main__":
    main()
