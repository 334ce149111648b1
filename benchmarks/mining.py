"""Time and recall of the approximate search for hard negatives against the exact one.

    python benchmarks/mining.py [--pairs 50000] [--probes 250] [--count 15] [--threads 1]

Sentences are the queries and images the candidates: unit features of 256 numbers, of two kinds, around topics of 50
pairs each, and without clusters, spread over 32 of the dimensions, the hardest case for an index of cells. In both a
sentence and its image are the same point, each with noise and with the shift that separates the features of the two
towers. CPU time of the whole search, the index and its centroids included; recall is the share of the exact search's
neighbours that are found.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import faiss
import torch
from torch import Tensor

from hardware import describe
from spanbox.evaluation.approximate import nearest_wrong_approximately
from spanbox.evaluation.mining import Nearest, Search, nearest_wrong

WIDTH = 256
TOPIC = 50  # pairs
DIMENSIONS = 32  # of the points without clusters


def around_topics(pairs: int, generator: torch.Generator) -> Tensor:
    topics = torch.randn(pairs // TOPIC, WIDTH, generator=generator)
    own = topics[torch.randint(len(topics), (pairs,), generator=generator)]
    return own + 0.7 * torch.randn(pairs, WIDTH, generator=generator)


def without_clusters(pairs: int, generator: torch.Generator) -> Tensor:
    basis = torch.randn(DIMENSIONS, WIDTH, generator=generator)
    points = torch.randn(pairs, DIMENSIONS, generator=generator) @ basis / DIMENSIONS**0.5
    return points + 0.7 * torch.randn(pairs, WIDTH, generator=generator)


KINDS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "around topics": around_topics,
    "without clusters": without_clusters,
}


def make_search(points: Tensor, generator: torch.Generator) -> Search:
    def tower() -> Tensor:
        noise, shift = 0.7 * torch.randn(points.shape, generator=generator), torch.randn(WIDTH, generator=generator)
        return torch.nn.functional.normalize(points + noise + shift, dim=1)

    text, image = tower(), tower()
    pair, no_identity = torch.arange(len(points)), torch.zeros(2, 0, dtype=torch.int64)
    return Search(text, pair, no_identity, (text * image).sum(dim=1), image, pair, no_identity)


def timed(find: Callable[[], Nearest]) -> tuple[Tensor, float]:
    """The pairs found, and the CPU time in seconds."""
    start = time.process_time()
    found = find()
    return found.pairs, time.process_time() - start


def recall(found: Tensor, exact: Tensor) -> float:
    return float((found[:, :, None] == exact[:, None]).sum() / exact.numel())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--probes", type=int, nargs="+", default=[250], help="besides the default")
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    print(
        f"{describe()}, faiss {faiss.__version__}; {arguments.pairs:,} pairs, {WIDTH} features, "
        f"{arguments.count} neighbours, threads: {arguments.threads}\n"
    )
    print("| features | search | CPU time, s | recall |\n|---|---|---:|---:|")
    for name, make_points in KINDS.items():
        generator = torch.Generator().manual_seed(0)
        search = make_search(make_points(arguments.pairs, generator), generator)
        problem = (search, (search.query_pair,))
        exact, seconds = timed(partial(nearest_wrong, *problem, count=arguments.count))
        print(f"| {name} | exact | {seconds:.1f} | 1.000 |", flush=True)
        for probes in (None, *arguments.probes):
            approximately = partial(nearest_wrong_approximately, *problem, count=arguments.count, probes=probes)
            found, seconds = timed(approximately)
            variant = f"approximate, {probes} cells" if probes else "approximate"
            print(f"| {name} | {variant} | {seconds:.1f} | {recall(found, exact):.3f} |", flush=True)


if __name__ == "__main__":
    main()
