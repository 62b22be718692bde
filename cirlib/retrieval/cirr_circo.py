"""What CIRR and CIRCO are scored by beside recall, query by query, and what chance gives for each number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cirlib.benchmarks import Benchmark
from cirlib.retrieval.ranks import Array, Ranks, subset_ranks, target_ranks
from cirlib.retrieval.recall_and_precision import (
    average_precision_at_k,
    average_precision_of_ranks,
    chance_average_precision,
    chance_recall,
    recall_at_k,
)
from cirlib.retrieval.run_files import Lists, list_ranks

SUBSET_KS = (1, 2, 3)
PRECISION_KS = (5, 10, 25, 50)
CIRR_MEAN = "mean of recall@5 and recall_subset@1"  # the number CIRR's methods are ordered by

Values = dict[str, np.ndarray]  # metric → one number a query, (N,)


def values_of_features(
    queries: Array, gallery: Array, benchmark: Benchmark, ranks: Ranks, exclude: Sequence[int] | None
) -> Values:
    """CIRR's ``recall_subset@k`` and their mean with recall@5; CIRCO's ``map@k`` over all targets; {} elsewhere.

    Args:
        queries, gallery: row for row the benchmark's triplets and gallery.
        ranks: of the first targets. exclude: as they were counted with, (N,) rows.

    Raises:
        ValueError: a query without a subset, or whose subset lacks its target.

    >>> from dataclasses import replace
    >>> alike = replace(make_scored("sum", "hat", [0]).benchmark, name="circo")
    >>> values_of_features(torch.ones(1, 1), torch.ones(101, 1), alike, None, None)["map@5"].round(4).tolist()
    [0.0226]
    """
    row = benchmark.gallery_index
    if benchmark.name == "cirr":
        targets = [row[triplet.targets[0]] for triplet in benchmark.triplets]
        subsets = [[row[image] for image in triplet.subset] for triplet in benchmark.triplets]
        return _subset_recalls(ranks, subset_ranks(queries, gallery, targets, subsets))
    if benchmark.name == "circo":
        pairs = [(n, row[target]) for n, triplet in enumerate(benchmark.triplets) for target in triplet.targets]
        owner, targets = [n for n, _ in pairs], [target for _, target in pairs]
        left_out = None if exclude is None else [exclude[n] for n in owner]
        every = target_ranks(queries[owner], gallery, targets, exclude=left_out)
        return {f"map@{k}": average_precision_of_ranks(every, owner, k).numpy() for k in PRECISION_KS}
    return {}


def values_of_lists(lists: Lists, benchmark: Benchmark, ranks: Ranks) -> Values:
    """The same from ranked ids, at least 50 a query; CIRR's members that are not among them may stand behind.

    Raises:
        RunError: a list of CIRR does not tell recall_subset, see :func:`~cirlib.retrieval.run_files.list_ranks`.

    >>> values_of_lists([["hat-1"]], make_scored("sum", "hat", [0]).benchmark, ranks=None)
    {}
    """
    if benchmark.name == "cirr":
        return _subset_recalls(ranks, list_ranks(lists, benchmark, in_subset=True))
    if benchmark.name == "circo":
        wanted, depth = [triplet.targets for triplet in benchmark.triplets], min(map(len, lists))
        return {f"map@{k}": average_precision_at_k(lists, wanted, min(k, depth)).numpy() for k in PRECISION_KS}
    return {}


def field_size(metric: str, benchmark: Benchmark, candidates: int) -> float:
    """How many images a target is ranked among, on average: ``candidates``, or the members of its subset.

    >>> field_size("recall@10", make_scored("sum", "hat", [0]).benchmark, 100)
    100
    """
    if metric.startswith("recall_subset@"):
        return float(np.mean([len(triplet.subset) for triplet in benchmark.triplets]))
    return candidates


def chance(metric: str, benchmark: Benchmark, candidates: int) -> float:
    """The mean over queries of what a ranking that knows nothing gets, of ``candidates`` images a query.

    >>> chance("recall@10", make_scored("sum", "hat", [0]).benchmark, 100)
    0.1
    """
    if metric == CIRR_MEAN:
        return float(np.mean([chance(m, benchmark, candidates) for m in ("recall@5", "recall_subset@1")]))
    name, _, number = metric.partition("@")
    k, triplets = int(number), benchmark.triplets
    if name == "recall_subset":
        return float(np.mean([chance_recall(k, len(t.subset)) for t in triplets]))
    if name == "map":
        return float(np.mean([chance_average_precision(k, len(t.targets), candidates) for t in triplets]))
    return chance_recall(k, candidates)


def _subset_recalls(ranks: Ranks, within: Ranks) -> Values:
    values = {f"recall_subset@{k}": recall_at_k(within, k).numpy() for k in SUBSET_KS}
    values[CIRR_MEAN] = (recall_at_k(ranks, 5).numpy() + values["recall_subset@1"]) / 2
    return values
