"""What CIRR and CIRCO are scored by beside recall, query by query, and what chance gives for each number."""

import numpy as np

from cirlib.benchmarks import Benchmark
from cirlib.retrieval import recall_and_precision as metrics
from cirlib.retrieval.ranks import Ranks

CIRR_MEAN = "mean of recall@5 and recall_subset@1"  # the number CIRR's methods are ordered by


def target_pairs(benchmark: Benchmark) -> tuple[list[int], list[str]]:
    """Every target of every query: the queries' numbers (P,) and the targets' ids (P,); all queries' first come first.

    >>> target_pairs(make_scored("sum", "hat", [0, 9]).benchmark)
    ([0, 1], ['hat-1', 'hat-2'])
    """
    pairs = [(place, n, target) for n, t in enumerate(benchmark.triplets) for place, target in enumerate(t.targets)]
    return [n for _, n, _ in sorted(pairs)], [target for _, _, target in sorted(pairs)]


def extra_values(benchmark: Benchmark, ranks: Ranks, within: Ranks | None) -> dict[str, np.ndarray]:
    """CIRR's ``recall_subset@k`` and their mean with recall@5; CIRCO's ``map@k`` over all targets: metric → (N,).

    Args:
        ranks: of :func:`target_pairs`, (P,). within: of CIRR's targets in their subsets, (N,).

    >>> extra_values(make_scored("sum", "hat", [0]).benchmark, ranks=None, within=None)
    {}
    """
    if benchmark.name == "cirr":
        values = {f"recall_subset@{k}": metrics.recall_at_k(within, k).numpy() for k in (1, 2, 3)}
        return values | {CIRR_MEAN: (metrics.recall_at_k(ranks, 5).numpy() + values["recall_subset@1"]) / 2}
    if benchmark.name == "circo":
        query, _ = target_pairs(benchmark)
        return {f"map@{k}": metrics.average_precision_of_ranks(ranks, query, k).numpy() for k in (5, 10, 25, 50)}
    return {}


def field_size(metric: str, benchmark: Benchmark, candidates: int) -> float:
    """How many images a target is ranked among, on average: ``candidates``, or the members of its subset.

    >>> field_size("recall@10", make_scored("sum", "hat", [0]).benchmark, 100)
    100
    """
    in_subset = metric.startswith("recall_subset@")
    return float(np.mean([len(triplet.subset) for triplet in benchmark.triplets])) if in_subset else candidates


def chance(metric: str, benchmark: Benchmark, candidates: int) -> float:
    """The mean over queries of what a ranking that knows nothing gets, of ``candidates`` images a query.

    >>> chance("recall@10", make_scored("sum", "hat", [0]).benchmark, 100)
    0.1
    """
    if metric == CIRR_MEAN:
        return float(np.mean([chance(m, benchmark, candidates) for m in ("recall@5", "recall_subset@1")]))
    name, _, number = metric.partition("@")
    k, triplets = int(number), benchmark.triplets
    if name == "map":
        return float(np.mean([metrics.chance_average_precision(k, len(t.targets), candidates) for t in triplets]))
    if name == "recall_subset":
        return float(np.mean([metrics.chance_recall(k, len(t.subset)) for t in triplets]))
    return metrics.chance_recall(k, candidates)
