"""What CIRR and CIRCO are scored by beside recall, query by query, and what chance gives for each number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cirlib.benchmarks import Benchmark
from cirlib.retrieval.ranks import (
    Array,
    Ranks,
    average_precision_at_k,
    average_precision_of_ranks,
    chance_average_precision,
    chance_recall,
    recall_at_k,
    subset_ranks,
)

SUBSET_KS = (1, 2, 3)
PRECISION_KS = (5, 10, 25, 50)
CIRR_MEAN = "mean of recall@5 and recall_subset@1"  # the number CIRR's methods are ordered by

Values = dict[str, np.ndarray]  # metric → one number a query, (N,)


def subset_recalls(ranks: Ranks, within: Ranks) -> Values:
    """CIRR's ``recall_subset@k``, and its mean with recall@5, from ranks in the gallery and in the subsets."""
    values = {f"recall_subset@{k}": recall_at_k(within, k).numpy() for k in SUBSET_KS}
    values[CIRR_MEAN] = (recall_at_k(ranks, 5).numpy() + values["recall_subset@1"]) / 2
    return values


def ranks_in_subsets(queries: Array, gallery: Array, benchmark: Benchmark) -> Ranks:
    """Each target's rank among its query's CIRR subset.

    Args:
        queries: (N, D), row for row the benchmark's triplets.
        gallery: (M, D) or (M, T, D), row for row its gallery.

    Raises:
        ValueError: a query without a subset, or whose subset lacks its target.
    """
    row = benchmark.gallery_index
    targets = [row[triplet.targets[0]] for triplet in benchmark.triplets]
    return subset_ranks(queries, gallery, targets, _subset_rows(benchmark))


def _subset_rows(benchmark: Benchmark) -> Tensor:
    """Gallery rows of the subsets, (N, S), the shorter ones padded with -1."""
    width = max(len(triplet.subset) for triplet in benchmark.triplets)
    row = benchmark.gallery_index
    rows = [[row[image] for image in t.subset] + [-1] * (width - len(t.subset)) for t in benchmark.triplets]
    return torch.tensor(rows, dtype=torch.long)


def precisions(retrieved: Sequence[Sequence[str]], benchmark: Benchmark) -> Values:
    """CIRCO's ``map@k``: average precision over all targets; its mean over queries is the mAP.

    Args:
        retrieved: per query its best image ids, best first: 50, or all that are ranked where those are fewer.
    """
    wanted = [triplet.targets for triplet in benchmark.triplets]
    depth = min(len(images) for images in retrieved)
    return {f"map@{k}": average_precision_at_k(retrieved, wanted, min(k, depth)).numpy() for k in PRECISION_KS}


def expected_precisions(ranks: Ranks, query: Sequence[int]) -> Values:
    """The same from the rank of every target, (P,), and the query of each; ties count by expectation."""
    return {f"map@{k}": average_precision_of_ranks(ranks, query, k).numpy() for k in PRECISION_KS}


def field_size(metric: str, benchmark: Benchmark, candidates: int) -> float:
    """How many images a target is ranked among, on average: ``candidates``, or the members of its subset."""
    if metric.startswith("recall_subset@"):
        return float(np.mean([len(triplet.subset) for triplet in benchmark.triplets]))
    return candidates


def chance(metric: str, benchmark: Benchmark, candidates: int) -> float:
    """The mean over queries of what a ranking that knows nothing gets, of ``candidates`` images a query."""
    if metric == CIRR_MEAN:
        return float(np.mean([chance(m, benchmark, candidates) for m in ("recall@5", "recall_subset@1")]))
    name, _, number = metric.partition("@")
    k, triplets = int(number), benchmark.triplets
    if name == "recall_subset":
        return float(np.mean([chance_recall(k, len(t.subset)) for t in triplets]))
    if name == "map":
        return float(np.mean([chance_average_precision(k, len(t.targets), candidates) for t in triplets]))
    return chance_recall(k, candidates)
